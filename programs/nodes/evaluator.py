"""The evaluator node: greedy evaluations while training goes on."""

import functools
import threading
from typing import Callable, Optional

from acme import core
from acme.utils import counting
from acme.utils import loggers
import dm_env
import numpy as np

from agents import environments
from programs.nodes import setup as setup_lib
from programs.runtime import processes
from programs.runtime import records
from programs.runtime import stopping
from programs.runtime import weights

_NUM_ENVS = 4
_NICENESS = 15
_POLL_SECONDS = 2.


def play_episodes(
    environment: environments.VectorEnvironment,
    actor: core.Actor,
    num_episodes: int,
    should_stop: Optional[threading.Event] = None,
) -> list[float]:
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
  returns: list[float] = []
  timestep = environment.reset()
  while left.any() and not should_stop.is_set():
    timestep = environment.step(actor.select_action(timestep.observation))
    totals += timestep.reward
    last = timestep.step_type == dm_env.StepType.LAST
    returns.extend(totals[last & (left > 0)].tolist())
    left[last & (left > 0)] -= 1
    # An episode that was cut is played again.
    totals[timestep.step_type != dm_env.StepType.MID] = 0.
  return returns


class Evaluator(core.Worker):
  """Evaluates the latest policy every so many timesteps of training."""

  def __init__(
      self,
      environment_factory: Callable[[], environments.VectorEnvironment],
      actor: core.Actor,
      counter: counting.Counter,
      logger: loggers.Logger,
      num_episodes: int,
      interval_timesteps: int,
      should_stop: Optional[threading.Event] = None,
  ):
    """Makes the worker.

    Args:
      environment_factory: makes the environments of each evaluation anew.
      actor: a greedy one.
      counter: tells how far training has come.
      logger: gets a row of `records.EVALUATION_COLUMNS` for each evaluation.
      num_episodes: episodes in an evaluation.
      interval_timesteps: timesteps of training between two evaluations.
      should_stop: ends `run` once set.
    """
    self._environment_factory = environment_factory
    self._actor = actor
    self._counter = counter
    self._logger = logger
    self._num_episodes = num_episodes
    self._interval = interval_timesteps
    self._should_stop = should_stop or threading.Event()
    self._latest = 0

  def run(self) -> None:
    due = self._next_due(self._timesteps())
    while not self._should_stop.wait(_POLL_SECONDS):
      timesteps = self._timesteps()
      if timesteps < due:
        continue
      self._actor.update(wait=True)
      due = self._next_due(timesteps)
      environment = self._environment_factory()
      returns = play_episodes(environment, self._actor, self._num_episodes,
                              self._should_stop)
      environment.close()
      if len(returns) == self._num_episodes:
        self._logger.write(records.evaluation_row(timesteps, returns))

  def _timesteps(self) -> int:
    try:
      counts = self._counter.get_counts()
    except Exception:  # pylint: disable=broad-except
      return self._latest  # The counter is away for a while.
    self._latest = int(counts.get('actor_steps', 0))
    return self._latest

  def _next_due(self, timesteps: int) -> int:
    return timesteps - timesteps % self._interval + self._interval


def run(setup: setup_lib.Setup, learner: core.VariableSource,
        counter: counting.Counter, should_stop: threading.Event) -> None:
  """Evaluates until the program stops; arguments are those of actors."""
  if processes.settle_in():
    processes.use_one_core(_NICENESS)
  config = setup.config
  seed = config.process_seed(0)

  def evaluate():
    actor = setup.builder.make_actor(
        seed, setup.make_policy(evaluation=True),
        variable_source=weights.NearestSource(learner, 'evaluator'))
    processes.say_if_back('evaluator', 'the evaluation that it was in')
    Evaluator(
        functools.partial(setup.environment_factory, _NUM_ENVS, seed), actor,
        counter,
        records.csv_logger(config.run_dir, records.EVALUATION_FILE,
                           records.EVALUATION_COLUMNS),
        config.evaluation_episodes, config.evaluation_interval,
        should_stop).run()

  stopping.run_until_stopped(evaluate, should_stop)
