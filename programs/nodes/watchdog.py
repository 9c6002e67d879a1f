"""Ends a process whose environment hangs."""

import contextlib
import os
import threading
import time
from typing import Iterator, Optional

import dm_env
import numpy as np

from agents import environments

_WATCH_SECONDS = 0.5


class Watchdog:
  """Watches calls that may hang: making, resetting and stepping environments."""

  def __init__(self, node: str, seconds: float, should_stop: threading.Event):
    """Makes a watchdog that does nothing yet.

    Args:
      node: the node whose process it ends, for the message.
      seconds: how long a step may take. Only time while the process runs counts:
        a signal may stop it.
      should_stop: ends the watch once set.
    """
    self._node = node
    self._seconds = seconds
    self._should_stop = should_stop
    self._began: Optional[float] = None

  def start(self) -> None:
    threading.Thread(target=self._watch, daemon=True).start()

  @contextlib.contextmanager
  def step(self) -> Iterator[None]:
    """Marks the `with` block as one step of an environment."""
    self._began = time.monotonic()
    try:
      yield
    finally:
      self._began = None

  def _watch(self) -> None:
    step, watched = None, 0.
    while watched < self._seconds:
      if self._should_stop.wait(_WATCH_SECONDS):
        return
      began = self._began
      watched = watched + _WATCH_SECONDS if began == step is not None else 0.
      step = began
    print(f'{self._node}: the environment has been in one step for '
          f'{self._seconds:g} s (--step_timeout); this process ends.', flush=True)
    os._exit(1)


class Watched:
  """Environments whose resets and steps a watchdog watches."""

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
    self._environment.close()
