"""Weights in memory that the processes of one machine share.

Courier copies weights several times on either side and sends them through the
network stack, for each actor anew. Here the learner copies them once for all, and
each actor once more, and only when there are others.
"""

import mmap
import os
import secrets
from typing import Any, NamedTuple, Optional, Sequence

from acme import core
import numpy as np


class Handle(NamedTuple):
  """What a process needs to find the variables of another.

  Attributes:
    path: of the memory, while the process that made it lives.
    token: 32 characters that it begins with, which tell it from anything that
      may have the same path on another machine.
    dtype: of all collections in a row: a field for each, of a field for each of
      its variables.
  """
  path: str
  token: bytes
  dtype: np.dtype


def _layout(dtype: np.dtype) -> np.dtype:
  """Returns the dtype of the memory; number n of the variables is in slot n % 2."""
  return np.dtype([('token', 'S32'), ('latest', np.int64), ('slots', dtype, 2)],
                  align=True)


class SharedWeights:
  """The side that writes; one thread at a time may do so.

  Attributes:
    handle: for `SharedWeightsSource`, in any process of this machine.
  """

  def __init__(self, source: core.VariableSource, names: Sequence[str]):
    """Makes the memory, which the system frees after its last user.

    Args:
      source: of the variables, whose shapes and dtypes stay the same.
      names: of the collections of variables.
    """
    self._source = source
    self._names = list(names)
    dtype = np.dtype([
        (name, np.dtype([(str(i), np.asarray(v).dtype, np.shape(v))
                         for i, v in enumerate(variables)], align=True))
        for name, variables in self._collections().items()], align=True)
    file = os.memfd_create('weights')
    self.handle = Handle(f'/proc/{os.getpid()}/fd/{file}',
                         secrets.token_hex(16).encode(), dtype)
    os.ftruncate(file, _layout(dtype).itemsize)
    self._memory = np.frombuffer(mmap.mmap(file, 0), _layout(dtype))[0]
    self._memory['token'] = self.handle.token
    self.publish()

  def publish(self) -> None:
    """Copies the source's variables; who reads the last ones is not disturbed."""
    latest = self._memory['latest'] + 1
    slots = self._memory['slots']
    for name, variables in self._collections().items():
      for field, variable in zip(slots[name].dtype.names, variables):
        slots[name][field][latest % 2] = variable
    # Last: the order of writes is the order that others see, on x86.
    self._memory['latest'] = latest

  def _collections(self) -> dict[str, list[np.ndarray]]:
    return dict(zip(self._names, self._source.get_variables(self._names)))


class SharedWeightsSource(core.VariableSource):
  """The side that reads."""

  def __init__(self, handle: Handle):
    """Finds the memory.

    Args:
      handle: of `SharedWeights`.

    Raises:
      OSError, ValueError: if it is not there, as on another machine.
    """
    # On another machine the path may be that of a pipe: do not wait for it.
    file = os.open(handle.path, os.O_RDONLY | os.O_NONBLOCK)
    try:
      memory = mmap.mmap(file, _layout(handle.dtype).itemsize,
                         access=mmap.ACCESS_READ)
    finally:
      os.close(file)
    self._memory = np.frombuffer(memory, _layout(handle.dtype))[0]
    if self._memory['token'] != handle.token:
      raise ValueError(f'{handle.path} is not the memory that it should be.')
    self._path = handle.path
    self._latest = -1
    self._collections: dict[str, list[np.ndarray]] = {}

  def is_served(self) -> bool:
    """Tells whether the process that writes is still there."""
    return os.path.exists(self._path)

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
      # Once there are others, this slot may have been written to meanwhile.
      latest = int(self._memory['latest'])
    for name in names:
      if name not in self._collections:
        raise KeyError(f'no variables {name!r}; there are: '
                       f'{", ".join(self._collections)}.')
    return [self._collections[name] for name in names]


class NearestSource(core.VariableSource):
  """The fastest way to a learner's weights, and back to it when it restarts.

  While the learner is away, its last variables are served.
  """

  def __init__(self, remote: Any, node: str):
    """Makes a source.

    Args:
      remote: the learner's worker, or a Courier client of it.
      node: the name of who asks; it prints what it gets weights by, and what it
        waits for.
    """
    self._remote = remote
    self._node = node
    self._shared: Optional[SharedWeightsSource] = None
    self._is_connected = False
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
      except Exception as e:  # pylint: disable=broad-except
        self._is_connected = False
        if all(name in self._last for name in names):
          return [self._last[name] for name in names]
        print(f'{self._node}: waiting for the learner ({e}).', flush=True)

  def _source(self) -> core.VariableSource:
    if self._shared is not None and not self._shared.is_served():
      self._is_connected = False
    if not self._is_connected:
      self._connect()
    return self._shared or self._remote

  def _connect(self) -> None:
    handle = self._remote.shared_weights()
    try:
      self._shared = SharedWeightsSource(handle)
      how = 'come from memory shared with the learner'
    except (OSError, ValueError) as e:
      self._shared = None
      how = ('come through Courier, since the learner shares no memory with this '
             f'process ({e})')
    self._is_connected = True
    print(f'{self._node} has weights that {how}.', flush=True)
