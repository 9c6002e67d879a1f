"""What ends a process whose environment hangs, and what does not."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from programs.nodes import watchdog

ROOT = pathlib.Path(__file__).parents[2]
# An environment that hangs where it is told to, after some good steps.
HANGS = """
import ctypes, sys, time
import numpy as np
from programs.nodes import watchdog

class Environments:
  num_envs = 3

  def reset(self):
    if sys.argv[1] == 'reset':
      time.sleep(60)

  def step(self, action):
    time.sleep(0.4)
    if action[0] == 4:
      if sys.argv[1] == 'step':
        time.sleep(60)
      if sys.argv[1] == 'locked':  # With the lock of all Python threads held.
        ctypes.PyDLL(None).sleep(60)

  def close(self):
    print('closed', flush=True)

dog = watchdog.Watchdog('evaluator', 1.)
dog.start()
watched = watchdog.Watched(Environments(), dog)
assert watched.num_envs == 3
watched.reset()
for i in range(5):
  watched.step(np.array([i]))
watched.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize('where', ['reset', 'step', 'locked', 'nowhere'])
def test_a_hang_ends_the_process_and_steps_that_end_do_not(where):
  ran = subprocess.run([sys.executable, '-c', HANGS, where], cwd=ROOT, text=True,
                       capture_output=True, timeout=50)
  assert ran.stderr == ''
  if where == 'nowhere':
    assert (ran.returncode, ran.stdout) == (0, 'closed\n')
  else:
    assert ran.returncode == 1
    assert ran.stdout == ('evaluator: the environment has been in one step for 1 s '
                          '(--step_timeout); this process ends.\n')


@pytest.mark.slow
def test_time_that_a_process_is_stopped_is_not_the_environments():
  # In the middle of a step that takes for ever.
  process = subprocess.Popen(
      [sys.executable, '-c', """
import threading
from programs.nodes import watchdog
dog = watchdog.Watchdog('actor/0', 3.)
dog.start()
with dog.step():
  print('stepping', flush=True)
  threading.Event().wait()
"""], cwd=ROOT, stdout=subprocess.PIPE)
  try:
    assert process.stdout.readline() == b'stepping\n'
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    time.sleep(1)
    assert process.poll() is None
    assert process.wait(timeout=20) == 1
    assert b'in one step for 3 s' in process.stdout.read()
  finally:
    process.kill()


def test_without_its_library_it_says_what_builds_it(monkeypatch, tmp_path):
  monkeypatch.setattr(watchdog, '_LIBRARY', tmp_path / 'missing.so')
  with pytest.raises(ValueError, match='pip install -e .*builds its library'):
    watchdog.Watchdog('actor/0', 60.).start()
