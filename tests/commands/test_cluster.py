"""Runs on a Ray cluster: hosts that come and go, and faults on each."""

import json
import os
import re
import signal
import subprocess
import tempfile

import psutil
import pytest

from benchmarks import hosts as hosts_lib
from launch import train
from programs.runtime import checkpoints
from programs.runtime import processes as node_processes
from programs.runtime import servers
from tests import networks
from tests import processes
from tests.commands import runs

pytest.importorskip('ray')
RAY = ['--lp_launch_type', 'ray', '--game', 'tests.unhurried:SlowCartPole-v0',
       *runs.SMALL, '--checkpoint_minutes', '0.02']
SECONDS = 240.


def wait_for(condition, what, seconds=SECONDS):
  return processes.wait_for(condition, what, seconds)


def learns_on(run_dir):
  steps = runs.learner_steps(run_dir)
  wait_for(lambda: runs.learner_steps(run_dir) not in (0., steps), 'learner steps')


@pytest.mark.slow
def test_a_ray_of_its_own_is_started_used_and_stopped(tmp_path, monkeypatch):
  # Not below tmp_path: there are sockets there, whose paths must not be long.
  with tempfile.TemporaryDirectory() as folder:
    monkeypatch.setenv('TMPDIR', folder)
    monkeypatch.setenv('RAY_ADDRESS', '127.0.0.1:9')  # Another cluster's.
    train_on_a_ray_of_its_own(tmp_path)
    assert [name for name in os.listdir(folder) if name.startswith('ray')] == []


def train_on_a_ray_of_its_own(tmp_path):
  run_dir = str(tmp_path / 'run')
  process = runs.launch('--run_dir', run_dir, *RAY, '--max_timesteps', '3000',
                        '--evaluation_interval', '1000')
  family, ports = [], {}

  def is_over():
    family.extend(p for p in psutil.Process(process.pid).children(recursive=True)
                  if p not in family)
    ports.update(networks.open_ports(process.pid))
    return process.poll() is not None

  wait_for(is_over, 'the end')
  output = process.communicate()[0].decode()
  assert process.returncode == 0, output
  assert runs.rows(run_dir)[-1]['timesteps'] >= 3000
  path = checkpoints.latest(run_dir)
  assert checkpoints.learner_steps(path) == runs.learner_steps(run_dir)
  assert 'has weights from memory shared' in runs.log(run_dir, 'actor/0')
  # Neither the program's nor Ray's ports were open to other machines.
  assert len(ports) > 6 and all(address.is_loopback for address, _ in ports)
  assert len(family) > 10  # Nodes, their agents, and Ray's own.
  assert psutil.wait_procs(family, timeout=10)[1] == []


@pytest.fixture(scope='module')
def hosts():
  """Two hosts of a cluster, with room for a learner, two shards, two actors.

  The tests of this file share them, as they take long to start, and leave them as
  they were.
  """
  try:
    hosts = hosts_lib.Hosts(cpus=[3, 2])
  except OSError as e:
    pytest.skip(f'no hosts of a cluster are permitted here: {e}')
  yield hosts
  hosts.close()


