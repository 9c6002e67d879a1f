"""Processes forked from one that has imported everything."""

import contextlib
import json
import os
import signal
import subprocess
import sys

from launchpad.launch.local_multi_processing import commands
import psutil
import pytest

from launch.engines import child
from launch.engines import fork_server
from launch.engines import local
from programs.runtime import processes as node_processes
from tests import processes

# Prints what the process is, and ends with a code.
SCRIPT = """
import json, os, signal, subprocess, sys
numpy = sys.modules['numpy']
print(json.dumps({
    'arguments': sys.argv[1:], 'variable': os.environ.get('OF_THIS_ONE'),
    'parent': os.getppid(), 'group': os.getpgrp() == os.getpid(),
    'session': os.getsid(0),
    'drawn': float(numpy.random.random()), 'input': sys.stdin.read(),
    'interrupt': signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    'python': {k: v for k, v in os.environ.items() if k.startswith('PYTHON')},
    'descriptors': len(os.listdir('/proc/self/fd')),
    'helper': '--helped' in sys.argv and subprocess.Popen(['sleep', '1000']).pid}))
print('an error', file=sys.stderr)
if '--wait' in sys.argv:
  signal.pause()
sys.exit(7)
"""
# A command that is forked: starts its first argument twice, the second time after
# the server has been killed, and prints what these say.
COMMAND = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.environ['OF_THE_COMMAND'] = 'kept'
import numpy
from launch.engines import fork_server
print('waits in a buffer', end=' ')
server = fork_server.ForkServer(['numpy'], is_fork=True)
for _ in range(2):
  process = fork_server.Forked(*server.fork(
      [sys.executable, sys.argv[1], '--wait'], {'OF_THIS_ONE': 'é'}))
  lines = process.lines()
  print(next(lines), next(lines), sep='; ')  # Nothing is held back.
  os.kill(server._pid, signal.SIGINT)  # As by `pkill -INT -f COMMAND`.
  process.signal(signal.SIGTERM)
  while process.code() is None:
    pass
  print(os.getpid(), process.code())
  os.kill(server._pid, signal.SIGKILL)
server.close()
server.close()
"""
# As a module of the server: some of its forks fail, and of those that they fork.
FORKS = """
import errno, itertools, os
fork, calls = os.fork, itertools.count()
def fails_first():
  if next(calls) in {failing}:
    raise BlockingIOError(errno.EAGAIN, 'no')
  return fork()
