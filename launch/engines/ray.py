"""An engine for a Ray cluster: every node is a process, on some host.

For each node there is a Ray actor (`agent.Agent`), on a host where Ray has room.
The actor starts the node's process, and passes on its output and the signals sent
to it. Decisions are made here, by the supervisor that all engines share: Ray itself
restarts nothing.

Nodes that others know by an address stay on their host: their processes are
restarted there, and the run ends when the host is lost. The others go wherever
there is room.
"""

import collections
import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from typing import Any, Iterator, Mapping, Optional, Sequence

import cloudpickle
import launchpad as lp
from launchpad import context
from launchpad.launch import serialization
import ray
from ray.util import scheduling_strategies

from launch import settings as settings_lib
from launch.engines import agent as agent_lib
from launch.engines import child
from launch.engines import supervision
from launch.views import printing
from programs.nodes import serving
from programs.runtime import doors

# Other groups than these share the learner's host.
_SHARDS, _ACTORS = 'replay', 'actor'
# How long to prefer this host for the learner.
_PREFER_SECONDS = 5.
# How long to wait for room before saying so, and the shortest wait.
_QUIET_SECONDS = 5.
_LEAST_SECONDS = 1.
_CALL_SECONDS = 120.
_WAIT_SECONDS = 1.
_REACH_SECONDS = 10.
_PACKAGES = ('agents', 'programs', 'launch')
# Nodes get the variables set here for TensorFlow, mostly by TensorFlow itself.
_PASSED_ON = ('TF', 'XLA_', 'IMPALA_PPO_PLAIN')
_AGENTS_VARIABLES = {
    # Or Ray would kill nodes before they have saved their state.
    'RAY_kill_child_processes_on_worker_exit': 'false',
    # Or Ray would make all nodes so nice that the learner no longer goes first.
    'RAY_worker_niceness': '0'}
_THREADS = 8
# The least that Ray accepts; nothing large goes through its store.
_STORE_BYTES = 80 * 2**20


def assign(home: str, hosts: Sequence[str], num_shards: int,
           num_actors: int) -> tuple[list[int], list[int]]:
  """Assigns places on hosts to shards and actors.

  Shards are spread over the hosts, starting with the learner's, as samples from
  there need no network. The shard of an actor is its number modulo the number of
  shards; actors go on the host of their shard while there is room.

  Args:
    home: the learner's host.
    hosts: the host of each place, as many as shards and actors together.
    num_shards: shards that need a place.
    num_actors: actors that need a place.

  Returns:
    The index of each shard's place, and of each actor's.
  """
  free: dict[str, list[int]] = {}
  for place, host in enumerate(hosts):
    free.setdefault(host, []).append(place)
  shards: collections.Counter = collections.Counter()
  of_shards = []
  for _ in range(num_shards):
    host = min((h for h in free if free[h]),
               key=lambda h: (shards[h], h != home, -len(free[h])))
    shards[host] += 1
    of_shards.append(free[host].pop(0))
  of_actors: dict[int, int] = {}
  for is_near in (True, False):
    for actor in range(num_actors):
      near = free[hosts[of_shards[actor % num_shards]]] if is_near else max(
          free.values(), key=len)
      if actor not in of_actors and near:
        of_actors[actor] = near.pop(0)
  return of_shards, [of_actors[actor] for actor in range(num_actors)]


class _Process:
  """A node's process on some host, as seen from here."""

  def __init__(self, node: '_Node', agent: Any, variables: Mapping[str, str]):
    self._node = node
    self._agent = agent
    self._variables = variables
    self._has_started = self._was_told_to_end = False
    self._end: Optional[supervision.End] = None

  def lines(self) -> Iterator[str]:
    """Waits for room for the process, then yields what it prints."""
    try:
      self._end = self._wait_for_host()
      if self._end is not None:
        return
      ray.get(self._agent.start.remote(*self._node.job(), self._variables))
      self._has_started = True
      while self._end is None:
        for kind, value in ray.get(self._agent.news.remote()):
          if kind == 'line':
            yield value
          elif kind == 'stop':
            os.kill(os.getpid(), signal.SIGUSR1)
          else:
            self._end = supervision.End(value, supervision.describe_exit(value))
    except ray.exceptions.RayActorError:
      self._end = self._node.lost()
      if self._was_told_to_end:
        self._end = supervision.End(-signal.SIGTERM, 'was told to end at once')
    except ray.exceptions.RayTaskError as e:
      self._end = supervision.End(1, f'cannot be started ({e.cause})')
    except (ray.exceptions.RayError, OSError) as e:
      # OSError if this host's own Ray has gone.
      self._end = supervision.End(1, f'is out of reach ({_one_line(e)})')
      with contextlib.suppress(Exception):
        self._node.close()  # It must not run beside its successor.

  def _wait_for_host(self) -> Optional[supervision.End]:
    """Waits for room on a host; returns why the node ends, if it must."""
    host = self._agent.host.remote()
    while not ray.wait([host], timeout=_WAIT_SECONDS)[0]:
      if self._node.is_cut_off():
        return self._node.lost()
    return self._node.settle(ray.get(host))

  def poll(self) -> Optional[supervision.End]:
    return self._end

  def signal(self, number: int) -> None:
    if self._has_started:
      self._agent.signal.remote(number)
    else:
      # It is waiting for room, and would not receive the signal.
      self._was_told_to_end = True
      ray.kill(self._agent)


