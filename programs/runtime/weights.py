"""Weights in memory that the processes of one machine share.

Courier copies weights several times on either side and sends them through the
network stack, again for each actor. Here the learner copies them once for all
actors, and each actor once more, only when they are new.

On another machine, one process, the mirror, asks the learner for weights and shares
them in the same way. The first process becomes the mirror; when it ends, another
takes its place.
"""

import errno
import mmap
import os
import secrets
import socket
import struct
import threading
import time
from typing import Any, Callable, NamedTuple, Optional, Sequence

from acme import core
import numpy as np

# A mirror's shortest pause between requests, and the part of its time for them.
_MIRROR_SECONDS = 0.1
_MIRROR_PART = 0.2
# How long a mirror may take to get the first weights.
_MIRROR_STARTS_SECONDS = 10.
_AGAIN_SECONDS = 0.2


class Handle(NamedTuple):
  """What a process needs to find another's shared variables.

  Attributes:
    path: of the memory, while the process that made it lives.
    token: 32 characters that the memory begins with, which tell it from anything
      with the same path on another machine.
    dtype: of all collections together: a field for each, with a field for each of
      its variables.
  """
  path: str
  token: bytes
  dtype: np.dtype


def _layout(dtype: np.dtype) -> np.dtype:
  """Returns the memory's dtype; variables number n are in slot n % 2."""
  return np.dtype([('token', 'S32'), ('latest', np.int64), ('slots', dtype, 2)],
                  align=True)


class SharedWeights:
  """The writing side; one thread at a time may write.

  Attributes:
    handle: for `SharedWeightsSource`, in any process of this machine.
    file: the memory's descriptor.
    pulls: how often a mirror got variables.
  """

  def __init__(self, source: core.VariableSource, names: Sequence[str],
               token: Optional[bytes] = None):
    """Makes the memory, which the system frees after its last user.

    Args:
      source: of the variables, whose shapes and dtypes stay the same.
      names: of the collections of variables.
      token: of the handle; None for a new one.
    """
    self._source = source
    self._names = list(names)
    self.pulls = 0
    dtype = np.dtype([
        (name, np.dtype([(str(i), np.asarray(v).dtype, np.shape(v))
                         for i, v in enumerate(variables)], align=True))
        for name, variables in self._collections().items()], align=True)
    self.file = file = os.memfd_create('weights')
    self.handle = Handle(f'/proc/{os.getpid()}/fd/{file}',
                         token or secrets.token_hex(16).encode(), dtype)
    os.ftruncate(file, _layout(dtype).itemsize)
    self._memory = np.frombuffer(mmap.mmap(file, 0), _layout(dtype))[0]
    self._memory['token'] = self.handle.token
    self.publish()

  def publish(self) -> None:
    """Copies the source's variables, without disturbing readers of the last ones."""
    latest = self._memory['latest'] + 1
    slots = self._memory['slots']
    for name, variables in self._collections().items():
      for field, variable in zip(slots[name].dtype.names, variables):
        slots[name][field][latest % 2] = variable
    # Last: on x86, others see writes in the order in which they were made.
    self._memory['latest'] = latest

  def newer(self, number: int) -> tuple[bytes, int, Optional[list]]:
    """Returns weights that a mirror lacks.

    Args:
      number: of the variables that the mirror has.

    Returns:
      The handle's token, the number of the latest variables, and the variables
      (None if the mirror has them).
    """
    latest = int(self._memory['latest'])
    if latest == number:
      return self.handle.token, latest, None
    self.pulls += 1
    return self.handle.token, latest, self._source.get_variables(self._names)

  def _collections(self) -> dict[str, list[np.ndarray]]:
    return dict(zip(self._names, self._source.get_variables(self._names)))


