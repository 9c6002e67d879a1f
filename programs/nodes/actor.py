"""The actor node: an actor in a vector environment, and what it reports."""

import threading
import time
from typing import Callable, Optional, Protocol, Sequence

from acme import core
from acme import specs
import dm_env
import numpy as np
import reverb

from agents import environments
from agents.impala_ppo import builder as builder_lib
from programs import config as config_lib
from programs.runtime import processes
from programs.runtime import stopping
from programs.runtime import weights

_REPORT_SECONDS = 0.5
# Where cores are short the learner goes first: what waits for it grows stale.
_NICENESS = 10

# Makes `num_envs` environments from a seed.
EnvironmentFactory = Callable[[int, int], environments.VectorEnvironment]


class ActingRecorder(Protocol):
  """What a loop reports to."""

  def record_acting(self, timesteps: int, returns: Sequence[float]) -> None:
    """Takes new timesteps, and raw returns of episodes that have ended."""


class VectorEnvironmentLoop(core.Worker):
  """Steps all environments at once and reports timesteps and returns.

  What Acme's `EnvironmentLoop` is for one environment. A step that only
  resets an environment is no timestep.
  """

  def __init__(
      self,
      environment: environments.VectorEnvironment,
      actor: core.Actor,
      recorder: ActingRecorder,
      should_stop: Optional[threading.Event] = None,
  ):
    """Makes a loop.

    Args:
      environment: what to act in.
      actor: what acts.
      recorder: is told of timesteps and finished episodes, often.
      should_stop: ends `run` once set.
    """
    self._environment = environment
    self._actor = actor
    self._recorder = recorder
    self._should_stop = should_stop or threading.Event()

  def run(self, num_steps: Optional[int] = None) -> None:
    """Runs until stopped.

    Args:
      num_steps: steps of the vector environment to take; None for no end.
    """
    episode_returns = np.zeros(self._environment.num_envs, np.float64)
    finished: list[float] = []
    timesteps = 0
    reported = time.monotonic()
    timestep = self._environment.reset()
    self._actor.observe_first(timestep)
    while not self._should_stop.is_set() and num_steps != 0:
      action = self._actor.select_action(timestep.observation)
      timestep = self._environment.step(action)
      self._actor.observe(action, timestep)
      self._actor.update()

      timesteps += int(environments.is_experience(timestep).sum())
      episode_returns += timestep.reward
      last = timestep.step_type == dm_env.StepType.LAST
      if last.any():
        finished.extend(episode_returns[last].tolist())
        episode_returns[last] = 0.
      if num_steps is not None:
        num_steps -= 1
      now = time.monotonic()
      if now - reported > _REPORT_SECONDS or num_steps == 0:
        self._recorder.record_acting(timesteps, finished)
        timesteps, finished, reported = 0, [], now


def run(
    builder: builder_lib.ImpalaPPOBuilder,
    environment_factory: EnvironmentFactory,
    environment_spec: specs.EnvironmentSpec,
    config: config_lib.RunConfig,
    index: int,
    shard: reverb.Client,
    learner: core.VariableSource,
    counter: ActingRecorder,
    should_stop: threading.Event,
) -> None:
  """Acts until the program stops.

  Args:
    builder: makes the actor's parts.
    environment_factory: called with a number of environments and a seed.
    environment_spec: of one environment.
    config: how to run.
    index: of this actor.
    shard: gets the experience.
    learner: serves the weights.
    counter: is told of timesteps and returns.
    should_stop: set when the program stops.
  """
  if processes.settle_in():
    processes.use_one_core(_NICENESS)
  seed = config.process_seed(1 + index)
  adder = builder.make_adder(shard)

  def act():
    policy = builder.make_policy(builder.make_networks(environment_spec),
                                 environment_spec)
    actor = builder.make_actor(
        seed, policy, adder, weights.nearest_source(learner, f'actor/{index}'))
    environment = environment_factory(config.envs_per_actor, seed)
    VectorEnvironmentLoop(environment, actor, counter, should_stop).run()

  # The replay may hold the actor up for as long as nobody samples.
  stopping.run_until_stopped(act, should_stop, interrupt=adder.reset)
