"""Where servers listen: the preloaded library, and how it is put to use."""

import ast
import errno
import ipaddress
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest

from programs import config as config_lib
from programs import impala_ppo
from programs.nodes import serving
from programs.runtime import doors
from programs.runtime import processes
from tests import networks

ROOT = pathlib.Path(__file__).parents[2]
# Binds in many ways, and prints where each led.
BINDS = """
import socket
bound = {}
for name, family, only_ipv6, host, kind in (
    ('IPv4', socket.AF_INET, None, '', socket.SOCK_STREAM),
    ('dual', socket.AF_INET6, 0, '', socket.SOCK_STREAM),
    ('mapped', socket.AF_INET6, 0, '::ffff:0.0.0.0', socket.SOCK_STREAM),
    ('IPv6', socket.AF_INET6, 1, '', socket.SOCK_STREAM),
    ('UDP', socket.AF_INET, None, '', socket.SOCK_DGRAM),
    ('chosen IPv4', socket.AF_INET, None, '127.0.0.7', socket.SOCK_STREAM),
    ('chosen mapped', socket.AF_INET6, 0, '::ffff:127.0.0.7', socket.SOCK_STREAM),
    ('chosen IPv6', socket.AF_INET6, 0, '::1', socket.SOCK_STREAM)):
  with socket.socket(family, kind) as s:
    if only_ipv6 is not None:
      s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_ipv6)
    try:
      s.bind((host, 0))
      bound[name], port = s.getsockname()[:2]
      assert port > 0
    except OSError as e:
      bound[name] = e.strerror
print(bound)
"""
with socket.socket(socket.AF_INET6) as _probe:
  # What a bind to ::1 leads to on this machine.
  IPV6 = ('Cannot assign requested address' if _probe.connect_ex(('::1', 9)) ==
          errno.EADDRNOTAVAIL else '::1')
CHOSEN = {'chosen IPv4': '127.0.0.7', 'chosen mapped': '::ffff:127.0.0.7',
          'chosen IPv6': IPV6}
# Serves as nodes do until its input ends.
SERVERS = """
import courier
import reverb
replay = reverb.Server([reverb.Table.queue('queue', 1)])
server = courier.Server()
server.Bind('answer', lambda: 42)
server.Start()
assert courier.Client(f'127.0.0.1:{server.port}').answer() == 42
assert 'queue' in reverb.Client(f'127.0.0.1:{replay.port}').server_info()
print('ready', flush=True)
input()
"""


@pytest.fixture
def network():
  yield from networks.make()


@pytest.fixture
def doors_elsewhere(tmp_path):
  """Returns a copy of the module that finds no library beside it."""
  return shutil.copy(doors.__file__, tmp_path / 'doors.py')


def behind_doors(*args):
  return [sys.executable, '-m', 'programs.runtime.doors', *args]


def run(command, **kwargs):
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                        timeout=60, **kwargs)


def binds(*args, run=run):
  result = run(behind_doors(*args, sys.executable, '-c', BINDS))
  assert result.returncode == 0, result.stderr
  return ast.literal_eval(result.stdout)


def refusal(*command, **kwargs):
  result = run(command, **kwargs)
  assert result.returncode == 2, result.stdout
  line, = result.stderr.strip().splitlines()
  return line


def test_all_addresses_become_loopback_and_others_stay():
  assert binds() == {
      'IPv4': '127.0.0.1', 'dual': '::ffff:127.0.0.1',
      'mapped': '::ffff:127.0.0.1', 'IPv6': IPV6, 'UDP': '127.0.0.1', **CHOSEN}


def test_all_addresses_become_the_given_ipv4():
  assert binds('--listen', '127.0.0.9') == {
      'IPv4': '127.0.0.9', 'dual': '::ffff:127.0.0.9',
      'mapped': '::ffff:127.0.0.9', 'IPv6': IPV6, 'UDP': '127.0.0.9', **CHOSEN}


def test_all_addresses_become_the_given_ipv6(network):
  network.run('ip', 'address', 'add', 'fd77::9/64', 'dev', 'lo', 'nodad')

  def run_there(command):
    return run(network.command(*command))

  assert binds('--listen', 'fd77::9', run=run_there) == {
      'IPv4': '127.0.0.1', 'dual': 'fd77::9', 'mapped': 'fd77::9',
      'IPv6': 'fd77::9', 'UDP': '127.0.0.1', **CHOSEN, 'chosen IPv6': '::1'}