class SharedWeightsSource(core.VariableSource):
  """The reading side."""

  def __init__(self, handle: Handle, file: Optional[int] = None,
               is_served: Optional[Callable[[], bool]] = None):
    """Finds the memory.

    Args:
      handle: of `SharedWeights`.
      file: the memory's descriptor, which this duplicates; None opens the memory
        by its path.
      is_served: tells whether the writer is still there; by default, whether the
        path exists.

    Raises:
      OSError, ValueError: if the memory is not there, as on another machine.
    """
    # On another machine the path may be that of a pipe: do not wait for it.
    file = (os.dup(file) if file is not None else
            os.open(handle.path, os.O_RDONLY | os.O_NONBLOCK))
    try:
      memory = mmap.mmap(file, _layout(handle.dtype).itemsize,
                         access=mmap.ACCESS_READ)
    finally:
      os.close(file)
    self._memory = np.frombuffer(memory, _layout(handle.dtype))[0]
    if self._memory['token'] != handle.token:
      raise ValueError(f'{handle.path} is not the memory that it should be.')
    # Tells whether the process that writes is still there.
    self.is_served = is_served or (lambda: os.path.exists(handle.path))
    self._latest = -1
    self._collections: dict[str, list[np.ndarray]] = {}

  def get_variables(self, names: Sequence[str]) -> list[list[np.ndarray]]:
    """Returns collections of variables, all of the same latest step."""
    latest = int(self._memory['latest'])
    while latest != self._latest:
      slot = latest % 2
      copy = self._memory['slots'][slot:slot + 1].copy()
      self._latest = latest
      self._collections = {
          name: [copy[name][field][0] for field in copy[name].dtype.names]
          for name in copy.dtype.names}
      # If there are newer ones, this slot may have been overwritten meanwhile.
      latest = int(self._memory['latest'])
    for name in names:
      if name not in self._collections:
        raise KeyError(f'no variables {name!r}; there are: '
                       f'{", ".join(self._collections)}.')
    return [self._collections[name] for name in names]


class _Pulled(core.VariableSource):
  """The weights that a mirror fetched last."""

  def __init__(self, names: Sequence[str]):
    self._names = list(names)
    self.variables: Sequence[list[np.ndarray]] = ()

  def get_variables(self, names: Sequence[str]) -> list[list[np.ndarray]]:
    return [self.variables[self._names.index(name)] for name in names]


class Mirror:
  """Fetches a learner's weights once for all processes of this machine.

  They find the mirror by a socket, which the system removes with this process, and
  get the memory's descriptor from it. The mirror lasts as long as that learner.
  """

  def __init__(self, learner: Any, handle: Handle):
    """Becomes the mirror, and fetches the first weights.

    Args:
      learner: a `LearnerWorker` or a client of one.
      handle: of the learner's memory.

    Raises:
      OSError: if there is a mirror already.
    """
    self._learner = learner
    self._handle = handle
    self._socket = socket.socket(socket.AF_UNIX)
    self._readers: list[socket.socket] = []
    self._has_ended = False
    try:
      self._socket.bind(_name(handle))
      self._socket.listen(1000)
      names = list(handle.dtype.names or ())
      self._pulled = _Pulled(names)
      _, self._number, self._pulled.variables = learner.newer_weights(-1)
      self._shared = SharedWeights(self._pulled, names, handle.token)
    except BaseException:
      self._socket.close()
      raise
    for serve in (self._accept, self._pull):
      threading.Thread(target=serve, daemon=True).start()

  def source(self) -> SharedWeightsSource:
    """Returns the source that this process itself reads."""
    return SharedWeightsSource(self._shared.handle, self._shared.file,
                               lambda: not self._has_ended)

  def _accept(self) -> None:
    while True:
      try:
        reader, _ = self._socket.accept()
      except OSError:
        if self._has_ended:
          return
        time.sleep(_AGAIN_SECONDS)  # No descriptor is free, for now.
        continue
      for known in [r for r in self._readers if not _is_open(r)]:
        self._readers.remove(known)
        known.close()
      try:
        if not _is_ours(reader):
          raise PermissionError
        socket.send_fds(reader, [b'.'], [self._shared.file])
      except OSError:
        reader.close()  # Another user's, or it has ended meanwhile.
        continue
      # The open socket tells the reader that there is a mirror.
      self._readers.append(reader)

  def _pull(self) -> None:
    token, pause = self._handle.token, _MIRROR_SECONDS
    while token == self._handle.token:
      time.sleep(pause)
      began = time.monotonic()
      try:
        token, number, variables = self._learner.newer_weights(self._number)
      except Exception:
        continue  # The learner is away; its last weights are good enough.
      if token == self._handle.token and variables is not None:
        self._number, self._pulled.variables = number, variables
        self._shared.publish()
      # On a slow wire, or one that many share, the mirror asks less often.
      took = time.monotonic() - began
      pause = max(_MIRROR_SECONDS, took / _MIRROR_PART - took)
    self._has_ended = True
    self._socket.shutdown(socket.SHUT_RDWR)  # Wakes the thread in `accept`.
    self._socket.close()
    for reader in self._readers:
      reader.close()


