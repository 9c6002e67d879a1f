"""What a run leaves in its directory, when things go wrong there."""

import contextlib
import csv
import os
import resource
import signal
import subprocess
import sys
import time

from acme import core
import numpy as np
import pytest
import tensorflow as tf

from programs.runtime import checkpoints
from programs.runtime import locks
from programs.runtime import records

DATA = '.data-00000-of-00001'
SUFFIXES = (DATA, '.index')


class Counter(core.Saveable):
  """Keeps what it is told, in order."""

  def __init__(self):
    self.events = []

  def record_learning(self, num_steps, metrics):
    self.events.append(('record_learning', num_steps))

  def learner_done(self, num_steps, metrics):
    self.events.append(('learner_done', num_steps))

  def save(self):
    self.events.append('save')
    return {'counts': {'actor_steps': 7}, 'returns': [1.], 'walltime': 2.}

  def restore(self, state):
    self.events.append(('restore', state['counts']))


def make_saver(run_dir, value=0.):
  """Returns a saver, and the two variables of what it saves."""
  weight = tf.Variable(tf.fill([300], value), name='weight')
  num_steps = tf.Variable(0, dtype=tf.int64)
  state = {'weight': weight, 'num_steps': num_steps}
  saver = checkpoints.Saver(
      checkpoints.Checkpoint(state, Counter()), str(run_dir), 60.,
      [weight, num_steps])
  return saver, weight, num_steps


def save(run_dir, steps):
  """Leaves a checkpoint of each of these steps; returns their paths."""
  saver, _, num_steps = make_saver(run_dir)
  paths = []
  for step in steps:
    num_steps.assign(step)
    saver.save()
    paths.append(checkpoints.latest(str(run_dir)))
  return paths


def files(run_dir):
  return sorted(os.listdir(run_dir / 'checkpoints'))


def of(*numbers):
  return sorted(f'ckpt-{n}{suffix}' for n in numbers for suffix in SUFFIXES)


def test_the_newest_three_are_kept_and_tensorflow_finds_the_newest(tmp_path):
  save(tmp_path, range(5))
  assert files(tmp_path) == sorted([*of(3, 4, 5), 'checkpoint'])
  newest = checkpoints.latest(str(tmp_path))
  assert checkpoints.learner_steps(newest) == 4
  assert tf.train.latest_checkpoint(str(tmp_path / 'checkpoints')) == newest
  # And where the directory was moved to.
  os.rename(tmp_path / 'checkpoints', tmp_path / 'moved')
  assert tf.train.latest_checkpoint(str(tmp_path / 'moved')) == str(
      tmp_path / 'moved' / 'ckpt-5')


def test_what_the_counter_said_is_in_a_checkpoint(tmp_path):
  path, = save(tmp_path, [3])
  assert checkpoints.progress(path) == {
      'counts': {'actor_steps': 7}, 'returns': [1.], 'walltime': 2.}


@pytest.mark.parametrize('index', [
    b'', b'model_checkpoint_path: "ckpt-', b'model_checkpoint_path: "ckpt-99"\n',
    bytes(range(128, 256)), None])
def test_the_index_of_checkpoints_may_be_anything(tmp_path, index):
  paths = save(tmp_path, range(3))
  if index is None:
    os.remove(tmp_path / 'checkpoints' / 'checkpoint')
  else:
    (tmp_path / 'checkpoints' / 'checkpoint').write_bytes(index)
  assert checkpoints.latest(str(tmp_path)) == paths[-1]
  assert checkpoints.discard_broken(str(tmp_path)) == paths[-1]
  assert tf.train.latest_checkpoint(str(tmp_path / 'checkpoints')) == paths[-1]
  saver, _, num_steps = make_saver(tmp_path)
  num_steps.assign(9)
  saver.save()
  assert files(tmp_path) == sorted([*of(2, 3, 4), 'checkpoint'])


def test_the_newest_is_by_number_not_by_name(tmp_path):
  for number in (9, 10, 11):
    tf.train.Checkpoint(learner=tf.train.Checkpoint(
        num_steps=tf.Variable(number))).write(
            str(tmp_path / 'checkpoints' / f'ckpt-{number}'))
  said = []
  assert checkpoints.latest(str(tmp_path), said.append).endswith('ckpt-11')
  assert not said


@pytest.mark.parametrize('bad', (np.nan, np.inf))
def test_a_checkpoint_of_bad_numbers_is_passed_over_and_told(tmp_path, bad):
  paths = save(tmp_path, range(2))
  tf.train.Checkpoint(learner=tf.train.Checkpoint(weight=tf.Variable(
      [1., bad]))).write(str(tmp_path / 'checkpoints' / 'ckpt-3'))
  said = []
  assert checkpoints.latest(str(tmp_path), said.append) == paths[-1]
  line, = said
  assert line.startswith('checkpoint ckpt-3 is passed over: it holds numbers that '
                         'are not finite (learner/weight')