os.fork = fails_first
"""


@pytest.fixture(scope='module')
def server():
  with contextlib.closing(fork_server.ForkServer(['numpy'])) as server:
    yield server


@pytest.fixture
def script(tmp_path):
  path = tmp_path / 'script.py'
  path.write_text(SCRIPT)
  return str(path)


def fork(server, script, *args, keep_open=()):
  return fork_server.Forked(*server.fork(
      [sys.executable, script, *args], {'OF_THIS_ONE': 'é'}, keep_open))


def told(process):
  first, *_ = lines = list(process.lines())
  assert lines[1:] == ['an error']
  return json.loads(first)


def code(process):
  return processes.wait_for(
      lambda: process.code() is not None, 'its end') and process.code()


def test_it_is_what_a_new_process_would_be(server, script):
  process = fork(server, script, '--one', 'two')
  is_so = told(process)
  assert code(process) == 7
  assert is_so['arguments'] == ['--one', 'two']
  assert is_so['variable'] == 'é' and 'OF_THIS_ONE' not in os.environ
  # A child of this process, in a group of its own, in the same session.
  assert is_so['parent'] == os.getpid() and is_so['group']
  assert is_so['session'] == os.getsid(0)
  assert is_so['input'] == ''
  # Two draw different numbers, and hold nothing of each other's.
  other = told(fork(server, script))
  assert other['drawn'] != is_so['drawn']
  assert other['descriptors'] == is_so['descriptors']


def test_a_fork_of_a_command_is_what_a_new_process_would_be(script, tmp_path):
  command = tmp_path / 'command.py'
  command.write_text(COMMAND)
  ended = subprocess.run(
      [sys.executable, str(command), script], stdout=subprocess.PIPE, text=True,
      env={**os.environ, 'PYTHONPATH': child.ROOT}, timeout=60, check=True)
  assert ended.stdout.startswith('waits in a buffer {')
  first, first_end, second, second_end = ended.stdout.removeprefix(
      'waits in a buffer ').splitlines()
  assert first_end == second_end
  pid, code = map(int, first_end.split())
  assert code == -signal.SIGTERM
  forked, of_new_server = (json.loads(line.removesuffix('; an error'))
                           for line in (first, second))
  assert forked.pop('drawn') != of_new_server.pop('drawn')
  assert forked == of_new_server
  assert forked['parent'] == pid and forked['group']
  assert forked['arguments'] == ['--wait'] and forked['interrupt']


def test_what_is_to_be_kept_open_is(server, script, tmp_path):
  with open(tmp_path / 'file', 'w') as f:
    kept = told(fork(server, script, keep_open=[f.fileno()]))
  assert kept['descriptors'] == told(fork(server, script))['descriptors'] + 1


def test_a_signal_ends_it_and_is_its_code(server, script):
  process = fork(server, script, '--wait')
  lines = process.lines()
  next(lines)
  assert process.code() is None
  process.signal(signal.SIGKILL)
  assert code(process) == -signal.SIGKILL
  process.signal(signal.SIGKILL)  # Nobody is there to be hit.


def test_what_it_has_started_ends_with_it(server, script):
  process = fork(server, script, '--helped', '--wait')
  lines = process.lines()
  helper = psutil.Process(json.loads(next(lines))['helper'])
  assert process.code() is None and node_processes.lives(helper)
  process.signal(signal.SIGKILL)
  assert code(process) == -signal.SIGKILL
  # Asked again, it leaves no zombie either.
  processes.wait_for(
      lambda: process.code() and not psutil.pid_exists(helper.pid), 'the end', 10.)


def test_a_server_that_was_killed_is_replaced_and_what_it_forked_lives(script):
  others = psutil.Process().children()
  with contextlib.closing(fork_server.ForkServer(['numpy'])) as server:
    killed, = set(psutil.Process().children()) - set(others)
    before = fork(server, script, '--wait')
    lines = before.lines()  # Kept, or nobody would read on.
    next(lines)
    killed.kill()
    assert told(fork(server, script))['arguments'] == []
    assert before.code() is None
  before.signal(signal.SIGTERM)
  assert code(before) == -signal.SIGTERM


# The second fork is that of the first one's result, or the server's next.
@pytest.mark.parametrize('failing, failures', [([0], 1), ([1], 2)])
def test_a_process_that_the_system_does_not_allow_is_an_error_now_and_not_later(
    failing, failures, script, tmp_path, monkeypatch):
  (tmp_path / 'forks.py').write_text(FORKS.format(failing=failing))
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  with contextlib.closing(fork_server.ForkServer(['numpy', 'forks'])) as server:
    node = local._Node(
        commands.Command([sys.executable, script], {}, 'actor/0'), (), server)
    descriptors = len(os.listdir('/proc/self/fd'))
    for _ in range(failures):
      process = node.begin({})
      assert list(process.lines()) == []
      process.signal(signal.SIGTERM)
      assert process.poll() == (
          1, 'cannot be started (Resource temporarily unavailable)', False)
    process = node.begin({})
    assert told(process)['parent'] == os.getpid() and code(process) == 7
    assert len(os.listdir('/proc/self/fd')) == descriptors
    assert not psutil.Process(server._pid).children()  # No zombies.


def test_one_that_cannot_import_says_so(capfd):
  with contextlib.closing(fork_server.ForkServer(['no_such_module'])) as server:
    with pytest.raises(RuntimeError, match='has ended'):
      fork(server, 'script.py')
  assert "No module named 'no_such_module'" in capfd.readouterr().err
