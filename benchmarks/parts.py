"""Measures what each part of the system costs alone, for `benchmarks.throughput`.

Every part is the one that the real program runs, with the same settings and
batch sizes, on real frames. It has its own process, and another one for its
Reverb server if it has one; it is idle except while it is measured.
Core-seconds are the processor time of all of its threads and of the server.
The parts of actors run once per actor at the same time, as in the program: a
core costs more per timestep when the others are busy too.
"""

import contextlib
import dataclasses
import itertools
import multiprocessing
from multiprocessing import connection
import time
from typing import Any, Callable, Iterator, Optional, Sequence

from acme import specs
import dm_env
import numpy as np
import psutil
import reverb

from agents.impala_ppo import ImpalaPPOBuilder
from agents.impala_ppo import replay
from agents.impala_ppo import trajectories
from launch import settings as settings_lib
from programs.runtime import doors
from programs.runtime import processes

_SPAWN = multiprocessing.get_context('spawn')
# For tracing and compiling, once, and for filling caches before each measurement.
_FIRST_SECONDS = 2.
_WARM_UP_SECONDS = 0.3
# Vector steps that are recorded from the game and written again and again.
_RECORDED_TRAJECTORIES = 4


@dataclasses.dataclass
class Cost:
  """What a part costs.

  Attributes:
    core_seconds: for one timestep.
    timesteps_per_second: its rate when it has the machine to itself.
    wait_fraction: the fraction of its time that a learner waited for data.
  """
  core_seconds: float
  timesteps_per_second: float
  wait_fraction: float = 0.


@dataclasses.dataclass
class Work:
  """What a part does again and again.

  Attributes:
    step: does it once.
    timesteps: how many one step is for.
    server: the process whose time counts too.
    metrics: returns a learner's metrics since its last call.
  """
  step: Callable[[], Any]
  timesteps: int
  server: Optional[psutil.Process] = None
  metrics: Callable[[], dict[str, float]] = dict

  def measure(self, seconds: float) -> Cost:
    """Repeats the step for some seconds."""
    self._repeat(_WARM_UP_SECONDS)
    self.metrics()
    cpu, start = self._cpu_seconds(), time.monotonic()
    timesteps = self._repeat(seconds)
    elapsed = time.monotonic() - start
    return Cost((self._cpu_seconds() - cpu) / timesteps, timesteps / elapsed,
                self.metrics().get('wait_fraction', 0.))

  def _repeat(self, seconds: float) -> int:
    """Returns how many timesteps were done."""
    timesteps, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
      self.step()
      timesteps += self.timesteps
    return timesteps

  def _cpu_seconds(self) -> float:
    server = sum(self.server.cpu_times()[:2]) if self.server else 0.
    return time.process_time() + server


_MakeWork = Callable[[settings_lib.Settings],
                     contextlib.AbstractContextManager[Work]]


class Part:
  """One of the functions below, to be measured in its own processes."""

  def __init__(self, part: _MakeWork, settings: settings_lib.Settings):
    """Starts a part, and waits until it is ready.

    Args:
      part: what to measure.
      settings: of the program.

    Raises:
      RuntimeError: if it does not start.
    """
    self._name = part.__name__
    self._pipes: list[connection.Connection] = []
    self._processes = []
    for _ in range(settings.run.num_actors if part in _ACTING else 1):
      ours, theirs = _SPAWN.Pipe()
      process = _SPAWN.Process(target=_work, args=(part, settings, theirs))
      process.start()
      theirs.close()  # Or its end would go unnoticed.
      self._pipes.append(ours)
      self._processes.append(process)
    try:
      self._receive()
    except BaseException:
      self.close()
      raise

  def measure(self, seconds: float) -> Cost:
    """Returns the mean cost of all processes, and the sum of their rates."""
    for pipe in self._pipes:
      pipe.send(seconds)
    costs = self._receive()
    return Cost(
        core_seconds=float(np.mean([cost.core_seconds for cost in costs])),
        timesteps_per_second=sum(cost.timesteps_per_second for cost in costs),
        wait_fraction=costs[0].wait_fraction)

  def _receive(self) -> list[Any]:
    try:
      return [pipe.recv() for pipe in self._pipes]
    except EOFError:
      raise RuntimeError(f'{self._name} could not be measured.') from None

  def close(self) -> None:
    """Ends the processes."""
    for pipe in self._pipes:
      pipe.close()
    for process in self._processes:
      process.join()


def _work(part: _MakeWork, settings: settings_lib.Settings,
          pipe: connection.Connection):
  """Measures a part whenever the pipe says for how many seconds."""
  with part(settings) as work:
    work.measure(_FIRST_SECONDS)
    pipe.send(None)  # Ready.
    with contextlib.suppress(EOFError):
      while True:
        pipe.send(work.measure(pipe.recv()))


@contextlib.contextmanager
def environment(settings: settings_lib.Settings) -> Iterator[Work]:
  """Steps an actor's environments with random actions."""
  envs = settings.run.envs_per_actor
  env = settings.environment.make(envs, settings.run.seed)
  rng = np.random.default_rng(settings.run.seed)
  num_actions = env.action_spec().num_values
  env.reset()
  yield Work(
      lambda: env.step(rng.integers(num_actions, size=envs, dtype=np.int32)),
      envs)


@contextlib.contextmanager
def policy(settings: settings_lib.Settings) -> Iterator[Work]:
  """Chooses the actions of an actor's environments."""
  processes.use_one_core(niceness=0)
  steps, environment_spec = record(settings, 1)
  builder = ImpalaPPOBuilder(settings.agent)
  actor = builder.make_actor(settings.run.seed, builder.make_policy(
      builder.make_networks(environment_spec), environment_spec))
  yield Work(lambda: actor.select_action(steps[0][1].observation),
             settings.run.envs_per_actor)