class _Node(supervision.Node):
  """A node of a cluster."""

  def __init__(self, title: str, cluster: 'Cluster', options: Mapping[str, Any]):
    super().__init__(title)
    self._cluster = cluster
    self._options = options
    self._agent: Any = None
    self._has_address = False
    # Its host's address, and Ray's id of that host.
    self._host: Optional[tuple[str, str]] = None
    self._job = b''

  def reserve(self, node: Any) -> list[ray.ObjectRef]:
    """Requests the addresses of a program's node; returns what `bind` needs."""
    if not node.addresses:
      return []
    self._has_address = True
    agent = self._get_agent()
    return [agent.host.remote(), agent.reserve.remote(getattr(node, 'port', 0))]

  def bind(self, node: Any, reserved: Sequence[ray.ObjectRef]) -> None:
    """Binds the addresses of a program's node on the host where it will run.

    Args:
      node: the node to bind.
      reserved: what `reserve` returned.

    Raises:
      ValueError: if the host does not answer or a port cannot be used; the message
        is one line.
    """
    listen = self._cluster.listen
    for address in node.addresses:
      try:
        self._host, (port, why) = ray.get(list(reserved), timeout=_CALL_SECONDS)
      except ray.exceptions.RayError as e:
        raise ValueError(
            f'the host of {self.title} does not answer ({_one_line(e)}).') from None
      host, _ = self._host
      if why is not None:
        raise ValueError(f'replay port {port} cannot be used on {host} ({why}); '
                         'give another --replay_port.')
      address.bind(serving.At(
          host if listen in (None, doors.ALL) else doors.host(listen), port))

  def set_job(self, node: Any) -> None:
    """Takes what a program's node runs, once all addresses are bound."""
    self._job = cloudpickle.dumps([node.function])

  def job(self) -> tuple[bytes, Optional[str]]:
    """Returns what an agent needs to know: what to run, and where to listen."""
    return self._job, self._cluster.listen

  def begin(self, variables: Mapping[str, str]) -> _Process:
    return _Process(self, self._get_agent(),
                    {**self._cluster.variables, **variables})

  def settle(self, host: tuple[str, str]) -> Optional[supervision.End]:
    """Records the host that it is on; returns why the node ends, if it must."""
    if self._has_address and host != self._host:
      return self.lost()
    self._host = host
    return None

  def is_cut_off(self) -> bool:
    """Returns whether others know it by an address on a host that has gone."""
    return self._has_address and self._has_lost_host()

  def lost(self) -> supervision.End:
    """Returns how the node ended when its agent ended or cannot be where it was."""
    self.close()
    how = 'was lost: its agent has ended'
    if self._host is not None and self._has_lost_host():
      how = f'was lost, and its host {self._host[0]} with it'
    return supervision.End(-signal.SIGKILL, how, self.is_cut_off())

  def close(self) -> None:
    if self._agent is not None:
      ray.kill(self._agent)
      self._agent = None

  def _has_lost_host(self) -> bool:
    assert self._host is not None
    return self._host[1] not in {host['NodeID'] for host in _hosts()}

  def _get_agent(self) -> Any:
    if self._agent is None:
      self._agent = ray.remote(agent_lib.Agent).options(
          max_concurrency=_THREADS, **self._options).remote()
    return self._agent


def _hosts() -> list[dict[str, Any]]:
  return [host for host in ray.nodes() if host['Alive']]


def _check_reachable(address: str) -> None:
  """Rejects an address that does not answer; Ray would wait long for it."""
  host, _, port = address.rpartition(':')
  try:
    socket.create_connection((host, int(port)), _REACH_SECONDS).close()
  except (OSError, ValueError) as e:
    raise ValueError(f'no Ray cluster at {address} ({e}); give HOST:PORT of its '
                     'head, as `ray start` prints it, or auto on one of its hosts.'
                     ) from None


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split())