def _name(handle: Handle) -> bytes:
  """Returns the name of a mirror's socket, in Linux's abstract namespace."""
  return b'\0impala_ppo/' + handle.token


def _is_ours(peer: socket.socket) -> bool:
  """Tells whether the process at the other end belongs to the same user."""
  size = struct.calcsize('3i')
  _, user, _ = struct.unpack(
      '3i', peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
  return user == os.geteuid()


def _is_open(connection: socket.socket) -> bool:
  """Tells whether the process at the other end keeps a connection open."""
  try:
    return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
  except BlockingIOError:
    return True
  except OSError:
    return False


def _mirrored(handle: Handle) -> SharedWeightsSource:
  """Reads from the mirror of this machine; raises OSError if there is none."""
  mirror = socket.socket(socket.AF_UNIX)
  mirror.settimeout(_MIRROR_STARTS_SECONDS)
  mirror.connect(_name(handle))
  if not _is_ours(mirror):
    raise OSError("another user's process poses as the mirror")
  _, (file, *_), _, _ = socket.recv_fds(mirror, 1, 1)

  mirror.setblocking(False)
  try:
    return SharedWeightsSource(handle, file, lambda: _is_open(mirror))
  finally:
    os.close(file)


class NearestSource(core.VariableSource):
  """Reads a learner's weights the fastest way, and reconnects when it restarts.

  While the learner is away, its last variables are returned.
  """

  def __init__(self, remote: Any, node: str):
    """Makes a source.

    Args:
      remote: the learner's worker, or a Courier client of it.
      node: the name of the node that asks, for lines that say how it gets weights
        and what it waits for.
    """
    self._remote = remote
    self._node = node
    self._shared: Optional[SharedWeightsSource] = None
    self._last: dict[str, list[np.ndarray]] = {}

  def get_variables(self, names: Sequence[str]) -> list[list[np.ndarray]]:
    """Returns collections of variables; waits until there are some."""
    while True:
      try:
        variables = self._source().get_variables(names)
        self._last.update(zip(names, variables))
        return variables
      except KeyError:
        raise
      except Exception as e:
        self._shared = None
        if all(name in self._last for name in names):
          return [self._last[name] for name in names]
        print(f'{self._node}: waiting for the learner ({e}).', flush=True)
        time.sleep(_AGAIN_SECONDS)

  def _source(self) -> core.VariableSource:
    if self._shared is None or not self._shared.is_served():
      self._connect()
    assert self._shared is not None
    return self._shared

  def _connect(self) -> None:
    handle = self._remote.shared_weights()
    try:
      self._shared = SharedWeightsSource(handle)
      how = 'memory shared with the learner'
    except (OSError, ValueError):
      try:
        self._shared = Mirror(self._remote, handle).source()
        how = 'the learner, on another machine, for all processes of this one'
      except OSError as e:
        if e.errno != errno.EADDRINUSE:
          raise
        self._shared = _mirrored(handle)
        how = 'the process of this machine that gets them from the learner'
    print(f'{self._node} has weights from {how}.', flush=True)