@contextlib.contextmanager
def insertion(settings: settings_lib.Settings) -> Iterator[Work]:
  """Writes trajectories of recorded steps to a server."""
  processes.use_one_core(niceness=0)
  steps, environment_spec = record(
      settings, _RECORDED_TRAJECTORIES * settings.agent.sequence_length)
  with _server(settings, environment_spec) as (client, process):
    yield Work(_writer(settings, client, steps), settings.run.envs_per_actor,
               process)


@contextlib.contextmanager
def sampling(settings: settings_lib.Settings) -> Iterator[Work]:
  """Makes learner batches from full tables."""
  with _full_tables(settings) as (builder, _, client, process):
    iterator = builder.make_dataset_iterator(client)
    yield Work(lambda: next(iterator), _learner_timesteps(settings), process)


def real_batch(
    settings: settings_lib.Settings, devices: Optional[Sequence[str]] = None,
) -> tuple[specs.EnvironmentSpec, trajectories.Trajectories]:
  """Returns a spec, and a batch of a game that was played at random."""
  with _full_tables(settings, devices) as (builder, environment_spec, client, _):
    return environment_spec, next(builder.make_dataset_iterator(client))


@contextlib.contextmanager
def learner(settings: settings_lib.Settings) -> Iterator[Work]:
  """Learns from one real batch again and again."""
  with _full_tables(settings) as (builder, environment_spec, client, _):
    batch = next(builder.make_dataset_iterator(client))
    made = builder.make_learner(
        settings.run.seed, builder.make_networks(environment_spec),
        itertools.repeat(batch), client)
    yield Work(made.step, _learner_timesteps(settings))


@contextlib.contextmanager
def learner_with_data(settings: settings_lib.Settings) -> Iterator[Work]:
  """Learns from full tables, through the data pipeline."""
  with _full_tables(settings) as (builder, environment_spec, client, process):
    made = builder.make_learner(
        settings.run.seed, builder.make_networks(environment_spec),
        builder.make_dataset_iterator(client), client)
    yield Work(made.step, _learner_timesteps(settings), process, made.metrics)


_ACTING = (environment, policy, insertion)


def _learner_timesteps(settings: settings_lib.Settings) -> int:
  return settings.agent.batch_size * settings.agent.sequence_length


Step = tuple[np.ndarray, dm_env.TimeStep, dict[str, Any]]


def record(settings: settings_lib.Settings,
           num_steps: int) -> tuple[list[Step], specs.EnvironmentSpec]:
  """Plays at random; returns (action, time step, extras), starting with a reset."""
  envs = settings.run.envs_per_actor
  env = settings.environment.make(envs, settings.run.seed)
  environment_spec = specs.make_environment_spec(env)
  rng = np.random.default_rng(settings.run.seed)
  num_actions = environment_spec.actions.num_values
  extras = {'behaviour_logits': np.zeros([envs, num_actions], np.float32),
            'policy_version': np.int64(0)}

  def kept(timestep):
    # The environment overwrites its observations; the copy keeps their layout.
    return timestep._replace(
        observation=timestep.observation.copy(order='K'))

  steps: list[Step] = [(np.zeros(envs, np.int32), kept(env.reset()), extras)]
  for _ in range(num_steps):
    action = rng.integers(num_actions, size=envs, dtype=np.int32)
    steps.append((action, kept(env.step(action)), extras))
  env.close()
  return steps, environment_spec


def _writer(settings: settings_lib.Settings, client: reverb.Client,
            steps: list[Step]) -> Callable[[], None]:
  """Returns a function that writes the next recorded step."""
  adder = ImpalaPPOBuilder(settings.agent).make_adder(client)
  adder.add_first(steps[0][1])
  rest = itertools.cycle(steps[1:])
  return lambda: adder.add(*next(rest))


def _serve(settings: settings_lib.Settings,
           environment_spec: specs.EnvironmentSpec, pipe):
  """Serves tables that hold up neither side."""
  samplers = {replay.QUEUE_TABLE: reverb.selectors.Fifo,
              replay.REPLAY_TABLE: reverb.selectors.Uniform}
  signature = trajectories.signature(environment_spec, settings.agent)
  server = reverb.Server([
      reverb.Table(name, sampler(), reverb.selectors.Fifo(),
                   settings.agent.replay_capacity,
                   reverb.rate_limiters.MinSize(1), signature=signature)
      for name, sampler in samplers.items()])
  pipe.send(server.port)
  pipe.recv()
  server.stop()


@contextlib.contextmanager
def _server(
    settings: settings_lib.Settings, environment_spec: specs.EnvironmentSpec
) -> Iterator[tuple[reverb.Client, psutil.Process]]:
  ours, theirs = _SPAWN.Pipe()
  doors.close()
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
    settings: settings_lib.Settings, devices: Optional[Sequence[str]] = None,
) -> Iterator[tuple[ImpalaPPOBuilder, specs.EnvironmentSpec, reverb.Client,
                    psutil.Process]]:
  """Yields a builder, a spec, and a client and the process of a full server."""
  length = settings.agent.sequence_length
  steps, environment_spec = record(settings, _RECORDED_TRAJECTORIES * length)
  with _server(settings, environment_spec) as (client, process):
    write = _writer(settings, client, steps)
    for _ in range(settings.agent.replay_capacity * length + 1):
      write()
    yield (ImpalaPPOBuilder(settings.agent, devices), environment_spec, client,
           process)
