"""The evaluator node: greedy evaluations during training."""

import threading
from typing import Callable, Optional

from acme import core
from acme.utils import loggers
from acme.utils.loggers import aggregators
import dm_env
import numpy as np

from agents import environments
from programs.nodes import counter as counter_node
from programs.nodes import setup as setup_lib
from programs.nodes import watchdog as watchdog_lib
from programs.runtime import processes
from programs.runtime import records
from programs.runtime import reports
from programs.runtime import stopping
from programs.runtime import weights

_NUM_ENVS = 4
_NICENESS = 15
_POLL_SECONDS = 2.
# Episodes of one environment, in a row.
_MOST_LOST = 100


class NoEpisodeError(environments.BadNumberError):
  """Every episode is cut at a number that is not finite; one line says so."""


def play_episodes(
    environment: environments.Playable,
    actor: core.Actor,
    num_episodes: int,
    max_steps: int,
    should_stop: Optional[threading.Event] = None,
) -> list[float]:
  """Plays whole episodes and returns their raw returns.

  Each environment gets its share of the episodes before any is played, so that
  short ones are not favoured.

  Args:
    environment: E environments.
    actor: chooses the actions.
    num_episodes: how many episodes count.
    max_steps: steps after which an episode is cut; its return is that until then.
    should_stop: ends play once set.

  Returns:
    `num_episodes` returns, or fewer if it was stopped.

  Raises:
    BadNumberError: for a number that is not finite.
    NoEpisodeError: if those are skipped, and no episode comes to its end.
  """
  should_stop = should_stop or threading.Event()
  num_envs = environment.num_envs
  left = np.full(num_envs, num_episodes // num_envs)
  left[:num_episodes % num_envs] += 1
  # Those in an episode that counts; after a cut, they wait until all are reset.
  plays = np.zeros(num_envs, bool)
  totals = np.zeros(num_envs)
  steps = np.zeros(num_envs, int)
  lost = np.zeros(num_envs, int)
  returns: list[float] = []
  num_cut = 0
  while left.any() and not should_stop.is_set():
    if not plays.any():
      timestep = environment.reset()
      plays, totals[:], steps[:] = left > 0, 0., 0
    was_last = timestep.step_type == dm_env.StepType.LAST
    timestep = environment.step(actor.select_action(timestep.observation))
    totals += timestep.reward
    steps += environments.is_experience(timestep)
    last = timestep.step_type == dm_env.StepType.LAST
    # A reset that follows no end.
    lost += plays & ~was_last & (timestep.step_type == dm_env.StepType.FIRST)
    cut = plays & ~last & (steps >= max_steps)
    lost[last | cut] = 0
    if lost.max() >= _MOST_LOST:
      raise NoEpisodeError(
          f'{_MOST_LOST} episodes in a row were cut at a number that was not '
          'finite; mend the environment.')
    num_cut += int(cut.sum())
    over = plays & (last | cut)
    returns.extend(totals[over].tolist())
    left[over] -= 1
    plays &= ~cut & (left > 0)
    begins = timestep.step_type != dm_env.StepType.MID
    totals[begins], steps[begins] = 0., 0
  if num_cut:
    print(f'{num_cut} of {len(returns)} episodes had no end after {max_steps:,} '
          'steps (--max_episode_steps); their returns are those until then.',
          flush=True)
  return returns


class Evaluator(core.Worker):
  """Evaluates the latest policy at intervals of training timesteps."""

  def __init__(
      self,
      environment_factory: Callable[[], environments.Playable],
      actor: core.Actor,
      counter: counter_node.RunCounter,
      logger: loggers.Logger,
      num_episodes: int,
      interval_timesteps: int,
      max_episode_steps: int,
      should_stop: Optional[threading.Event] = None,
  ):
    """Makes the worker.

    Args:
      environment_factory: makes the environments, at the first evaluation.
      actor: a greedy one.
      counter: tells how far training has come.
      logger: gets a row of `records.EVALUATION_COLUMNS` for each evaluation.
      num_episodes: episodes in an evaluation.
      interval_timesteps: timesteps of training between two evaluations.
      max_episode_steps: steps after which an episode is cut.
      should_stop: ends `run` once set.
    """
    self._environment_factory = environment_factory
    self._actor = actor
    self._counter = counter
    self._logger = logger
    self._num_episodes = num_episodes
    self._interval = interval_timesteps
    self._max_episode_steps = max_episode_steps
    self._should_stop = should_stop or threading.Event()
    self._latest = 0

  def run(self) -> None:
    due = self._next_due(self._timesteps())
    environment: Optional[environments.Playable] = None
    while not self._should_stop.wait(_POLL_SECONDS):
      timesteps = self._timesteps()
      if timesteps < due:
        continue
      self._actor.update(wait=True)
      due = self._next_due(timesteps)
      # Made once: environments of ale-py have a thread. When it ends, memory left
      # in its heap may not be reused, as glibc gives the next thread another heap.
      environment = environment or self._environment_factory()
      try:
        returns = play_episodes(environment, self._actor, self._num_episodes,
                                self._max_episode_steps, self._should_stop)
      except NoEpisodeError as e:
        print(f'evaluator: warning: no evaluation: {e}', flush=True)
        continue
      if len(returns) == self._num_episodes:
        self._logger.write(records.evaluation_row(timesteps, returns))
    if environment:
      environment.close()

  def _timesteps(self) -> int:
    try:
      counts = self._counter.get_counts()
    except Exception:
      return self._latest  # The counter is unavailable for a while.
    self._latest = int(counts.get('actor_steps', 0))
    return self._latest

  def _next_due(self, timesteps: int) -> int:
    return timesteps - timesteps % self._interval + self._interval


def run(setup: setup_lib.Setup, learner: core.VariableSource,
        counter: counter_node.RunCounter, should_stop: threading.Event) -> None:
  """Evaluates until the program stops.

  Args:
    setup: of the program.
    learner: serves the weights.
    counter: tells how far training has come, and gets the mean returns.
    should_stop: set when the program stops.
  """
  config = setup.config
  watchdog = watchdog_lib.Watchdog('evaluator', config.step_timeout)
  if processes.has_own_process():
    processes.use_one_core(_NICENESS)
    watchdog.start()
  seed = config.process_seed(0)

  def make_environment():
    with watchdog.step():
      environment = setup.environment_factory(_NUM_ENVS, seed)
    return watchdog_lib.Watched(environment, watchdog)

  def evaluate():
    actor = setup.builder.make_actor(
        seed, setup.make_policy(evaluation=True),
        variable_source=weights.NearestSource(learner, 'evaluator'))
    processes.say_if_back('evaluator', 'the evaluation that it was in')
    Evaluator(
        make_environment, actor, counter,
        aggregators.Dispatcher([
            records.csv_logger(config.run_dir, records.EVALUATION_FILE,
                               records.EVALUATION_COLUMNS),
            reports.EvaluationReporter(counter)]),
        config.evaluation_episodes, config.evaluation_interval,
        config.max_episode_steps, should_stop).run()

  stopping.run_until_stopped(evaluate, should_stop)
