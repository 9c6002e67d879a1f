"""Weights in memory that the processes of one machine share.

Courier copies weights several times on either side and sends them through the
network stack, for each actor anew. Here the learner copies them once for all, and
each actor once more, and only when there are others.
"""

import mmap
import os
import secrets
from typing import List, NamedTuple, Sequence

from acme import core
import numpy as np


class Handle(NamedTuple):
  """What a process needs to find the variables of another.

  Attributes:
    path: of the memory, while the process that made it lives.
    token: 32 characters that it begins with, which tell it from anything that
      may have the same path on another machine.
    name: of the collection of variables.
    dtype: of all variables in a row, a field for each.
  """
  path: str
  token: bytes
  name: str
  dtype: np.dtype


def _layout(dtype: np.dtype) -> np.dtype:
  """Returns the dtype of the memory; number n of the variables is in slot n % 2."""
  return np.dtype([('token', 'S32'), ('latest', np.int64), ('slots', dtype, 2)],
                  align=True)


class SharedVariables:
  """The side that writes; one thread at a time may do so.

  Attributes:
    handle: for `SharedVariableSource`, in any process of this machine.
  """

  def __init__(self, source: core.VariableSource, name: str):
    """Makes the memory, which the system frees after its last user.

    Args:
      source: of the variables, whose shapes and dtypes stay the same.
      name: of the collection of variables.
    """
    self._source = source
    variables, = source.get_variables([name])
    dtype = np.dtype([(str(i), np.asarray(v).dtype, np.shape(v))
                      for i, v in enumerate(variables)], align=True)
    file = os.memfd_create(name)
    self.handle = Handle(f'/proc/{os.getpid()}/fd/{file}',
                         secrets.token_hex(16).encode(), name, dtype)
    os.ftruncate(file, _layout(dtype).itemsize)
    self._memory = np.frombuffer(mmap.mmap(file, 0), _layout(dtype))[0]
    self._memory['token'] = self.handle.token
    self.update()

  def update(self):
    """Copies the source's variables; who reads the last ones is not disturbed."""
    variables, = self._source.get_variables([self.handle.name])
    latest = self._memory['latest'] + 1
    slots = self._memory['slots']
    for field, variable in zip(self.handle.dtype.names, variables):
      slots[field][latest % 2] = variable
    # Last: the order of writes is the order that others see, on x86.
    self._memory['latest'] = latest


class SharedVariableSource(core.VariableSource):
  """The side that reads."""

  def __init__(self, handle: Handle):
    """Finds the memory.

    Args:
      handle: of `SharedVariables`.

    Raises:
      OSError, ValueError: if it is not there, as on another machine.
    """
    self._name = handle.name
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
    self._latest = -1
    self._variables: List[np.ndarray] = []

  def get_variables(self, names: Sequence[str]) -> List[List[np.ndarray]]:
    """Returns the latest variables, the same list until there are others."""
    for name in names:
      if name != self._name:
        raise KeyError(f'no variables {name!r}; there are: {self._name}.')
    latest = int(self._memory['latest'])
    while latest != self._latest:
      slot = latest % 2
      copy = self._memory['slots'][slot:slot + 1].copy()
      self._latest = latest
      self._variables = [copy[field][0] for field in copy.dtype.names]
      # Once there are others, this slot may have been written to meanwhile.
      latest = int(self._memory['latest'])
    return [self._variables for _ in names]


def nearest_source(remote) -> core.VariableSource:
  """Returns the shared memory of a `LearnerWorker`, or itself if it is far away.

  Args:
    remote: a worker, or a Courier client of one, which this waits for.
  """
  try:
    return SharedVariableSource(remote.shared_variables())
  except (OSError, ValueError):
    return remote
