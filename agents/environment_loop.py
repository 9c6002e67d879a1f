"""Runs an actor in a vector environment."""

import threading
import time
from typing import Optional

from acme import core
import dm_env
import numpy as np

from agents import environments
from agents import progress as progress_lib

_REPORT_SECONDS = 0.5


class VectorEnvironmentLoop(core.Worker):
  """Steps all environments at once and reports timesteps and returns.

  What Acme's `EnvironmentLoop` is for one environment. A step that only
  resets an environment is no timestep.
  """

  def __init__(
      self,
      environment: environments.VectorEnvironment,
      actor: core.Actor,
      progress: progress_lib.RunProgress,
      should_stop: Optional[threading.Event] = None,
  ):
    """Makes a loop.

    Args:
      environment: what to act in.
      actor: what acts.
      progress: is told of timesteps and finished episodes, often.
      should_stop: ends `run` once set.
    """
    self._environment = environment
    self._actor = actor
    self._progress = progress
    self._should_stop = should_stop or threading.Event()

  def run(self, num_steps: Optional[int] = None):
    """Runs until stopped.

    Args:
      num_steps: steps of the vector environment to take; None for no end.
    """
    num_envs = self._environment.num_envs
    episode_returns = np.zeros(num_envs, np.float64)
    finished = []
    timesteps = 0
    reported = time.monotonic()
    timestep = self._environment.reset()
    self._actor.observe_first(timestep)
    while not self._should_stop.is_set() and num_steps != 0:
      action = self._actor.select_action(timestep.observation)
      was_last = timestep.step_type == dm_env.StepType.LAST
      timestep = self._environment.step(action)
      self._actor.observe(action, timestep)
      self._actor.update()

      timesteps += num_envs - int(was_last.sum())
      episode_returns += timestep.reward
      last = timestep.step_type == dm_env.StepType.LAST
      if last.any():
        finished.extend(episode_returns[last].tolist())
        episode_returns[last] = 0.
      if num_steps is not None:
        num_steps -= 1
      now = time.monotonic()
      if now - reported > _REPORT_SECONDS or num_steps == 0:
        self._progress.record_acting(timesteps, finished)
        timesteps, finished, reported = 0, [], now
