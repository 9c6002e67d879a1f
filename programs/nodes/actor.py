"""The actor node: an actor in a vector environment, and its reports."""

import contextlib
import threading
import time
from typing import Optional

from acme import core
import dm_env
import numpy as np
import reverb

from agents import environments
from programs.nodes import counter as counter_node
from programs.nodes import setup as setup_lib
from programs.nodes import watchdog as watchdog_lib
from programs.runtime import processes
from programs.runtime import reports
from programs.runtime import stopping
from programs.runtime import weights

_REPORT_SECONDS = 0.5
# If cores are short, the learner goes first: data that waits for it grows stale.
_NICENESS = 10


class VectorEnvironmentLoop(core.Worker):
  """Steps all environments at once and reports timesteps and returns.

  Acme's `EnvironmentLoop` does this for one environment. A step that only
  resets an environment is not a timestep.
  """

  def __init__(
      self,
      environment: environments.Playable,
      actor: core.Actor,
      counter: counter_node.RunCounter,
      should_stop: Optional[threading.Event] = None,
  ):
    """Makes a loop.

    Args:
      environment: the environments to act in.
      actor: chooses the actions.
      counter: gets frequent reports of timesteps and finished episodes.
      should_stop: ends `run` once set.
    """
    self._environment = environment
    self._actor = actor
    self._counter = counter
    self._should_stop = should_stop or threading.Event()

  def run(self, num_steps: Optional[int] = None) -> None:
    """Runs until stopped.

    Args:
      num_steps: steps of the vector environment to take; None for no end.
    """
    episode_returns = np.zeros(self._environment.num_envs, np.float64)
    reporter = reports.ActingReporter(self._counter)
    reported = time.monotonic()
    timestep = self._environment.reset()
    self._actor.observe_first(timestep)
    num_ended = 0
    while not self._should_stop.is_set() and num_steps != 0:
      action = self._actor.select_action(timestep.observation)
      timestep = self._environment.step(action)
      self._actor.observe(action, timestep)
      self._actor.update()

      episode_returns += timestep.reward
      last = timestep.step_type == dm_env.StepType.LAST
      ended = episode_returns[last].tolist()
      num_timesteps = int(environments.is_experience(timestep).sum())
      # A reset that follows no end means that an episode was cut.
      num_cut = len(last) - num_timesteps - num_ended
      reporter.add(num_timesteps, ended, num_cut)
      episode_returns[timestep.step_type != dm_env.StepType.MID] = 0.
      num_ended = len(ended)
      if num_steps is not None:
        num_steps -= 1
      now = time.monotonic()
      if now - reported > _REPORT_SECONDS:
        reporter.send()
        reported = now
    reporter.close()


def run(setup: setup_lib.Setup, index: int, shard: reverb.Client,
        learner: core.VariableSource, counter: counter_node.RunCounter,
        should_stop: threading.Event) -> None:
  """Acts until the program stops.

  Args:
    setup: of the program.
    index: of this actor.
    shard: gets the experience.
    learner: serves the weights.
    counter: gets reports of timesteps and returns.
    should_stop: set when the program stops.
  """
  name = f'actor/{index}'
  watchdog = watchdog_lib.Watchdog(name, setup.config.step_timeout)
  if processes.has_own_process():
    processes.use_one_core(_NICENESS)
    watchdog.start()
  seed = setup.config.process_seed(1 + index)
  adder = setup.builder.make_adder(shard)

  def act():
    start_reports = reports.Background()
    start_reports.start(counter.record_start, name, "the learner's weights")
    actor = setup.builder.make_actor(
        seed, setup.make_policy(), adder,
        weights.NearestSource(learner, name))
    start_reports.start(counter.record_start, name,
                        'first steps of the environments')
    with watchdog.step():
      environment = setup.environment_factory(setup.config.envs_per_actor, seed)
    processes.say_if_back(name, 'the episodes and trajectories that it was in')
    watched = watchdog_lib.Watched(environment, watchdog)
    try:
      VectorEnvironmentLoop(watched, actor, counter, should_stop).run()
    finally:
      with contextlib.suppress(Exception):  # It may be what has failed.
        watched.close()

  # The replay may block the actor for as long as nobody samples.
  stopping.run_until_stopped(act, should_stop, interrupt=adder.reset)
