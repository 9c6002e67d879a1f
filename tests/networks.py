"""Network namespaces, and who listens where."""

import contextlib
import ipaddress
import os
import pathlib
import re
import struct
import subprocess
import time
from typing import Iterator, Union

import psutil
import pytest

from benchmarks import hosts

Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
# In /proc/net: a TCP socket that listens, a UDP socket that takes from anyone.
_OPEN_STATES = {'tcp': '0A', 'tcp6': '0A', 'udp': '07', 'udp6': '07'}


class Network:
  """A network of its own, which lasts as long as the process that holds it."""

  def __init__(self, *unshare: str):
    self._holder = subprocess.Popen([*unshare, 'sleep', 'infinity'],
                                    stderr=subprocess.PIPE, text=True)
    self.pid = self._holder.pid
    comm = pathlib.Path('/proc', str(self.pid), 'comm')
    while comm.read_text().strip() != 'sleep':
      if self._holder.poll() is not None:
        raise OSError(self._holder.stderr.read().strip())
      time.sleep(0.01)

  def command(self, *args: str) -> list[str]:
    """Returns a command that runs another in this network."""
    return ['nsenter', '--target', str(self.pid), '--user', '--net',
            '--preserve-credentials', *args]

  def run(self, *args: str) -> str:
    """Runs a command in this network; returns what it prints."""
    return hosts.output(self.command(*args), args)

  def close(self) -> None:
    self._holder.kill()
    self._holder.communicate()


def make() -> Iterator[Network]:
  """Yields a network with loopback only, where that is permitted."""
  with contextlib.ExitStack() as stack:
    try:
      network = Network('unshare', '--user', '--map-root-user', '--net')
      stack.callback(network.close)
      network.run('ip', 'link', 'set', 'lo', 'up')
    except OSError as e:
      pytest.skip(f'no network namespaces are permitted here: {e}')
    yield network


def open_ports(pid: int) -> dict[tuple[Address, int], str]:
  """Returns where a process and its descendants take connections, and how."""
  found = {}
  root = psutil.Process(pid)
  for process in [root, *root.children(recursive=True)]:
    home = pathlib.Path('/proc', str(process.pid))
    try:
      links = [os.readlink(fd) for fd in (home / 'fd').iterdir()]
      tables = {kind: (home / 'net' / kind).read_text().splitlines()[1:]
                for kind in _OPEN_STATES if (home / 'net' / kind).exists()}
    except OSError:
      continue  # It has ended.
    inodes = set(re.findall(r'socket:\[(\d+)\]', ' '.join(links)))
    for kind, lines in tables.items():
      for fields in map(str.split, lines):
        if fields[3] == _OPEN_STATES[kind] and fields[9] in inodes:
          found[_parse(fields[1])] = kind
  return found


def _parse(text: str) -> tuple[Address, int]:
  digits, port = text.split(':')
  words = [int(digits[i:i + 8], 16) for i in range(0, len(digits), 8)]
  address = ipaddress.ip_address(struct.pack(f'={len(words)}I', *words))
  return getattr(address, 'ipv4_mapped', None) or address, int(port, 16)
