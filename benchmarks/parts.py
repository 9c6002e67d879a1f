"""What each part of the system costs alone: `benchmarks.throughput` uses it.

Every part is the one that the real program runs, with the same settings and
batch sizes, on real frames; it is measured in a process of its own, with a
Reverb server in another where there is one. Core-seconds are the processor
time of all of its threads and of the server. What actors do runs once for each
actor at the same time, as it does in the program: a core costs more per
timestep when the others are busy too.
"""

from concurrent import futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import threading
import time
from typing import Callable, Dict, Iterator, List, Tuple

from acme import specs
import dm_env
import numpy as np
import psutil
import reverb
import tensorflow as tf

from agents.impala_ppo import ImpalaPPOBuilder
from agents.impala_ppo import replay
from launch import settings as settings_lib

_SPAWN = multiprocessing.get_context('spawn')
# Of the processes that measure the same part at the same time.
_barrier = threading.Barrier(1)
_WARM_UP_SECONDS = 2.
# If one of them has failed, the others must not wait for it forever.
_START_SECONDS = 120.
# Vector steps that are recorded from the game and written again and again.
_RECORDED_TRAJECTORIES = 4


@dataclasses.dataclass
class Cost:
  """What a part costs.

  Attributes:
    core_seconds: for one timestep.
    timesteps_per_second: that it reaches when it has the machine to itself.
    wait_fraction: the part of its time that a learner waited for data.
  """
  core_seconds: float
  timesteps_per_second: float
  wait_fraction: float = 0.


def measure(part: Callable[..., Cost], settings: settings_lib.Settings,
            seconds: float) -> Cost:
  """Runs one of the functions below in processes of its own.

  Args:
    part: what to measure.
    settings: of the program.
    seconds: to measure for.

  Returns:
    The mean cost of all processes, and the sum of their rates.
  """
  copies = settings.run.num_actors if part in _ACTING else 1
  with futures.ProcessPoolExecutor(
      copies, mp_context=_SPAWN, initializer=_start_together,
      initargs=(_SPAWN.Barrier(copies, timeout=_START_SECONDS),)) as executor:
    running = [executor.submit(part, settings, seconds) for _ in range(copies)]
    costs = [future.result() for future in running]
  return Cost(
      core_seconds=float(np.mean([cost.core_seconds for cost in costs])),
      timesteps_per_second=sum(cost.timesteps_per_second for cost in costs),
      wait_fraction=costs[0].wait_fraction)


def _start_together(barrier):
  """Makes this process wait for the others before it measures."""
  global _barrier
  _barrier = barrier


def environment(settings: settings_lib.Settings, seconds: float) -> Cost:
  """Steps an actor's environments with random actions."""
  envs = settings.run.envs_per_actor
  env = settings.environment.make(envs, settings.run.seed)
  rng = np.random.default_rng(settings.run.seed)
  num_actions = env.action_spec().num_values
  env.reset()
  return _repeat(
      lambda: env.step(rng.integers(num_actions, size=envs, dtype=np.int32)),
      envs, seconds)


def policy(settings: settings_lib.Settings, seconds: float) -> Cost:
  """Chooses the actions of an actor's environments."""
  _use_one_core()
  steps, environment_spec = record(settings, 1)
  builder = ImpalaPPOBuilder(settings.agent)
  actor = builder.make_actor(settings.run.seed, builder.make_policy(
      builder.make_networks(environment_spec), environment_spec))
  return _repeat(lambda: actor.select_action(steps[0][1].observation),
                 settings.run.envs_per_actor, seconds)


def insertion(settings: settings_lib.Settings, seconds: float) -> Cost:
  """Writes trajectories of recorded steps to a server."""
  _use_one_core()
  steps, environment_spec = record(
      settings, _RECORDED_TRAJECTORIES * settings.agent.sequence_length)
  with _server(settings, environment_spec) as (client, process):
    return _repeat(_writer(settings, client, steps),
                   settings.run.envs_per_actor, seconds, [process])


def sampling(settings: settings_lib.Settings, seconds: float) -> Cost:
  """Makes learner batches from full tables."""
  with _full_tables(settings) as (builder, _, client, process):
    iterator = builder.make_dataset_iterator(client)
    return _repeat(lambda: next(iterator), _learner_frames(settings), seconds,
                   [process])


def learner(settings: settings_lib.Settings, seconds: float) -> Cost:
  """Learns from one real batch again and again."""
  with _full_tables(settings) as (builder, environment_spec, client, _):
    batch = next(builder.make_dataset_iterator(client))
  made = builder.make_learner(
      settings.run.seed, builder.make_networks(environment_spec),
      itertools.repeat(batch))
  return _repeat(made.step, _learner_frames(settings), seconds)


