"""Who reaches the ports of whole runs: no other machine, unless told so."""

import contextlib
import ipaddress
import json
import os
import re
import subprocess
import sys

import pytest

from launch import train
from programs.runtime import doors
from programs.runtime import servers
from tests import networks
from tests import processes
from tests.commands import runs

HERE, THERE = '10.77.0.1', '10.77.0.2'
HERE_IPV6, THERE_IPV6 = 'fd77::1', 'fd77::2'
LOOPBACK = ipaddress.ip_address('127.0.0.1')
SMALL = ['--game', 'tests.unhurried:SlowCatch-v0', *runs.SMALL]
# Tries to connect to each of some addresses, and prints how that went.
KNOCK = """
import json, socket, sys
answers = {}
for host, port in json.loads(sys.argv[1]):
  try:
    socket.create_connection((host, port), 2).close()
    answers[f'{host} {port}'] = 'let in'
  except OSError as e:
    answers[f'{host} {port}'] = e.strerror
print(json.dumps(answers))
"""
# Somebody's own script.
SCRIPT = """
import sys
from agents import games
from agents.impala_ppo import ImpalaPPOBuilder, ImpalaPPOConfig
from acme import specs
import launchpad as lp
from programs import impala_ppo
from programs.config import RunConfig
from programs.runtime import doors

game = games.EnvironmentConfig('tests.unhurried:SlowCatch-v0')
config = RunConfig(sys.argv[1], num_actors=1, evaluation_interval=0,
                   progress_seconds=1.)
program = impala_ppo.make_program(
    ImpalaPPOBuilder(ImpalaPPOConfig(batch_size=12, sequence_length=8)), game.make,
    specs.make_environment_spec(game.make(1, 0)), config)
doors.close(config.listen)
lp.launch(program, 'local_mp', terminal='current_terminal').wait()
"""


@pytest.fixture
def networks_side_by_side():
  """Yields a network, and the one of a stranger, as if of another machine."""
  for here in networks.make():
    with contextlib.ExitStack() as stack:
      there = networks.Network(*here.command('unshare', '--net'))
      stack.callback(there.close)
      here.run('ip', 'link', 'add', 'cable', 'type', 'veth', 'peer', 'name', 'cable',
               'netns', str(there.pid))
      for network, ipv4, ipv6 in (
          (here, HERE, HERE_IPV6), (there, THERE, THERE_IPV6)):
        network.run('ip', 'address', 'add', f'{ipv4}/24', 'dev', 'cable')
        network.run('ip', 'address', 'add', f'{ipv6}/64', 'dev', 'cable', 'nodad')
        network.run('ip', 'link', 'set', 'cable', 'up')
      yield here, there


def train_command(run_dir, *args):
  return runs.command('launch.train', '--run_dir', run_dir, *SMALL, *args)


@contextlib.contextmanager
def running(command, run_dir):
  """Yields the process of a command once its learner learns."""
  env = {k: v for k, v in os.environ.items() if k != 'LD_PRELOAD'}
  process = subprocess.Popen(command, cwd=runs.ROOT, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, env=env)
  runs.wait_until_learned(process, str(run_dir), 5)
  try:
    yield process
  finally:
    process.terminate()
    process.communicate(timeout=30)


def ports_of(process):
  """Returns what is open once replay, counter and learner serve."""
  def found():
    ports = networks.open_ports(process.pid)
    return len(ports) >= 3 and ports
  # The learner learns in a thread, while another starts its server.
  return processes.wait_for(found, 'three ports', 60.)


def knock(network, ports):
  """Returns how many addresses answered in which way."""
  doors_there = [(host, port) for host in (HERE, HERE_IPV6) for port in ports]
  answers = json.loads(network.run(sys.executable, '-c', KNOCK,
                                   json.dumps(doors_there)))
  assert len(answers) == 2 * len(ports)
  return answers


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize('listen, let_in', [
    (None, []), ('all', [HERE, HERE_IPV6]), (HERE, [HERE])])
def test_a_stranger_gets_in_where_told_only(
    networks_side_by_side, tmp_path, listen, let_in):
  here, there = networks_side_by_side
  command = here.command(*train_command(
      tmp_path, *(['--listen', listen] if listen else [])))
  with running(command, tmp_path) as process:
    ports = ports_of(process)
    assert set(ports.values()) <= {'tcp', 'tcp6'}
    assert len(ports) == 3  # Replay, counter and learner.
    answers = knock(there, [port for _, port in ports])
  for door, answer in answers.items():
    expected = 'let in' if door.split()[0] in let_in else 'Connection refused'
    assert answer == expected, door


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_threads_listen_on_loopback(tmp_path):
  with running(train_command(tmp_path, '--lp_launch_type', 'local_mt'),
               tmp_path) as process:
    ports = ports_of(process)
  assert [address for address, _ in ports] == 3 * [LOOPBACK]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_program_of_an_own_script_listens_on_loopback(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(SCRIPT)
  command = ['env', f'PYTHONPATH={runs.ROOT}', sys.executable, str(script),
             str(tmp_path)]
  with running(command, tmp_path) as process:
    ports = ports_of(process)
  assert [address for address, _ in ports] == 3 * [LOOPBACK]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_isolated_run_is_reached_by_the_way_in_only(networks_side_by_side,
                                                       tmp_path):
  here, _ = networks_side_by_side  # Of the other users of the machine.
  with running(here.command(*train_command(tmp_path, '--isolate')),
               tmp_path) as process:
    said = process.stdout.readline().decode()
    ports = ports_of(process)
    assert [address for address, _ in ports] == 3 * [LOOPBACK]
    nearby = json.dumps([('127.0.0.1', port) for _, port in ports])
    refused = json.loads(here.run(sys.executable, '-c', KNOCK, nearby))
    assert set(refused.values()) == {'Connection refused'}
    way_in = said[said.index('nsenter'):said.index(' COMMAND')].split()
    let_in = json.loads(here.run(*way_in, sys.executable, '-c', KNOCK, nearby))
    assert set(let_in.values()) == {'let in'}
    # The run's directory says the same.
    with pytest.raises(ValueError, match=re.escape(f'`{" ".join(way_in)} ')):
      servers.read(str(tmp_path))


@pytest.mark.parametrize('threads', [False, True])
def test_training_does_not_start_without_the_library(
    tmp_path, monkeypatch, capsys, threads):
  monkeypatch.setattr(doors, '_LIBRARY', tmp_path / 'missing.so')
  monkeypatch.delenv('LD_PRELOAD', raising=False)  # Of tests before this one.
  run_dir = tmp_path / 'run'
  with pytest.raises(SystemExit) as ended:
    train.main(['--run_dir', str(run_dir), '--lp_launch_type',
                'local_mt' if threads else 'local_mp'])
  assert ended.value.code == 2
  line, = capsys.readouterr().err.strip().splitlines()
  assert 'cannot keep other machines out' in line and '--listen all' in line
  assert not run_dir.exists()
