"""Refuses runs that do not fit the machine, before they start."""

import math
from typing import Iterable, Optional

from acme import specs
import tensorflow as tf

from agents.impala_ppo import config as agent_config
from agents.impala_ppo import networks as networks_lib
from agents.impala_ppo import trajectories
from programs import config as run_config
from programs.runtime import machine

_PER_CORE = 100
_GIB = 2**30
_PROCESSES = 'processes (num_actors, num_replay_shards)'
# The private memory of a process once TensorFlow is loaded.
_PROCESS = 175 * 2**20
# Reverb compresses: frames of Pong to a tenth, noise not at all.
_COMPRESSION = 10


def check(agent: agent_config.ImpalaPPOConfig, run: run_config.RunConfig,
          environment_spec: specs.EnvironmentSpec, trained_bytes: int,
          threads: bool = False, cores: Optional[int] = None,
          memory: Optional[int] = None) -> None:
  """Refuses a run that cannot fit its machines, even if they do nothing else.

  Args:
    agent: the agent's settings.
    run: how to run it.
    environment_spec: of one environment.
    trained_bytes: the size of the trained variables.
    threads: whether nodes are threads of this process.
    cores: of all hosts; by default those that this process may use.
    memory: bytes, of all hosts; by default what this process may use.

  Raises:
    ValueError: in one line, with what is needed and what there is.
  """
  cores = cores or machine.cores()
  for name, value in (('num_actors', run.num_actors),
                      ('num_fetch_workers', agent.num_fetch_workers)):
    if value > _PER_CORE * cores:
      raise ValueError(
          f'{name} must be at most {_PER_CORE * cores}, that is {_PER_CORE} for '
          f'each core that may be used, not {value}.')
  needs = estimate(agent, run, environment_spec, trained_bytes)
  if threads:
    del needs[_PROCESSES]
  total, limit = sum(needs.values()), memory or machine.memory()
  if total > limit:
    most = max(needs, key=lambda name: needs[name])
    raise ValueError(
        f'at least {total / _GIB:,.1f} GiB of memory would be needed, and there '
        f'are {limit / _GIB:,.1f}; {needs[most] / _GIB:,.1f} are for {most}, so '
        'make some of these smaller.')


def estimate(agent: agent_config.ImpalaPPOConfig, run: run_config.RunConfig,
             environment_spec: specs.EnvironmentSpec,
             trained_bytes: int) -> dict[str, int]:
  """Returns lower bounds of the bytes that a run needs, by purpose.

  Arguments are those of `check`.
  """
  observation = environment_spec.observations
  observation_size = math.prod(observation.shape)
  # Of one environment, in one item.
  whole = pixels = 0
  for spec in trajectories.signature(environment_spec, agent).values():
    size = math.prod(d or 1 for d in spec.shape) * spec.dtype.size
    whole += size
    pixels += size if spec.dtype == tf.uint8 else 0
  stored = whole - pixels + pixels // _COMPRESSION
  items = run.num_replay_shards * max(
      agent.queue_capacity, agent.replay_capacity if agent.uses_replay else 0)
  in_flight = agent.num_fetch_workers * run.num_replay_shards
  batch = agent.batch_size * (agent.sequence_length + 1) * observation_size
  # Raw in each batch, and once as the floats that the networks take.
  batches = batch * ((1 + agent.prefetch_size) * observation.dtype.itemsize + 4)
  return {
      _PROCESSES:
          (run.num_actors + run.num_replay_shards + 3) * _PROCESS,
      'environments (num_actors, envs_per_actor, frame_size)':
          run.num_actors * run.envs_per_actor * observation_size
          * observation.dtype.itemsize,
      'the replay (replay_capacity, queue_capacity, sequence_length, '
      'envs_per_actor, num_replay_shards)':
          (items * stored + in_flight * whole) * run.envs_per_actor,
      'batches (batch_size, sequence_length, prefetch_size)': batches,
      # Adam keeps two moments; each actor and the evaluator have a copy.
      'weights (latent_size, conv_channels, num_actors)':
          trained_bytes * (3 + run.num_actors + 1),
  }


def of_variables(agent: agent_config.ImpalaPPOConfig,
                 environment_spec: specs.EnvironmentSpec) -> tuple[int, int]:
  """Returns the bytes of all the networks' variables, and of the trained ones."""
  def size(variables: Iterable[tf.Variable]) -> int:
    return sum(math.prod(v.shape) * v.dtype.size for v in variables)

  networks = networks_lib.make_networks(environment_spec, agent)
  with tf.Graph().as_default():  # Where variables take no memory.
    networks.create_variables()
    decoder = networks.decoder.variables if networks.decoder else ()
    return (size([*networks.actor_critic.variables, *decoder]),
            size(networks.trainable_variables))
