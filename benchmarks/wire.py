"""A wire that delays what it carries, for kernels without netem.

A bridge in user space: takes frames from some interfaces, one for each host, and
passes each on, after the delay, to the interface that leads to its receiver.
`benchmarks.hosts` runs it, as `python -m benchmarks.wire DELAY_MS`, in a network
whose interfaces are all on the wire, except loopback.
"""

import collections
import ctypes
import fcntl
import select
import socket
import struct
import sys
import time

_ALL_PROTOCOLS = 3  # ETH_P_ALL
_IS_OUTGOING = 4  # PACKET_OUTGOING
_FRAME_BYTES = 2**16
_BUFFER_BYTES = 2**24
_LOOK_SECONDS = 0.5
# From <linux/sockios.h> and <linux/ethtool.h>.
_SIOCETHTOOL = 0x8946
_ETHTOOL_SGSO, _ETHTOOL_STSO, _ETHTOOL_STXCSUM = 0x24, 0x1f, 0x17


def keep_frames_whole(interface: str) -> None:
  """Makes the kernel hand over frames as a cable would carry them.

  Otherwise it leaves checksums and segmentation to a device, and there is none.
  """
  with socket.socket() as s:
    for option in (_ETHTOOL_SGSO, _ETHTOOL_STSO, _ETHTOOL_STXCSUM):
      value = ctypes.create_string_buffer(struct.pack('II', option, 0))
      fcntl.ioctl(s, _SIOCETHTOOL, struct.pack(
          '16sP16x', interface.encode(), ctypes.addressof(value)))


class _Wire:
  """The interfaces, and which addresses are behind each."""

  def __init__(self, delay: float):
    self._delay = delay
    self._ports: dict[str, socket.socket] = {}
    self._behind: dict[bytes, socket.socket] = {}
    # In the order in which they are due, as all wait equally long.
    self._frames: collections.deque[tuple[float, bytes, socket.socket]] = (
        collections.deque())

  def look(self) -> None:
    """Adds new interfaces, and forgets those that have gone."""
    there = {name for _, name in socket.if_nameindex()} - {'lo'}
    for name in self._ports.keys() - there:
      gone = self._ports.pop(name)
      self._behind = {k: v for k, v in self._behind.items() if v is not gone}
      gone.close()
    for name in there - self._ports.keys():
      port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW,
                           socket.htons(_ALL_PROTOCOLS))
      port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
      port.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
      port.bind((name, 0))
      port.setblocking(False)
      self._ports[name] = port

  def carry(self) -> None:
    """Receives frames, waiting a little, and passes on those that are due."""
    wait = _LOOK_SECONDS
    if self._frames:
      wait = max(0., self._frames[0][0] - time.monotonic())
    ready, _, _ = select.select(list(self._ports.values()), [], [], wait)
    for port in ready:
      self._take(port)
    now = time.monotonic()
    while self._frames and self._frames[0][0] <= now:
      _, frame, source = self._frames.popleft()
      behind = self._behind.get(frame[:6])
      for port in [behind] if behind else self._ports.values():
        if port is not source:
          try:
            port.send(frame)
          except OSError:
            pass  # Lost, as on a cable, if a host is gone or overloaded.

  def _take(self, port: socket.socket) -> None:
    due = time.monotonic() + self._delay
    while True:
      try:
        frame, (_, _, kind, *_) = port.recvfrom(_FRAME_BYTES)
      except OSError:
        return  # No more frames, or the port has gone.
      if kind != _IS_OUTGOING:
        self._behind[frame[6:12]] = port
        self._frames.append((due, frame, port))


def main() -> None:
  wire = _Wire(float(sys.argv[1]) / 1000)
  looked = 0.
  while True:
    if time.monotonic() - looked > _LOOK_SECONDS:
      wire.look()
      looked = time.monotonic()
    wire.carry()


if __name__ == '__main__':
  main()