def learner_with_data(settings: settings_lib.Settings, seconds: float) -> Cost:
  """Learns from full tables, through the data pipeline."""
  with _full_tables(settings) as (builder, environment_spec, client, process):
    made = builder.make_learner(
        settings.run.seed, builder.make_networks(environment_spec),
        builder.make_dataset_iterator(client))
    cost = _repeat(made.step, _learner_frames(settings), seconds, [process],
                   when_warm=made.metrics)  # Its counts start anew.
    cost.wait_fraction = made.metrics()['wait_fraction']
    return cost


_ACTING = (environment, policy, insertion)


def memory_gib(process: psutil.Process) -> float:
  """Proportional set size of a process and all below it."""
  total = 0
  for p in [process, *process.children(recursive=True)]:
    try:
      total += p.memory_full_info().pss
    except psutil.Error:
      pass  # It has ended meanwhile.
  return total / 2**30


def _learner_frames(settings: settings_lib.Settings) -> int:
  return settings.agent.batch_size * settings.agent.sequence_length


def _use_one_core():
  """As actors do."""
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)


def _repeat(step: Callable[[], object], timesteps: int, seconds: float,
            others: List[psutil.Process] = (),
            when_warm: Callable[[], object] = lambda: None) -> Cost:
  """Measures a step of so many timesteps, counting other processes' time."""
  def cpu_seconds():
    return time.process_time() + sum(
        sum(p.cpu_times()[:2]) for p in others)

  warm = time.monotonic() + _WARM_UP_SECONDS
  while time.monotonic() < warm:
    step()
  when_warm()
  _barrier.wait()
  count, cpu, start = 0, cpu_seconds(), time.monotonic()
  while time.monotonic() < start + seconds:
    step()
    count += timesteps
  elapsed = time.monotonic() - start
  return Cost((cpu_seconds() - cpu) / count, count / elapsed)


Step = Tuple[np.ndarray, dm_env.TimeStep, Dict[str, np.ndarray]]


def record(settings: settings_lib.Settings,
            num_steps: int) -> Tuple[List[Step], specs.EnvironmentSpec]:
  """Plays at random; returns (action, time step, extras), a reset being first."""
  envs = settings.run.envs_per_actor
  env = settings.environment.make(envs, settings.run.seed)
  environment_spec = specs.make_environment_spec(env)
  rng = np.random.default_rng(settings.run.seed)
  num_actions = environment_spec.actions.num_values
  extras = {'behaviour_logits': np.zeros([envs, num_actions], np.float32),
            'policy_version': np.int64(0)}

  def kept(timestep):
    # The environment writes over its observations; their layout is kept.
    return timestep._replace(
        observation=timestep.observation.copy(order='K'))

  steps = [(np.zeros(envs, np.int32), kept(env.reset()), extras)]
  for _ in range(num_steps):
    action = rng.integers(num_actions, size=envs, dtype=np.int32)
    steps.append((action, kept(env.step(action)), extras))
  env.close()
  return steps, environment_spec


def _writer(settings: settings_lib.Settings, client: reverb.Client,
            steps: List[Step]) -> Callable[[], None]:
  """Returns what writes the next recorded step."""
  adder = ImpalaPPOBuilder(settings.agent).make_adder(client)
  adder.add_first(steps[0][1])
  rest = itertools.cycle(steps[1:])
  return lambda: adder.add(*next(rest))


def _serve(settings: settings_lib.Settings,
           environment_spec: specs.EnvironmentSpec, pipe):
  """Serves tables of which nothing holds up either side."""
  samplers = {replay.QUEUE_TABLE: reverb.selectors.Fifo,
              replay.REPLAY_TABLE: reverb.selectors.Uniform}
  server = reverb.Server([
      reverb.Table(name, sampler(), reverb.selectors.Fifo(),
                   settings.agent.replay_capacity,
                   reverb.rate_limiters.MinSize(1),
                   signature=replay.signature(environment_spec, settings.agent))
      for name, sampler in samplers.items()])
  pipe.send(server.port)
  pipe.recv()
  server.stop()


@contextlib.contextmanager
def _server(
    settings: settings_lib.Settings, environment_spec: specs.EnvironmentSpec
) -> Iterator[Tuple[reverb.Client, psutil.Process]]:
  ours, theirs = _SPAWN.Pipe()
  process = _SPAWN.Process(target=_serve,
                           args=(settings, environment_spec, theirs))
  process.start()
  try:
    yield (reverb.Client(f'localhost:{ours.recv()}'),
           psutil.Process(process.pid))
  finally:
    ours.send(None)
    process.join()


@contextlib.contextmanager
def _full_tables(
    settings: settings_lib.Settings
) -> Iterator[Tuple[ImpalaPPOBuilder, specs.EnvironmentSpec, reverb.Client,
                    psutil.Process]]:
  """Yields a builder, a spec, and a client and the process of a full server."""
  length = settings.agent.sequence_length
  steps, environment_spec = record(settings, _RECORDED_TRAJECTORIES * length)
  with _server(settings, environment_spec) as (client, process):
    write = _writer(settings, client, steps)
    for _ in range(settings.agent.replay_capacity * length + 1):
      write()
    yield ImpalaPPOBuilder(settings.agent), environment_spec, client, process
