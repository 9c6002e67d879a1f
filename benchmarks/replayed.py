"""A program with real shards, a real learner, and clients that replay a recording.

`benchmarks.scale` measures with it. The nodes save what they measured as .npz
files of (time, value) in the cell's directory.
"""

import array
import contextlib
import dataclasses
import functools
import itertools
import os
import pickle
import sys
import threading
import time
from typing import Any, Optional, Sequence

from acme import specs
import launchpad as lp
import numpy as np
import psutil
import reverb
import tensorflow as tf

from agents.impala_ppo import acting
from agents.impala_ppo import ImpalaPPOBuilder
from agents.impala_ppo import trajectories
from benchmarks import common
from benchmarks import parts
from launch import settings as settings_lib
from launch.engines import local
from programs.nodes import serving
from programs.runtime import doors
from programs.runtime import processes
from programs.runtime import stopping
from programs.runtime import weights

_CLIENT_PROCESSES = 4
_ROOM_SECONDS = 120.
# What the nodes print, for when one fails.
OUTPUT_FILE = 'output.txt'
WARM_UP_SECONDS = 10.
MEMORY_SECONDS = 5.


@dataclasses.dataclass
class Cell:
  """One configuration to run.

  Attributes:
    settings: of the agent, and the environments of each client.
    num_clients: concurrent actor clients.
    num_shards: Reverb servers.
    timesteps_per_second: what all clients together try to write.
    learner_delay: seconds in place of a step's compute; None for the real one.
    pull_variables: whether clients ask for variables.
    seconds: how long to measure.
    out: directory for what the processes measure.
    num_hosts: of the Ray cluster that this machine is in; 0 for processes here.
  """
  settings: settings_lib.Settings
  num_clients: int
  num_shards: int
  timesteps_per_second: float
  learner_delay: Optional[float]
  pull_variables: bool
  seconds: float
  out: str = ''
  num_hosts: int = 0

  @property
  def num_client_processes(self) -> int:
    return self.num_hosts or _CLIENT_PROCESSES


class _Log:
  """Times of events, each with how long it took or how much it was."""

  def __init__(self, path: str):
    self._path = path
    # Packed: a soak makes millions of entries, and its memory is measured.
    self._entries: dict[str, array.array] = {}
    self._lock = threading.Lock()

  def add(self, name: str, value: float):
    with self._lock:
      self._entries.setdefault(name, array.array('d')).extend(
          (time.time(), value))

  def save(self):
    with self._lock:
      np.savez(self._path, **{
          k: np.array(v).reshape(-1, 2) for k, v in self._entries.items()})


class _LearnerNode:
  """Steps the learner and serves its variables."""

  def __init__(self, cell: Cell, environment_spec: specs.EnvironmentSpec,
               shards: Sequence[reverb.Client]):
    cpu, = tf.config.list_physical_devices('CPU')
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(2)])
    self._cell = cell
    builder = ImpalaPPOBuilder(cell.settings.agent, ('/cpu:0', '/cpu:1'))
    self._learner = builder.make_learner(
        0, builder.make_networks(environment_spec),
        builder.make_dataset_iterator(shards), shards,
        update=None if cell.learner_delay is None else self._wait)
    self._shared = weights.SharedWeights(
        self._learner, (acting.POLICY, acting.VERSION))

  def _wait(self, batch: trajectories.Trajectories):
    """Stands in for the compute of a replica; the learner does all the rest."""
    delay = self._cell.learner_delay
    assert delay is not None

    def wait(versions: np.ndarray, replica: np.ndarray) -> np.float32:
      if replica == 0:  # They take turns here, and would not on GPUs.
        time.sleep(delay)
      return np.float32(np.mean(self._learner.num_steps - versions))

    # The first trajectories of a batch are the online ones.
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return {'policy_lag': tf.numpy_function(
        wait, [batch.policy_version[:1], replica], tf.float32)}, None

  def get_variables(self, names: Sequence[str]):
    return self._learner.get_variables(names)

  def shared_weights(self) -> weights.Handle:
    return self._shared.handle

  def newer_weights(self, number: int):
    return self._shared.newer(number)

  def run(self):
    log = _Log(os.path.join(self._cell.out, 'learner.npz'))
    should_stop = lp.stop_event()

    def learn():
      while not should_stop.is_set():
        start = time.perf_counter()
        self._learner.step()
        self._shared.publish()
        elapsed = time.perf_counter() - start
        metrics = self._learner.metrics()
        log.add('waited', elapsed * metrics['wait_fraction'])
        log.add('computed', elapsed * (1. - metrics['wait_fraction']))
        log.add('lag', metrics['policy_lag'])

    stopping.run_until_stopped(learn, should_stop)
    log.save()