def launch(host, *args):
  """Starts training on a host."""
  return subprocess.Popen(
      host.command(*runs.command('launch.train', *RAY, *args)), cwd=runs.ROOT,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def trainer(process):
  """Returns the process that trains, behind the one that entered the host."""
  return psutil.Process(process.pid).children()[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_trains_side_by_side_and_goes_on(hosts, tmp_path):
  argv = runs.command(
      'launch.sweep', '--out', tmp_path / 'out', '--game', 'CartPole-v1',
      '--seeds', '0-1', *runs.SMALL, '--num_actors', '2', '--max_timesteps', '15000',
      '--ray_address', 'auto')
  paths = [str(tmp_path / 'out' / 'all' / f'seed{seed}') for seed in range(2)]
  process = subprocess.Popen(hosts.head.command(*argv), cwd=runs.ROOT,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  # One on each host: a second would have no room.
  wait_for(lambda: all(runs.learner_steps(path) > 5 for path in paths),
           'both to learn')
  trainer(process).send_signal(signal.SIGINT)
  told = process.communicate(timeout=SECONDS)[0].decode()
  assert 'the same command goes on' in told and process.returncode == 130
  steps = [checkpoints.learner_steps(checkpoints.latest(path)) for path in paths]
  assert steps == [runs.learner_steps(path) for path in paths] and min(steps) > 5
  ended = subprocess.run(hosts.head.command(*argv), cwd=runs.ROOT, text=True,
                         capture_output=True, timeout=SECONDS)
  assert ended.returncode == 0, ended.stdout + ended.stderr
  assert re.search(r'\| CartPole-v1 +\| 2 +\|', ended.stdout), ended.stdout
  logs = ''
  for path in paths:
    # It went on, and did not begin anew.
    timesteps = [row['timesteps'] for row in runs.rows(path)]
    assert timesteps == sorted(timesteps) and timesteps[-1] >= 15_000
    with open(os.path.join(path, 'logs', 'train.log')) as f:
      logs += f.read()
  assert 'train: stopped; every node has ended' in logs


@pytest.mark.slow
def test_a_run_whose_launcher_was_killed_is_resumed_to_its_end(hosts, tmp_path):
  run_dir = str(tmp_path / 'run')
  args = ['--ray_address', 'auto', '--run_dir', run_dir, '--num_actors', '2']
  process = launch(hosts.head, *args)
  wait_for(lambda: runs.learner_steps(run_dir) > 20, 'learner steps')
  family = [p for host in hosts.hosts.values() for p in host.nodes().values()]
  assert hosts.hosts[2].nodes()  # One actor, or both: Ray spreads as it can.
  trainer(process).kill()
  wait_for(lambda: not any(map(node_processes.lives, family)), 'the end', 30.)
  process.communicate()
  # The learner has heard in time, and saved.
  last = runs.rows(run_dir)[-1]
  assert (checkpoints.learner_steps(checkpoints.latest(run_dir)) >=
          last['learner_steps'])

  budget = int(last['timesteps']) + 5000
  resumed = launch(hosts.head, *args, '--resume', '--max_timesteps', budget)
  output = resumed.communicate(timeout=SECONDS)[0]
  assert resumed.returncode == 0, output
  last = runs.rows(run_dir)[-1]
  assert last['timesteps'] >= budget
  assert (checkpoints.learner_steps(checkpoints.latest(run_dir)) ==
          last['learner_steps'])
  assert not any(host.nodes() for host in hosts.hosts.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hosts_come_and_go(hosts, tmp_path):
  run_dir = str(tmp_path / 'run')
  args = ['--ray_address', 'auto', '--run_dir', run_dir, '--num_replay_shards', '2',
          '--replay_port', '9400']
  refused = launch(hosts.head, *args, '--num_actors', '9', '--ray_timeout', '1')
  told = refused.communicate(timeout=SECONDS)[0].strip().splitlines()
  assert refused.returncode == 2
  assert '12 CPUs are needed' in told[-1] and 'of 2 hosts has 5' in told[-1]
  assert not os.path.exists(run_dir)

  with open(tmp_path / 'output', 'w') as output:
    process = subprocess.Popen(
        hosts.head.command(*runs.command(
            'launch.train', *RAY, *args, '--num_actors', '3', '--min_actors', '2',
            '--retries', '1', '--ray_timeout', SECONDS)),
        cwd=runs.ROOT, stdout=output, stderr=subprocess.STDOUT)
  try:
    wait_for(lambda: runs.learner_steps(run_dir) > 20, 'learner steps')
    nodes = {number: set(host.nodes()) for number, host in hosts.hosts.items()}
    assert nodes == {1: {'learner/0', 'counter/0', 'replay/0', 'actor/0'},
                     2: {'replay/1', 'actor/1'}}
    assert 'for all processes of this one' in runs.log(run_dir, 'actor/1')
    for number, host in hosts.hosts.items():
      addresses = {str(address) for process in host.nodes().values()
                   for address, _ in networks.open_ports(process.pid)}
      assert addresses == {host.address}, number
      for name, node in host.nodes().items():
        assert node.environ()['TF2_BEHAVIOR'] == '1'
        assert 'OMP_NUM_THREADS' not in node.environ()
        # The learner goes first, as without Ray.
        added = 10 * name.startswith('actor')
        assert node.nice() == min(os.nice(0) + added, 19), name
    with open(os.path.join(run_dir, servers.FILE)) as f:
      assert json.load(f)['replay'] == ['10.78.0.1:9400', '10.78.0.2:9401']

    # Nodes that die are restarted, those that others know where they were.
    for name in ('actor/1', 'replay/1', 'learner/0'):
      where, node = hosts.node(name)
      node.kill()
      wait_for(lambda: 'back after' in runs.log(run_dir, name), name)  # noqa: B023
      assert hosts.node(name)[0] == where
      learns_on(run_dir)
    killed = [('actor/1', 'was killed by signal 9 (Killed)')]
    assert runs.restarts(run_dir)[:1] == killed and len(runs.restarts(run_dir)) == 3

    # An actor that there was no room for joins with a host, and leaves with it.
    hosts.add(3, cpus=1)
    wait_for(lambda: 'actor/2' in hosts.hosts[3].nodes(), 'an actor that joins')
    wait_for(lambda: 'has weights' in runs.log(run_dir, 'actor/2'), 'its weights')
    hosts.kill(3)
    wait_for(lambda: len(runs.restarts(run_dir)) == 4, 'an actor that leaves')
    assert runs.restarts(run_dir)[3][0] == 'actor/2'
    assert runs.restarts(run_dir)[3][1].startswith('was lost')
    learns_on(run_dir)

    # With a host that holds a shard, the run is; and resumes once there is room.
    hosts.kill(2)
    said = (tmp_path / 'output').read_text
    wait_for(lambda: 'replay/1 was lost, and its host 10.78.0.2' in said(), 'a loss')
    wait_for(lambda: '0 retries are left' in said(), 'a retry')
    steps = checkpoints.learner_steps(checkpoints.latest(run_dir))
    assert steps > 20
    hosts.add(2, cpus=2)
    wait_for(lambda: runs.learner_steps(run_dir) > steps, 'learner steps as before')
    family = [p for host in hosts.hosts.values() for p in host.nodes().values()]
    assert len(family) == 6
    trainer(process).send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
    assert psutil.wait_procs(family, timeout=10)[1] == []
    path = checkpoints.latest(run_dir)
    assert checkpoints.learner_steps(path) == runs.learner_steps(run_dir)
  except BaseException:
    print((tmp_path / 'output').read_text()[-6000:])
    raise
  finally:
    process.kill()
    process.wait()


@pytest.mark.parametrize('args, told', [
    (['--ray_address', 'auto'], '--num_actors is missing'),
    (['--ray_address', 'auto', '--num_actors', '2', '--listen', 'loopback'],
     "listen 'loopback' is for one machine"),
    (['--ray_address', '127.0.0.1:9', '--num_actors', '2'],
     'no Ray cluster at 127.0.0.1:9'),
    (['--ray_address', 'auto', '--num_actors', '2', '--listen', 'all', '--isolate'],
     'isolate keeps a run on one machine'),
    (['--num_actors', '2', '--min_actors', '3'], 'min_actors (3) must be'),
    (['--num_actors', '4', '--num_replay_shards', '2', '--min_actors', '1'],
     'from num_replay_shards (2)'),
    (['--lp_launch_type', 'local_mp', '--ray_address', 'auto'],
     'give --lp_launch_type ray'),
    (['--lp_launch_type', 'local_mp', '--listen', 'cluster'],
     "listen 'cluster' is for --ray_address"),
])
def test_what_does_not_work_gets_one_line(tmp_path, capsys, args, told):
  assert told in runs.refusal(capsys, train.main, '--lp_launch_type', 'ray',
                              '--run_dir', tmp_path / 'run', *args)