def test_a_removal_that_was_cut_short_is_ended(tmp_path):
  paths = save(tmp_path, range(3))
  os.remove(f'{paths[0]}.index')
  said = []
  assert checkpoints.discard_broken(str(tmp_path), said.append) == paths[-1]
  assert files(tmp_path) == sorted([*of(2, 3), 'checkpoint']) and not said


@pytest.mark.parametrize('harm', ('truncated', 'index', 'data'))
def test_what_is_discarded_is_told_and_renamed(tmp_path, harm):
  paths = save(tmp_path, range(3))
  left = list(SUFFIXES)
  if harm == 'truncated':
    os.truncate(paths[-1] + DATA, 10)
  else:
    left.remove({'index': '.index', 'data': DATA}[harm])
    os.remove(paths[-1] + (set(SUFFIXES) - set(left)).pop())
  said = []
  assert checkpoints.discard_broken(str(tmp_path), said.append) == paths[-2]
  line, = said
  assert 'ckpt-3 is passed over' in line and 'cannot be read whole' in line
  assert '\n' not in line
  assert files(tmp_path) == sorted([
      *of(1, 2), 'checkpoint', *(f'broken-ckpt-3{suffix}' for suffix in left)])
  # The next takes its number, and the two whole ones stay.
  saver, _, num_steps = make_saver(tmp_path)
  num_steps.assign(9)
  saver.save()
  assert checkpoints.learner_steps(checkpoints.latest(str(tmp_path))) == 9
  assert set(of(1, 2, 3)) < set(files(tmp_path))


def test_what_a_killed_writer_leaves_is_removed(tmp_path):
  killed = subprocess.run([sys.executable, '-c', """
import os, signal, sys, threading
from tests.unit import test_run_files as t
saver, weight, _ = t.make_saver(sys.argv[1])
saver.save()
folder = os.path.join(sys.argv[1], 'checkpoints')
def kill():
  while not any('_temp' in name for name in os.listdir(folder)):
    pass
  os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
while True:
  saver.save()
""", str(tmp_path)], timeout=100)
  assert killed.returncode == -signal.SIGKILL
  assert any('_temp' in name for name in files(tmp_path))
  newest = checkpoints.discard_broken(str(tmp_path))
  assert newest is not None
  # Whatever it was about to delete.
  there = [name for name in files(tmp_path) if not name.startswith('broken-')]
  numbers = {int(name.split('.')[0][len('ckpt-'):]) for name in there
             if name != 'checkpoint'}
  assert 1 <= len(numbers) <= 4
  assert there == sorted([*of(*numbers), 'checkpoint'])


@contextlib.contextmanager
def no_file_beyond(num_bytes):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_save_that_fails_is_a_warning_and_the_next_one_is_tried(tmp_path, capfd):
  saver, _, num_steps = make_saver(tmp_path)
  saver.save()
  num_steps.assign(5)
  with no_file_beyond(500):
    saver.save()
  line, = capfd.readouterr().err.strip().splitlines()
  assert line.startswith('learner: warning: no checkpoint could be saved (')
  assert 'File too large' in line
  # Nothing of it is left, to fill the disk for good.
  assert files(tmp_path) == sorted([*of(1), 'checkpoint'])
  saver.save()
  assert checkpoints.learner_steps(checkpoints.latest(str(tmp_path))) == 5
  assert capfd.readouterr().err == ''


def test_a_directory_that_cannot_be_made_is_a_warning(tmp_path, capfd):
  (tmp_path / 'checkpoints').write_text('not a directory')
  saver, _, _ = make_saver(tmp_path)
  saver.save()
  assert 'no checkpoint could be saved' in capfd.readouterr().err
  os.remove(tmp_path / 'checkpoints')
  saver.save()
  assert files(tmp_path) == sorted([*of(1), 'checkpoint'])


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
  saver, weight, _ = make_saver(tmp_path)
  saver.save()
  for bad in (np.nan, np.inf):
    weight.assign(tf.fill([300], bad))
    with pytest.raises(FloatingPointError, match='weight:0 is not finite'):
      saver.save()
  assert files(tmp_path) == sorted([*of(1), 'checkpoint'])


def test_space_for_four_checkpoints_is_needed_less_those_that_there_are(
    tmp_path, monkeypatch):
  class Usage:
    free = 0

  monkeypatch.setattr(checkpoints.shutil, 'disk_usage', lambda path: Usage)
  # Four of 500 variables and two moments of 400 of them, and a spare MiB.
  needed = 4 * (500 + 2 * 400) + 2**20
  Usage.free = needed
  checkpoints.check_space(str(tmp_path), 500, 400)
  Usage.free = needed - 1
  with pytest.raises(ValueError, match=r'has 1\.1 MB of disk left, .* need 1\.1 MB'):
    checkpoints.check_space(str(tmp_path), 500, 400)
  save(tmp_path, range(2))
  Usage.free = needed - sum(
      os.path.getsize(tmp_path / 'checkpoints' / file) for file in of(1, 2))
  checkpoints.check_space(str(tmp_path), 500, 400)
  Usage.free -= 1
  with pytest.raises(ValueError):
    checkpoints.check_space(str(tmp_path), 500, 400)