def _act(cell: Cell, steps: list[parts.Step], shard: reverb.Client, learner,
         log: _Log, should_stop: threading.Event, start: float):
  """Writes recorded steps at an actor's pace until stopped."""
  adder = ImpalaPPOBuilder(cell.settings.agent).make_adder(shard)
  source = weights.NearestSource(learner, 'client')
  envs = cell.settings.run.envs_per_actor
  period = envs * cell.num_clients / cell.timesteps_per_second
  version: Any = np.int64(0)
  adder.add_first(steps[0][1])
  due = start
  for count, (action, timestep, extras) in enumerate(itertools.cycle(steps[1:])):
    due += period
    if should_stop.wait(max(0., due - time.monotonic())):
      return
    # A late client does not catch up afterwards; nor does an actor.
    due = max(due, time.monotonic() - period)
    if (cell.pull_variables and
        count % cell.settings.agent.variable_update_period == 0):
      began = time.perf_counter()
      _, (version,) = source.get_variables([acting.POLICY, acting.VERSION])
      log.add('pull', time.perf_counter() - began)
    began = time.perf_counter()
    adder.add(action, timestep, {**extras, 'policy_version': version})
    log.add('append', time.perf_counter() - began)


def _clients(cell: Cell, indices: Sequence[int], shards, learner):
  """Runs some of the clients, each in a thread, until stopped."""
  should_stop = lp.stop_event()
  steps, _ = parts.record(cell.settings,
                          2 * cell.settings.agent.sequence_length)
  log = _Log(os.path.join(cell.out, f'clients{indices[0]}.npz'))
  period = (cell.settings.run.envs_per_actor * cell.num_clients /
            cell.timesteps_per_second)
  trajectory_seconds = period * cell.settings.agent.sequence_length

  def act(index: int):
    # Spread evenly over the time that a trajectory takes.
    _act(cell, steps, shards[index % len(shards)], learner, log, should_stop,
         time.monotonic() + trajectory_seconds * index / cell.num_clients)

  def run():
    threads = [threading.Thread(target=act, args=(index,), daemon=True)
               for index in indices]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()

  stopping.run_until_stopped(run, should_stop)
  log.save()
  os._exit(0)  # Without waiting for threads that the replay blocks.


def _clock(cell: Cell, launcher: processes.Process, learner):
  """Waits for the learner's first steps, samples memory, ends the program."""
  log = _Log(os.path.join(cell.out, 'memory.npz'))
  should_stop = lp.stop_event()

  def run():
    while learner.get_variables([acting.VERSION])[0][0] < 2:
      time.sleep(0.5)
    end = time.monotonic() + WARM_UP_SECONDS + cell.seconds
    while time.monotonic() < end and not should_stop.is_set():
      # In a cluster, the process that made the hosts adds up their memory.
      log.add('gib', np.nan if cell.num_hosts else common.memory_gib(
          psutil.Process(launcher.pid)))
      time.sleep(MEMORY_SECONDS)
    log.save()

  stopping.run_until_stopped(run, should_stop)
  lp.stop()  # Launchpad knows the program in this thread only.


def _owned(launcher: processes.Process, function, *args):
  """Calls a node's function, in a process that ends with the launcher."""
  processes.set_up_node(launcher)
  return function(*args)


def _make_program(cell: Cell, environment_spec: specs.EnvironmentSpec, listen: str):
  program = lp.Program('scale')
  builder = ImpalaPPOBuilder(cell.settings.agent)
  launcher = processes.this_process()
  owned = functools.partial(_owned, launcher)
  with program.group('replay'):
    shards = [program.add_node(serving.ReplayNode(
        functools.partial(builder.make_replay_tables, environment_spec), listen, 0,
        launcher)) for _ in range(cell.num_shards)]
  with program.group('learner'):
    learner = program.add_node(serving.CourierNode(
        listen, owned, _LearnerNode, cell, environment_spec, shards))
  number = cell.num_client_processes
  with program.group('actor'):
    for i in range(number):
      program.add_node(lp.PyNode(
          owned, _clients, cell, list(range(i, cell.num_clients, number)), shards,
          learner))
  with program.group('counter'):
    program.add_node(lp.PyNode(owned, _clock, cell, launcher, learner))
  return program


def launch(cell: Cell):
  """Runs a cell to its end, in a process of its own."""
  output = os.open(os.path.join(cell.out, OUTPUT_FILE),
                   os.O_WRONLY | os.O_CREAT)
  os.dup2(output, sys.stdout.fileno())
  environment = cell.settings.environment.make(1, 0)
  environment_spec = specs.make_environment_spec(environment)
  environment.close()
  if not cell.num_hosts:
    doors.close()
    sys.exit(local.run_program(
        _make_program(cell, environment_spec, doors.LOOPBACK), 'local_mp'))
  # Ray is optional.
  from launch.engines import ray as ray_engine
  with contextlib.closing(ray_engine.Cluster('auto', 0, doors.CLUSTER)) as cluster:
    cluster.reserve(cell.num_shards, cell.num_client_processes, None, 0,
                    _ROOM_SECONDS)
    sys.exit(cluster.run_program(
        _make_program(cell, environment_spec, doors.CLUSTER)))


def main() -> None:
  """Runs the cell in a file, on a host of a cluster."""
  path, = sys.argv[1:]
  with open(path, 'rb') as f:
    cell = pickle.load(f)
  launch(cell)


if __name__ == '__main__':
  main()