class Cluster:
  """A Ray cluster that this process is connected to.

  Attributes:
    variables: added to the environment of nodes, beside their host's.
    listen: where nodes listen; None for their host's address in the cluster.
  """

  def __init__(self, address: Optional[str], num_cpus: int, listen: str):
    """Connects to a cluster, or starts Ray on this machine.

    Args:
      address: of the cluster, as Ray takes it; None starts one for this process
        alone, which must have closed its doors.
      num_cpus: how many CPUs Ray assumes on this machine if it is started.
      listen: as in `RunConfig`.

    Raises:
      ValueError: if there is no cluster; the message is one line.
    """
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    self.listen = None if listen == doors.CLUSTER else listen
    path = [os.environ.get('PYTHONPATH'), os.getcwd()]
    self.variables = {
        'PYTHONPATH': os.pathsep.join(filter(None, path)),
        **{name: value for name, value in os.environ.items()
           if name.startswith(_PASSED_ON)}}
    runtime_env: dict[str, Any] = {'env_vars': _AGENTS_VARIABLES}
    # Where this process's own Ray has its files; the path is short, as there are
    # sockets among them.
    self._files: Optional[str] = None
    if address is None:
      self._files = tempfile.mkdtemp(prefix='ray')
      # RAY_ADDRESS may name a cluster, which this is not for.
      options = {'address': 'local', 'num_cpus': num_cpus,
                 'object_store_memory': _STORE_BYTES,
                 'include_dashboard': False, '_temp_dir': self._files,
                 '_node_ip_address': doors.host(listen)}
    else:
      options = {'address': address}
      # Other hosts may have another version of this code, or none.
      runtime_env['py_modules'] = [
          os.path.join(child.ROOT, package) for package in _PACKAGES]
      if ':' in address:
        _check_reachable(address)
    # Ray's own processes are in this process group, but SIGHUP, when the terminal
    # closes, is for the launcher only. And Ctrl-Z is for none: agents that stood
    # still could neither stop their nodes nor wake them.
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
      ray.init(log_to_driver=False, logging_level='ERROR',
               runtime_env=runtime_env, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as e:
      self._remove_files()
      raise ValueError(
          f'no Ray cluster at {address} ({_one_line(e)}); start one by `ray start '
          '--head`, or leave out --ray_address.' if address else
          f'Ray does not start ({_one_line(e)}).') from None
    finally:
      signal.signal(signal.SIGHUP, before)
    self._group: Any = None
    self._num_shards = self._min_actors = self._num_gpus = 0

  def close(self) -> None:
    """Leaves the cluster unchanged; stops it if it was started here."""
    ray.shutdown()
    self._remove_files()

  def _remove_files(self) -> None:
    if self._files is not None:
      shutil.rmtree(self._files, ignore_errors=True)

  def sizes(self) -> dict[str, int]:
    """Returns cores and bytes of memory of all hosts together."""
    return {'cores': int(self._total('CPU')), 'memory': int(self._total('memory'))}

  def most_gpus(self) -> int:
    """Returns how many GPUs the host with the most GPUs has."""
    return int(max(host['Resources'].get('GPU', 0) for host in _hosts()))

  def _total(self, resource: str) -> float:
    return sum(host['Resources'].get(resource, 0.) for host in _hosts())

  def reserve(self, num_shards: int, num_actors: int,
              min_actors: Optional[int], num_gpus: int, timeout: float) -> None:
    """Reserves the least that a program needs: a CPU for each node that works.

    Args:
      num_shards: of the replay.
      num_actors: how many to run where there is room.
      min_actors: how many need room now; None for all.
      num_gpus: on the learner's host.
      timeout: seconds to wait for room.

    Raises:
      ValueError: if there is no room; says what is missing, in one line.
    """
    self._num_shards = num_shards
    self._min_actors = num_actors if min_actors is None else min_actors
    self._num_gpus = num_gpus
    home = {'CPU': 1., **({'GPU': float(num_gpus)} if num_gpus else {})}
    others = [{'CPU': 1.}] * (num_shards + self._min_actors)
    here = ray.get_runtime_context().get_node_id()
    attempts = [(home, timeout)]
    if any(host['NodeID'] == here and
           all(host['Resources'].get(k, 0) >= v for k, v in home.items())
           for host in _hosts()):
      # The learner goes on this host, if there is room.
      pinned = {**home, f'node:{ray.util.get_node_ip_address()}': 0.001}
      patience = min(timeout, _PREFER_SECONDS)
      attempts = [(pinned, patience), (home, timeout - patience)]
    notice = threading.Timer(_QUIET_SECONDS, supervision.say, [
        f'waiting for room in the cluster, {timeout:g} s at most.'])
    notice.start()
    try:
      for first, seconds in attempts:
        group = ray.util.placement_group([first, *others], strategy='SPREAD')
        if group.wait(max(seconds, _LEAST_SECONDS)):
          self._group = group
          return
        ray.util.remove_placement_group(group)
    finally:
      notice.cancel()
    raise ValueError(self._missing(timeout))

  def _missing(self, timeout: float) -> str:
    least = 1 + self._num_shards + self._min_actors
    gpus = f' and {self._num_gpus} GPUs on one host' if self._num_gpus else ''
    there = f' and at most {self.most_gpus()} GPUs on one' if self._num_gpus else ''
    return (
        f'{least} CPUs{gpus} are needed ({self._min_actors} for actors, '
        f'{self._num_shards} for replay shards, 1 for the learner), and the cluster '
        f'of {len(_hosts())} hosts has {self._total("CPU"):.0f}{there}, '
        f'{ray.available_resources().get("CPU", 0.):.0f} of its CPUs free, after '
        f'{timeout:g} s (--ray_timeout); add hosts, or make --num_actors, '
        '--min_actors or --num_gpus smaller.')

  def check_home(self, run_dir: str) -> None:
    """Rejects a run that its learner's host could not save or compute.

    Args:
      run_dir: the run's directory, which exists here.

    Raises:
      ValueError: if it could not; the message is one line.
    """
    # Among the logs, as Ctrl-C may leave it: anything else would be another run's.
    token = os.path.join(run_dir, settings_lib.LOGS, f'seen-{secrets.token_hex(8)}')
    os.makedirs(os.path.dirname(token), exist_ok=True)
    agent = ray.remote(agent_lib.Agent).options(
        **self._place(0), num_gpus=self._num_gpus).remote()
    with open(token, 'x'):
      pass
    try:
      (host, _), why_not, gpus = ray.get([
          agent.host.remote(), agent.why_not_saved.remote(token),
          agent.count_gpus.remote() if self._num_gpus else ray.put(0)
      ], timeout=_CALL_SECONDS)
    except ray.exceptions.RayError as e:
      raise ValueError(
          f"the learner's host does not answer ({_one_line(e)}).") from None
    finally:
      os.remove(token)
      ray.kill(agent)
    if why_not is not None:
      raise ValueError(f"run_dir {why_not} on {host}, the learner's host: "
                       f'{run_dir} has to be on storage that both can write to.')
    if gpus < self._num_gpus:
      raise ValueError(
          f'num_gpus is {self._num_gpus}, but TensorFlow finds {gpus} on '
          f"{host}, the learner's host; give a number that it finds, or 0.")

  def run_program(self, program: lp.Program, run_dir: Optional[str] = None,
                  restarts: bool = True,
                  screen: Optional[printing.Screen] = None) -> int:
    """Runs a program to its end, once `reserve` has found room.

    Args:
      program: has groups replay, learner and actor; any others run on the
        learner's host.
      run_dir: as for `supervision.Supervisor`.
      restarts: as for `supervision.Supervisor`.
      screen: as for `supervision.Supervisor`.

    Returns:
      As `supervision.Supervisor.run` does.

    Raises:
      ValueError: if a port cannot be used; the message is one line.
    """
    lp.flags.FLAGS(sys.argv[:1])
    serialization.enable_lru_cache_pickling_once()
    bundles = ray.util.placement_group_table(
        self._group)['bundles_to_node_id']
    home, *others = [bundles[i] for i in range(len(bundles))]
    places = assign(home, others, self._num_shards, self._min_actors)
    pairs = [(node, _Node(f'{label}/{i}', self, self._options(label, i, *places)))
             for label, nodes in program.groups.items()
             for i, node in enumerate(nodes)]
    for label, nodes in program.groups.items():
      for node in nodes:
        node.launch_context.initialize(
            context.LaunchType.LOCAL_MULTI_PROCESSING, None, child.ask_to_stop)
        for handle in node.input_handles:
          handle.connect(node, label)
    try:
      reserved = [ours.reserve(node) for node, ours in pairs]
      for (node, ours), refs in zip(pairs, reserved):
        ours.bind(node, refs)
      for node, ours in pairs:
        ours.set_job(node)
      return supervision.Supervisor([ours for _, ours in pairs], run_dir,
                                    restarts, screen).run()
    finally:
      for _, ours in pairs:
        ours.close()
      ray.util.remove_placement_group(self._group)

  def _options(self, label: str, index: int, shards: Sequence[int],
               actors: Sequence[int]) -> dict[str, Any]:
    """Returns where a node's agent goes, as options for Ray."""
    if label == _SHARDS:
      return self._place(1 + shards[index], num_cpus=1)
    if label == _ACTORS:
      if index < len(actors):
        return self._place(1 + actors[index], num_cpus=1)
      # Joins when there is room.
      return {'num_cpus': 1, 'scheduling_strategy': 'SPREAD'}
    is_learner = label == supervision.LEARNER
    return self._place(0, num_cpus=int(is_learner),
                       num_gpus=self._num_gpus if is_learner else 0)

  def _place(self, bundle: int, **resources: int) -> dict[str, Any]:
    return {'num_cpus': 0, **resources, 'scheduling_strategy':
            scheduling_strategies.PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=bundle)}
