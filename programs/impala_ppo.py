"""The program graph of the PPO-IMPALA agent.

    actor (n) --trajectories--> replay (shards) --batches--> learner
    actor, evaluator <--weights-- learner (in memory shared on each machine)
    actor, learner --counts, returns, metrics--> counter
"""

import functools
from typing import Any, Callable

from absl import logging
from acme import specs
import launchpad as lp

from agents import environments
from agents.impala_ppo import builder as builder_lib
from programs import config as config_lib
from programs.nodes import actor as actor_node
from programs.nodes import counter as counter_node
from programs.nodes import evaluator as evaluator_node
from programs.nodes import learner as learner_node
from programs.nodes import serving
from programs.nodes import setup as setup_lib
from programs.runtime import doors
from programs.runtime import processes

# How long a node waits for another's answer.
_CALL_SECONDS = 5.


def make_program(
    builder: builder_lib.ImpalaPPOBuilder,
    environment_factory: setup_lib.EnvironmentFactory,
    environment_spec: specs.EnvironmentSpec,
    config: config_lib.RunConfig,
    verbose: bool = False,
) -> lp.Program:
  """Wires the program; launch it with any of Launchpad's launchers.

  Call `doors.close(config.listen)` first, or its nodes refuse to start.

  Args:
    builder: makes the agent's parts.
    environment_factory: called with a number of environments and a seed.
    environment_spec: of one environment.
    config: how to run.
    verbose: whether the counter prints its rows.

  Returns:
    A program of the groups replay, counter, learner, actor and evaluator.
  """
  launcher = processes.this_process()
  run = functools.partial(_in_node, launcher, config.listen)
  setup = setup_lib.Setup(builder, environment_factory, environment_spec, config)
  program = lp.Program('impala_ppo')

  with program.group('replay'):
    make_tables = functools.partial(builder.make_replay_tables, environment_spec)
    shards = [
        program.add_node(serving.ReplayNode(
            make_tables, config.listen,
            config.replay_port and config.replay_port + i, launcher))
        for i in range(config.num_replay_shards)]

  with program.group('counter'):
    counter = program.add_node(serving.CourierNode(
        config.listen, run, counter_node.make, config, shards, launcher, verbose,
        lp.stop))
    counter.set_client_kwargs(call_timeout=_CALL_SECONDS)

  with program.group('learner'):
    learner = program.add_node(serving.CourierNode(
        config.listen, run, learner_node.make, setup, shards, counter))
    learner.set_client_kwargs(call_timeout=_CALL_SECONDS)

  with program.group('actor'):
    for i in range(config.num_actors):
      program.add_node(lp.PyNode(
          run, actor_node.run, setup, i, shards[i % len(shards)], learner,
          counter))

  with program.group('evaluator'):
    if config.evaluation_interval:
      program.add_node(lp.PyNode(
          run, evaluator_node.run, setup, learner, counter))

  return program


def _in_node(launcher: processes.Process, listen: str,
             function: Callable[..., Any], *args: Any) -> Any:
  """Runs a node's function in its process, with the program's stop event."""
  processes.set_up_node(launcher)
  logging.set_verbosity(logging.WARNING)  # Libraries print more than anybody reads.
  doors.check(listen)
  try:
    return function(*args, should_stop=lp.stop_event())
  except environments.BadNumberError as e:
    processes.end_run(str(e), launcher)