PROGRESS = """timesteps,walltime_seconds,policy_lag
100,1.5,0.5
200,2.5,nan
300,3.5,0.5
"""


def test_rows_past_the_checkpoint_are_moved_with_a_torn_last_one(tmp_path):
  path = tmp_path / 'progress.csv'
  path.write_text(PROGRESS + '20')
  assert records.cut_after(str(tmp_path), 'progress.csv', 200) == 2
  assert path.read_text() == PROGRESS[:PROGRESS.index('300')]
  cut = tmp_path / 'progress.csv.cut'
  assert cut.read_text() == 'timesteps,walltime_seconds,policy_lag\n300,3.5,0.5\n20'
  assert records.cut_after(str(tmp_path), 'progress.csv', 200) == 0
  assert records.cut_after(str(tmp_path), 'progress.csv', 150) == 1
  assert path.read_text() == PROGRESS[:PROGRESS.index('200')]


@pytest.mark.parametrize('content', ('', 'no records of ours\n1\n', PROGRESS))
def test_nothing_is_cut_where_nothing_is_past(tmp_path, content):
  path = tmp_path / 'progress.csv'
  path.write_text(content)
  assert records.cut_after(str(tmp_path), 'progress.csv', 300) == 0
  assert path.read_text() == content
  assert os.listdir(tmp_path) == ['progress.csv']
  assert records.cut_after(str(tmp_path), 'evaluation.csv', 300) == 0


def test_rows_follow_the_columns_that_a_file_has(tmp_path):
  path = tmp_path / 'progress.csv'
  path.write_text(PROGRESS)
  logger = records.CsvLogger(str(path), ['walltime_seconds', 'new', 'timesteps'])
  logger.write({'timesteps': 400, 'new': 5, 'walltime_seconds': 4.5})
  with open(path, newline='') as f:
    assert list(csv.DictReader(f))[-1] == {
        'timesteps': '400', 'walltime_seconds': '4.5', 'policy_lag': 'nan'}


HOLD = """
import subprocess, sys, time
from programs.runtime import locks
with locks.held(sys.argv[1]) as lock:
  if len(sys.argv) > 2:
    child = subprocess.Popen(['sleep', '100'], pass_fds=[lock])
    print(child.pid, flush=True)
  print('held', flush=True)
  time.sleep(100)
"""


def hold(run_dir, *args):
  process = subprocess.Popen([sys.executable, '-c', HOLD, str(run_dir), *args],
                             stdout=subprocess.PIPE, text=True)
  return process


def test_a_directory_is_held_by_one_process_until_it_dies(tmp_path):
  holder = hold(tmp_path)
  assert holder.stdout.readline() == 'held\n'
  with pytest.raises(ValueError,
                     match=f'is in use by the run of process {holder.pid}; '):
    with locks.held(str(tmp_path)):
      pass
  holder.kill()
  holder.wait()
  with locks.held(str(tmp_path)):
    with pytest.raises(ValueError, match=f'process {os.getpid()}; '):
      with locks.held(str(tmp_path)):
        pass
  with locks.held(str(tmp_path)):
    pass


def test_a_holder_on_another_host_is_not_said_to_have_ended(tmp_path):
  with locks.held(str(tmp_path)):
    gone = subprocess.Popen(['true'])
    gone.wait()
    (tmp_path / locks.FILE).write_text(f'{gone.pid} far.example pid:[4026531836]')
    with pytest.raises(ValueError, match=f'process {gone.pid} on far.example, or'):
      with locks.held(str(tmp_path)):
        pass


def test_a_directory_is_held_by_the_nodes_of_a_launcher_that_died(tmp_path):
  holder = hold(tmp_path, 'child')
  child = int(holder.stdout.readline())
  assert holder.stdout.readline() == 'held\n'
  holder.kill()
  holder.wait()
  try:
    with pytest.raises(ValueError,
                       match=f'nodes of process {holder.pid}, which has ended'):
      with locks.held(str(tmp_path)):
        pass
  finally:
    os.kill(child, signal.SIGKILL)
  deadline = time.monotonic() + 10.
  while True:
    try:
      with locks.held(str(tmp_path)):
        break
    except ValueError:
      assert time.monotonic() < deadline
      time.sleep(0.05)


def test_a_checkpoint_that_holds_no_progress_is_told(tmp_path):
  path = str(tmp_path / 'ckpt-1')
  checkpoints.Checkpoint({'weight': tf.Variable(1.)}).write(path)
  with pytest.raises(ValueError, match='another version') as error:
    checkpoints.progress(path)
  assert path in str(error.value) and '\n' not in str(error.value)
