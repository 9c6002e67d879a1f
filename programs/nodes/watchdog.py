"""Ends a process whose environment hangs."""

import contextlib
import ctypes
import importlib.machinery
import os
import pathlib
from typing import Iterator

import dm_env
import numpy as np

from agents import environments

_LIBRARY = pathlib.Path(__file__).with_name(
    '_watchdog' + importlib.machinery.EXTENSION_SUFFIXES[0])


def load() -> ctypes.CDLL:
  """Loads the library that watches; raises ValueError, in one line, if it cannot."""
  try:
    return ctypes.CDLL(str(_LIBRARY), use_errno=True)
  except OSError as e:
    raise ValueError(f'no watch over the environment ({e}); `pip install -e .` '
                     'builds its library, with gcc.') from None


class Watchdog:
  """Watches calls that may hang: making, resetting and stepping environments.

  The watch itself is in `watchdog.c`: what hangs may hold Python's lock.
  """

  def __init__(self, node: str, seconds: float):
    """Makes a watchdog that does nothing yet.

    Args:
      node: the node whose process it ends, for the message.
      seconds: how long a step may take. Only time while the process runs counts:
        a signal may stop it.
    """
    self._seconds = seconds
    self._message = (
        f'{node}: the environment has been in one step for {seconds:g} s '
        '(--step_timeout); this process ends.\n').encode()
    # Odd within a step. Once it is watched, the library's own.
    self._count = ctypes.c_int64()

  def start(self) -> None:
    """Watches until the process ends.

    Raises:
      RuntimeError, ValueError: if it cannot, in one line.
    """
    library = load()
    library.watch_steps.restype = ctypes.POINTER(ctypes.c_int64)
    count = library.watch_steps(ctypes.c_double(self._seconds), self._message)
    if not count:
      raise RuntimeError('no watch over the environment: '
                         f'{os.strerror(ctypes.get_errno())}.')
    self._count = count.contents

  @contextlib.contextmanager
  def step(self) -> Iterator[None]:
    """Marks the `with` block as one step of an environment."""
    self._count.value += 1
    try:
      yield
    finally:
      self._count.value += 1


class Watched:
  """Environments whose resets, steps and end a watchdog watches."""

  def __init__(self, environment: environments.Playable, watchdog: Watchdog):
    self._environment = environment
    self._watchdog = watchdog
    self.num_envs = environment.num_envs

  def reset(self) -> dm_env.TimeStep:
    with self._watchdog.step():
      return self._environment.reset()

  def step(self, action: np.ndarray) -> dm_env.TimeStep:
    with self._watchdog.step():
      return self._environment.step(action)

  def close(self) -> None:
    with self._watchdog.step():
      self._environment.close()
