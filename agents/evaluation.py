"""Greedy evaluation, and the worker that does it while training goes on."""

import csv
import os
import threading
from typing import Callable, List, Optional

from acme import core
import dm_env
import numpy as np

from agents import environments
from agents import progress as progress_lib

EVALUATION_FILE = 'evaluation.csv'
_POLL_SECONDS = 2.


def play_episodes(
    environment: environments.VectorEnvironment,
    actor: core.Actor,
    num_episodes: int,
    should_stop: Optional[threading.Event] = None,
) -> List[float]:
  """Plays whole episodes and returns their raw returns.

  Which episodes count is settled before any is played, the k-th environment
  having a share of its own, so that short ones are not favoured.

  Args:
    environment: E environments.
    actor: chooses the actions.
    num_episodes: how many episodes count.
    should_stop: gives up once set.

  Returns:
    `num_episodes` returns, or fewer where it was told to stop.
  """
  should_stop = should_stop or threading.Event()
  num_envs = environment.num_envs
  left = np.full(num_envs, num_episodes // num_envs)
  left[:num_episodes % num_envs] += 1
  totals = np.zeros(num_envs)
  returns: List[float] = []
  timestep = environment.reset()
  while left.any() and not should_stop.is_set():
    timestep = environment.step(actor.select_action(timestep.observation))
    totals += timestep.reward
    last = timestep.step_type == dm_env.StepType.LAST
    returns.extend(totals[last & (left > 0)].tolist())
    left[last & (left > 0)] -= 1
    totals[last] = 0.
  return returns


class EvaluatorWorker(core.Worker):
  """Evaluates the latest policy every so many timesteps of training.

  Appends to `evaluation.csv`: timesteps, episodes, and the mean, standard
  deviation, minimum and maximum of their returns.
  """

  def __init__(
      self,
      environment_factory: Callable[[], environments.VectorEnvironment],
      actor: core.Actor,
      progress: progress_lib.RunProgress,
      run_dir: str,
      num_episodes: int,
      interval_timesteps: int,
      should_stop: Optional[threading.Event] = None,
  ):
    """Makes the worker.

    Args:
      environment_factory: makes the environments of each evaluation anew.
      actor: a greedy one.
      progress: tells how far training has come.
      run_dir: where `evaluation.csv` goes.
      num_episodes: episodes in an evaluation.
      interval_timesteps: timesteps of training between two evaluations.
      should_stop: ends `run` once set.
    """
    self._environment_factory = environment_factory
    self._actor = actor
    self._progress = progress
    self._path = os.path.join(run_dir, EVALUATION_FILE)
    self._num_episodes = num_episodes
    self._interval = interval_timesteps
    self._should_stop = should_stop or threading.Event()

  def run(self):
    timesteps = self._timesteps()
    due = timesteps - timesteps % self._interval + self._interval
    while not self._should_stop.wait(_POLL_SECONDS):
      timesteps = self._timesteps()
      if timesteps < due:
        continue
      self._actor.update(wait=True)
      due = timesteps - timesteps % self._interval + self._interval
      environment = self._environment_factory()
      returns = play_episodes(environment, self._actor, self._num_episodes,
                              self._should_stop)
      environment.close()
      if len(returns) == self._num_episodes:
        self._write(timesteps, returns)

  def _timesteps(self) -> int:
    return self._progress.get_counts().get('actor_steps', 0)

  def _write(self, timesteps: int, returns: List[float]):
    is_new = not os.path.exists(self._path)
    with open(self._path, 'a', newline='') as f:
      writer = csv.writer(f)
      if is_new:
        writer.writerow(['timesteps', 'episodes', 'return_mean', 'return_std',
                         'return_min', 'return_max'])
      writer.writerow([timesteps, len(returns),
                       *(round(float(statistic(returns)), 4) for statistic in
                         (np.mean, np.std, np.min, np.max))])