def test_all_means_all():
  def behind_closed_ones(command):
    return run(behind_doors(*command))

  for how in (run, behind_closed_ones):
    bound = binds('--listen', 'all', run=how)
    assert (bound['IPv4'], bound['dual'], bound['UDP']) == (
        '0.0.0.0', '::', '0.0.0.0')


def test_garbage_in_the_variable_means_loopback():
  env = {**os.environ, 'LD_PRELOAD': str(doors._LIBRARY),
         doors._LISTEN_VARIABLE: 'all over'}
  bound = ast.literal_eval(run([sys.executable, '-c', BINDS], env=env).stdout)
  assert (bound['IPv4'], bound['dual']) == ('127.0.0.1', '::ffff:127.0.0.1')


@pytest.mark.slow
@pytest.mark.parametrize('ipv6', [True, False])
def test_courier_and_reverb_listen_on_loopback(network, ipv6):
  if not ipv6:
    network.run('sh', '-c', 'echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6')
  servers = subprocess.Popen(
      network.command(*behind_doors(sys.executable, '-c', SERVERS)), cwd=ROOT,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  assert servers.stdout.readline() == 'ready\n'
  addresses = [address for address, _ in networks.open_ports(servers.pid)]
  servers.communicate('\n')
  assert addresses == 2 * [ipaddress.ip_address('127.0.0.1')]


def test_what_is_preloaded_already_stays(monkeypatch):
  monkeypatch.setenv('LD_PRELOAD', '/lib/a.so /lib/b.so:/lib/c.so')
  monkeypatch.setenv(doors._LISTEN_VARIABLE, '')
  for _ in range(2):  # Closing twice is closing once.
    doors.close()
    assert os.environ['LD_PRELOAD'].split(':') == [
        str(doors._LIBRARY), '/lib/a.so', '/lib/b.so', '/lib/c.so']


@pytest.mark.parametrize('content, why', [
    (None, 'is missing'), ('not a library', 'does not load')])
def test_without_the_library_nothing_starts(doors_elsewhere, tmp_path, content, why):
  if content is not None:
    library = pathlib.Path(doors_elsewhere).with_name(doors._LIBRARY.name)
    library.write_text(content)
  assert why in refusal(sys.executable, doors_elsewhere, 'echo')
  opened = run([sys.executable, doors_elsewhere, '--listen', 'all', 'echo', 'in'])
  assert (opened.returncode, opened.stdout) == (0, 'in\n')
  # Nor does a process wait for it, or complain.
  preloading = run([sys.executable, '-c', 'import doors; doors.preload(); print(1)'],
                   env={**os.environ, 'PYTHONPATH': str(tmp_path)})
  assert (preloading.stdout, preloading.stderr) == ('1\n', '')


def test_a_path_that_cannot_be_preloaded_gets_one_line(tmp_path):
  there = tmp_path / 'a b'
  there.mkdir()
  shutil.copy(doors.__file__, there / 'doors.py')
  shutil.copy(doors._LIBRARY, there)
  assert 'has a space' in refusal(sys.executable, str(there / 'doors.py'), 'echo')


def test_a_process_preloads_the_library_once(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(
      'import os, sys\n'
      'from programs.runtime import doors\n'
      'print("begun", os.getpid(), sys.argv[1:], flush=True)\n'
      'doors.preload()\n'
      'closed = [doors.is_closed("loopback")]\n'
      'doors.close()\n'
      'doors.preload()\n'
      'print(*closed, doors.is_closed("loopback"), os.environ["LD_PRELOAD"])\n')
  env = {**os.environ, 'PYTHONPATH': str(ROOT), 'LD_PRELOAD': ''}
  env.pop(doors._LISTEN_VARIABLE, None)

  def lines(command, **variables):
    result = run(command, env={**env, **variables})
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()

  command = [sys.executable, str(script), 'é', '--a b']
  begun, again, preloaded = lines(command)
  assert begun == again and begun.endswith("['é', '--a b']")
  assert preloaded == f'False True {doors._LIBRARY}'
  # By what started it, or for a process of its own.
  assert len(lines(command, LD_PRELOAD=str(doors._LIBRARY))) == 2
  assert len(lines(command, **{doors._RESTARTED_VARIABLE: '1'})) == 3
  # A system that drops it from a process's environment.
  dropped = ['sh', '-c', f'{doors._RESTARTED_VARIABLE}=$$ exec "$@"', '-', *command]
  _, open_yet = lines(dropped)
  assert open_yet.startswith('False False')


def test_a_process_that_others_could_reach_refuses_to_serve():
  check = 'from programs.runtime import doors; doors.check({!r})'
  for listen, closed_for, message in (
      ('loopback', None, 'doors.close(config.listen)'),
      ('loopback', '127.0.0.9', 'doors.close(config.listen)'),
      ('127.0.0.9', 'loopback', 'doors.close(config.listen)'),
      ('127.0.0.9', '127.0.0.9', ''),
      ('cluster', None, 'doors.close(config.listen)'),
      ('cluster', 'all', 'doors.close(config.listen)'),
      ('cluster', '127.0.0.9', ''),
      ('loopback', 'loopback', ''),
      ('all', None, '')):
    command = [sys.executable, '-c', check.format(listen)]
    if closed_for is not None:
      command = behind_doors('--listen', closed_for, *command)
    env = {k: v for k, v in os.environ.items() if k != 'LD_PRELOAD'}
    result = run(command, env=env)
    assert bool(result.returncode) == bool(message), (listen, closed_for)
    assert message in result.stderr


def test_nodes_refuse_to_serve_where_others_could_reach_them():
  launcher = processes.this_process()
  replay = serving.ReplayNode(lambda: pytest.fail('it started'), 'loopback', 0,
                              launcher)
  with pytest.raises(RuntimeError, match='other machines could reach'):
    replay.run()
  with pytest.raises(RuntimeError, match='other machines could reach'):
    impala_ppo._in_node(launcher, 'loopback', lambda **_: pytest.fail('it started'))


@pytest.mark.parametrize('listen', [
    '', 'localhost', '10.0.0', '0.0.0.0', '::', 'fe80::1%lo', '10.0.0.1:80'])
def test_what_is_no_address_is_refused(listen):
  with pytest.raises(ValueError, match='listen must be'):
    config_lib.RunConfig('run', listen=listen)


def test_doors_without_a_command_to_run_say_so():
  assert refusal(*behind_doors()) == 'error: COMMAND is missing; give what to run.'


def test_an_address_of_another_machine_is_refused():
  # 192.0.2.0/24 and its like are for documentation. Its config may be read here.
  config_lib.RunConfig('run', listen='203.0.113.1')
  assert 'address of this machine' in refusal(
      *behind_doors('--listen', '203.0.113.1', 'echo'))


def test_an_isolated_run_has_no_other_address():
  with pytest.raises(ValueError, match='isolate leaves no interface'):
    config_lib.RunConfig('run', listen='10.0.0.1', isolate=True)


@pytest.mark.parametrize('privileged', [True, False])
def test_isolating_leaves_loopback_only(network, privileged):
  user = network.command() if privileged else []  # Root of a namespace.
  if not privileged and os.geteuid() == 0:
    # Nobody, who may at least read this.
    user = ['setpriv', '--reuid', '65534', '--regid', '65534', '--clear-groups',
            '--inh-caps', '+dac_override', '--ambient-caps', '+dac_override']
  with subprocess.Popen(
      [*user, *behind_doors('--isolate', 'cat')], cwd=ROOT, stdin=subprocess.PIPE,
      stdout=subprocess.PIPE, text=True) as isolated:
    said = isolated.stdout.readline()
    assert ('--user' in said) != privileged
    way_in = said[said.index('nsenter'):said.index(' COMMAND')].split()
    result = run([*user, *way_in, 'ip', '-brief', 'address'])
    isolated.communicate('')
  assert result.stdout.split() == ['lo', 'UNKNOWN', '127.0.0.1/8', '::1/128']


def test_where_isolating_is_not_permitted_one_line_says_so(network):
  network.run('sh', '-c', 'echo 0 > /proc/sys/user/max_net_namespaces')
  assert '--isolate needs network and user namespaces' in refusal(
      *network.command(*behind_doors('--isolate', 'echo')))
