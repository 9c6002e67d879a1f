"""The program graph of the PPO-IMPALA agent.

    actor (n) --trajectories--> replay (shards) --batches--> learner
    actor, evaluator <--weights-- learner (to actors in memory that they share)
    actor, learner --counts, returns, metrics--> counter
"""

import functools
import os
import sys
import threading
from typing import Callable, Sequence

from absl import logging
from acme import specs
import launchpad as lp
import reverb
import tensorflow as tf

from agents import environment_loop
from agents import environments
from agents import evaluation
from agents import learner_worker
from agents import progress as progress_lib
from agents import shared_variables
from agents import stopping
from agents.impala_ppo import builder as builder_lib
from programs.config import RunConfig

# Makes `num_envs` environments from a seed.
EnvironmentFactory = Callable[[int, int], environments.VectorEnvironment]

_EVALUATION_ENVS = 4
# Where cores are short the learner goes first: what waits for it grows stale.
_ACTOR_NICENESS = 10
_EVALUATOR_NICENESS = 15
# Each process that draws random numbers has a seed of its own, spaced so that
# no two runs with neighbouring seeds share any.
_SEEDS_PER_RUN = 100_000


class _FixedPort(lp.AbstractAddressBuilder):

  def __init__(self, port: int):
    self._port = port

  def build(self) -> str:
    return f'localhost:{self._port}'


class _ReplayNode(lp.ReverbNode):
  """A Reverb node whose port can be chosen."""

  def __init__(self, make_tables: Callable[[], Sequence[reverb.Table]],
               port: int):
    super().__init__(make_tables)
    self._port = port

  def bind_addresses(self, **kwargs):
    if self._port:
      self.reverb_address.bind(_FixedPort(self._port))
    else:
      super().bind_addresses(**kwargs)


def make_program(
    builder: builder_lib.ImpalaPPOBuilder,
    environment_factory: EnvironmentFactory,
    environment_spec: specs.EnvironmentSpec,
    config: RunConfig,
    verbose: bool = False,
) -> lp.Program:
  """Wires the program; launch it with any of Launchpad's launchers.

  Args:
    builder: makes the agent's parts.
    environment_factory: called with a number of environments and a seed.
    environment_spec: of one environment.
    config: how to run.
    verbose: whether the counter prints its rows.

  Returns:
    A program of the groups replay, counter, learner, actor and evaluator.
  """
  program = lp.Program('impala_ppo')

  with program.group('replay'):
    shards = [
        program.add_node(_ReplayNode(
            functools.partial(builder.make_replay_tables, environment_spec),
            config.replay_port and config.replay_port + i))
        for i in range(config.num_replay_shards)]

  with program.group('counter'):
    counter = program.add_node(lp.CourierNode(_counter, config, verbose))

  with program.group('learner'):
    learner = program.add_node(lp.CourierNode(
        _learner, builder, environment_spec, config, shards, counter))

  with program.group('actor'):
    for i in range(config.num_actors):
      program.add_node(lp.PyNode(
          _act, builder, environment_factory, environment_spec, config, i,
          shards[i % len(shards)], learner, counter))

  with program.group('evaluator'):
    if config.evaluation_interval:
      program.add_node(lp.PyNode(
          _evaluate, builder, environment_factory, environment_spec, config,
          learner, counter))

  return program


def _counter(config: RunConfig, verbose: bool) -> progress_lib.RunProgress:
  _own_process()
  return progress_lib.RunProgress(
      config.run_dir, config.max_timesteps, config.target_return,
      config.progress_seconds, lp.stop, lp.stop_event(), verbose)


def _learner(builder, environment_spec, config: RunConfig, shards,
             counter) -> learner_worker.LearnerWorker:
  _own_process()
  should_stop = lp.stop_event()
  made = []

  def make():
    learner = builder.make_learner(
        config.seed, builder.make_networks(environment_spec),
        builder.make_dataset_iterator(shards), shards)
    made.append(learner_worker.LearnerWorker(
        learner, counter, config.run_dir, config.checkpoint_minutes,
        should_stop))

  # It waits for the replay, which may be stopped before it has started.
  stopping.run_until_stopped(make, should_stop)
  if not made:
    sys.exit()
  return made[0]


def _act(builder, environment_factory, environment_spec, config: RunConfig,
         index: int, shard, learner, counter):
  if _own_process():
    _use_one_core(_ACTOR_NICENESS)
  seed = config.seed * _SEEDS_PER_RUN + 1 + index
  should_stop = lp.stop_event()
  adder = builder.make_adder(shard)

  def run():
    policy = builder.make_policy(builder.make_networks(environment_spec),
                                 environment_spec)
    actor = builder.make_actor(seed, policy, adder,
                               shared_variables.nearest_source(learner))
    environment = environment_factory(config.envs_per_actor, seed)
    environment_loop.VectorEnvironmentLoop(
        environment, actor, counter, should_stop).run()

  # The replay may hold the actor up for as long as nobody samples.
  stopping.run_until_stopped(run, should_stop, interrupt=adder.reset)


def _evaluate(builder, environment_factory, environment_spec,
              config: RunConfig, learner, counter):
  if _own_process():
    _use_one_core(_EVALUATOR_NICENESS)
  seed = config.seed * _SEEDS_PER_RUN
  should_stop = lp.stop_event()

  def run():
    policy = builder.make_policy(builder.make_networks(environment_spec),
                                 environment_spec, evaluation=True)
    evaluation.EvaluatorWorker(
        functools.partial(environment_factory, _EVALUATION_ENVS, seed),
        builder.make_actor(seed, policy, variable_source=learner), counter,
        config.run_dir, config.evaluation_episodes, config.evaluation_interval,
        should_stop).run()

  stopping.run_until_stopped(run, should_stop)


def _own_process() -> bool:
  """Settles a node in; returns whether it has a process of its own."""
  logging.set_verbosity(logging.WARNING)
  # Under the threaded launchers, every node is a thread of one process.
  return threading.current_thread() is threading.main_thread()


def _use_one_core(niceness: int):
  """Keeps an acting process off the learner's GPUs and cores."""
  os.nice(niceness)
  tf.config.set_visible_devices([], 'GPU')
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)
