"""A node's process on this machine, and how it asks for the end."""

import os
import signal
import sys
import time

import psutil
import pytest

from launch.engines import child
from programs.runtime import processes as node_processes
from tests import processes

ASK = 'from launch.engines import child; child.ask_to_stop()'


def python(code, **env):
  return child.Child([sys.executable, '-c', code], {
      **os.environ, 'PYTHONPATH': child.import_path(), **env})


def asking(code):
  """Returns a child that can ask for the end, and whether it did."""
  pipe = child.StopPipe()
  process = child.Child(
      [sys.executable, '-c', code],
      {**os.environ, 'PYTHONPATH': child.import_path(), **pipe.env()},
      keep_open=[pipe.writer])
  return process, pipe.wait()


def test_lines_come_as_they_are_printed_and_then_the_return_code():
  process = python('import sys; print("one"); sys.stderr.write("two\\n"); exit(3)')
  assert list(process.lines()) == ['one', 'two']
  assert process.wait() == process.code() == 3


@pytest.mark.parametrize('wait', [child.Child.wait, lambda process: (
    processes.wait_for(lambda: process.code() is not None, 'its end'))])
def test_what_a_child_has_started_ends_with_it(wait):
  process = python('import subprocess\n'
                   'print(subprocess.Popen(["sleep", "1000"]).pid)')
  lines = process.lines()
  helper = psutil.Process(int(next(lines)))
  wait(process)
  assert process.code() == 0
  processes.wait_for(lambda: not node_processes.lives(helper), 'the end', 10.)
  assert list(lines) == []  # Nobody holds its output any more.


def test_a_child_asks_for_the_end_or_does_not():
  process, has_asked = asking(f'{ASK}; import time; time.sleep(60)')
  assert has_asked and process.code() is None  # It goes on meanwhile.
  process.signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  assert not asking('pass')[1]
  assert not asking('import os, signal; os.kill(os.getpid(), signal.SIGKILL)')[1]


def test_a_child_knows_that_who_started_it_has_gone(tmp_path):
  path = tmp_path / 'seen'
  watch = ('import time; from programs.runtime import parents\n'
           'assert parents.is_known() and not parents.has_gone()\n'
           f'open({str(path)!r}, "w").write("there")\n'
           'while not parents.has_gone(): time.sleep(0.05)\n'
           f'open({str(path)!r}, "w").write("gone")')
  starter = python('import os, sys, time; from launch.engines import child\n'
                   f'child.Child([sys.executable, "-c", {watch!r}], os.environ)\n'
                   'time.sleep(60)')

  def says(word):
    return path.exists() and path.read_text() == word

  processes.wait_for(lambda: says('there'), 'a child', 60.)
  time.sleep(0.2)
  assert says('there')
  starter.signal(signal.SIGKILL)
  processes.wait_for(lambda: says('gone'), 'its end', 60.)


@pytest.mark.parametrize('how', ['sys.exit()', 'None'])  # At SIGTERM.
def test_what_an_orphan_has_started_ends_with_it(tmp_path, how):
  path = tmp_path / 'pids'
  node = ('import os, signal, subprocess, sys, time\n'
          'from programs.runtime import processes\n'
          'processes._ORPHAN_SECONDS = 0.5\n'
          'processes.set_up_node(processes.Process("elsewhere", 1, 1))\n'
          f'signal.signal(signal.SIGTERM, lambda *_: {how})\n'
          'helper = subprocess.Popen(["sleep", "1000"])\n'
          f'open({str(path)!r}, "w").write(f"{{os.getpid()}} {{helper.pid}} .")\n'
          'for _ in range(600): time.sleep(0.1)')
  starter = python('import os, sys, time; from launch.engines import child\n'
                   f'child.Child([sys.executable, "-c", {node!r}], os.environ)\n'
                   'time.sleep(60)')
  processes.wait_for(lambda: path.exists() and path.read_text().endswith('.'),
                     'a node', 60.)
  both = [psutil.Process(int(pid)) for pid in path.read_text().split()[:2]]
  assert all(map(node_processes.lives, both))
  starter.signal(signal.SIGKILL)
  starter.wait()
  processes.wait_for(lambda: not any(map(node_processes.lives, both)), 'the end',
                     20.)
