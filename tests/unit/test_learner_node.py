"""The learner's worker: what it reports, and what it leaves at the end."""

import contextlib
import threading
import time

from acme import core
import numpy as np
import pytest
import tensorflow as tf

from programs.nodes import learner as learner_node
from programs.runtime import checkpoints
from programs.runtime import stopping
from tests import processes

SECONDS = 20.  # Long enough for whatever has to happen.


class FakeLearner:
  """Steps like the real one, and can be held up where that can be.

  Attributes:
    batch_there: while it is cleared, a step waits for its batch.
    may_finish: while it is cleared, a step waits with half of it done.
    shard_answers: while it is cleared, a step waits once variables have changed.
    is_held_up: set while it waits for one of them.
  """

  def __init__(self, num_steps=0):
    self._lock = threading.RLock()
    # Whole steps leave both at the same number.
    self.begun = tf.Variable(num_steps, dtype=tf.int64)
    self.finished = tf.Variable(num_steps, dtype=tf.int64)
    self.state = {'begun': self.begun, 'num_steps': self.finished}
    self.batch_there, self.may_finish = threading.Event(), threading.Event()
    self.batch_there.set()
    self.may_finish.set()
    self.shard_answers = threading.Event()
    self.shard_answers.set()
    self.is_held_up = threading.Event()
    self._steps_since_metrics = 0
    self.fails_at = None
    self.is_restored = False

  def step(self):
    if self.num_steps == self.fails_at:
      raise ValueError('no such batch')
    self._wait_for(self.batch_there)
    with self._lock:
      self.begun.assign_add(1)
      time.sleep(0.001)
      self._wait_for(self.may_finish)
      self.finished.assign_add(1)
    self._wait_for(self.shard_answers)
    with self._lock:
      self._steps_since_metrics += 1

  def _wait_for(self, event):
    deadline = time.monotonic() + SECONDS
    while not event.wait(0.01):
      self.is_held_up.set()
      assert time.monotonic() < deadline
    self.is_held_up.clear()

  @property
  def num_steps(self):
    return int(self.finished.numpy())

  def metrics(self):
    if not self._steps_since_metrics:
      return {}
    self._steps_since_metrics = 0
    return {'loss': float(self.num_steps)}

  def get_variables(self, names):
    return [[self.finished.numpy()] for _ in names]

  def on_restore(self):
    self.is_restored = True

  def reconstructions(self):
    return np.full([4, 6, 1], self.num_steps, np.uint8)

  @contextlib.contextmanager
  def paused(self):
    with self._lock:
      yield


class FakeCounter(core.Saveable):
  """Keeps what it is told, in order."""

  def __init__(self):
    self.steps = 0
    self.metrics = []
    self.pictures = []
    self.events = []
    self.restored = None

  def record_learning(self, num_steps, metrics):
    self.steps = num_steps
    self.metrics.append(metrics)

  def record_picture(self, png):
    self.pictures.append(tf.io.decode_png(png).numpy())

  def learner_done(self, num_steps, metrics):
    self.record_learning(num_steps, metrics)
    self.events.append('learner_done')

  def save(self):
    self.events.append('save')
    return {'steps': self.steps}

  def restore(self, state):
    self.restored = state


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
  monkeypatch.setattr(stopping, '_AT_ONCE_SECONDS', 0.05)
  monkeypatch.setattr(stopping, '_GRACE_SECONDS', 0.05)


class Node:
  """A worker with a fake learner and counter, run in a thread."""

  def __init__(self, run_dir, learner=None, checkpoint_minutes=60.,
               statistics=dict, counter=None):
    self.run_dir = str(run_dir)
    self.learner = learner or FakeLearner()
    self.counter = counter or FakeCounter()
    self.should_stop = threading.Event()
    self.worker = learner_node.LearnerWorker(
        self.learner, self.counter, self.run_dir, checkpoint_minutes,
        self.should_stop, statistics)
    self._thread = threading.Thread(target=self.worker.run, daemon=True)

  def start(self):
    self._thread.start()
    return self

  def stop(self):
    self.should_stop.set()

  def join(self):
    self._thread.join(SECONDS)
    assert not self._thread.is_alive()

  def saved(self):
    """Returns the numbers in the newest checkpoint, begun and finished."""
    path = checkpoints.latest(self.run_dir)
    return tuple(int(tf.train.load_variable(
        path, f'learner/{name}/.ATTRIBUTES/VARIABLE_VALUE'))
                 for name in ('begun', 'num_steps'))


def wait_for(condition):
  processes.wait_for(condition, 'what a test waits for', SECONDS, 0.005)


def test_the_last_step_is_saved_once_and_then_told(tmp_path):
  node = Node(tmp_path).start()
  wait_for(lambda: node.learner.num_steps >= 5)
  node.stop()
  node.join()
  last = node.learner.num_steps
  assert node.saved() == (last, last)
  assert node.counter.steps == last
  assert node.counter.events == ['save', 'learner_done']


def test_without_a_step_nothing_is_saved_or_told(tmp_path):
  learner = FakeLearner()
  learner.batch_there.clear()
  node = Node(tmp_path, learner).start()
  node.stop()
  node.join()
  assert checkpoints.latest(node.run_dir) is None
  assert node.counter.events == [] and node.counter.metrics == []
  learner.batch_there.set()


def test_a_resumed_worker_begins_where_the_last_one_ended(tmp_path):
  first = Node(tmp_path).start()
  wait_for(lambda: first.learner.num_steps >= 3)
  first.stop()
  first.join()
  last = first.learner.num_steps
  second = Node(tmp_path)
  assert second.learner.is_restored and second.learner.num_steps == last
  # It says where it is: what was saved of the counter had been told before.
  wait_for(lambda: second.counter.steps == last)
  assert second.counter.restored['steps'] <= last
  # Those who ask get the restored weights.
  assert second.worker.get_variables(['version']) == [[last]]
  # Without any steps of its own it leaves the checkpoint be.
  path = checkpoints.latest(second.run_dir)
  second.should_stop.set()
  second.start().join()
  assert checkpoints.latest(second.run_dir) == path
  assert second.counter.events == []


def test_reports_and_checkpoints_on_the_way(tmp_path, monkeypatch):
  monkeypatch.setattr(learner_node, '_REPORT_SECONDS', 0.)
  node = Node(tmp_path, checkpoint_minutes=0.).start()
  wait_for(lambda: len(node.counter.events) >= 3)
  node.stop()
  node.join()
  # Each report is of all steps so far.
  losses = [metrics['loss'] for metrics in node.counter.metrics]
  assert losses == sorted(losses) and losses[-1] == node.learner.num_steps
  assert node.counter.steps == node.learner.num_steps
  assert node.saved() == (node.learner.num_steps,) * 2
  assert node.counter.events[-1] == 'learner_done'
  assert set(node.counter.events[:-1]) == {'save'}


def test_statistics_of_the_replay_join_the_metrics(tmp_path, monkeypatch):
  monkeypatch.setattr(learner_node, '_REPORT_SECONDS', 0.)
  node = Node(tmp_path, statistics=lambda: {'queue_fill': 0.25}).start()
  wait_for(lambda: node.counter.metrics and
           node.counter.metrics[-1].get('queue_fill') == 0.25)
  node.stop()
  node.join()


def test_pictures_are_drawn_at_once_and_then_rarely(tmp_path, monkeypatch):
  monkeypatch.setattr(learner_node, '_REPORT_SECONDS', 0.)
  node = Node(tmp_path).start()
  wait_for(lambda: len(node.counter.metrics) > 5)
  node.stop()
  node.join()
  picture, = node.counter.pictures
  assert picture.shape == (4, 6, 1) and len(np.unique(picture)) == 1


def test_a_learner_that_fails_is_saved_and_its_error_raised(tmp_path):
  learner = FakeLearner()
  learner.fails_at = 4
  node = Node(tmp_path, learner)
  with pytest.raises(ValueError, match='no such batch'):
    node.worker.run()
  assert node.saved() == (4, 4)
  assert node.counter.events == ['save', 'learner_done']


def test_a_counter_that_hangs_costs_no_checkpoint(tmp_path):
  answers = threading.Event()

  class Hanging(FakeCounter):
    def record_learning(self, num_steps, metrics):
      answers.wait(60.)

    def save(self):
      raise TimeoutError('deadline exceeded')  # As with `call_timeout`.

  node = Node(tmp_path, counter=Hanging()).start()
  wait_for(lambda: node.learner.num_steps > 5)
  began = time.monotonic()
  node.stop()
  node.join()
  assert time.monotonic() - began < 12.
  assert node.saved() == (node.learner.num_steps,) * 2
  answers.set()


def test_learning_goes_on_while_nothing_can_be_saved(tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(learner_node, '_REPORT_SECONDS', 0.05)
  obstacle = tmp_path / 'checkpoints'
  obstacle.write_text('not a directory')
  node = Node(tmp_path, checkpoint_minutes=0.001).start()
  failures = []

  def has_failed_thrice():
    failures.extend(line for line in capfd.readouterr().err.splitlines()
                    if 'no checkpoint could be saved' in line)
    return len(failures) >= 3

  wait_for(has_failed_thrice)
  obstacle.unlink()
  wait_for(lambda: checkpoints.latest(node.run_dir))
  node.stop()
  node.join()
  assert node.saved() == (node.learner.num_steps,) * 2


def test_a_last_step_that_cannot_be_saved_is_a_failure(tmp_path):
  (tmp_path / 'checkpoints').write_text('not a directory')
  node = Node(tmp_path)
  node.stop()
  node.learner.step()
  with pytest.raises(RuntimeError, match='the last step could not be saved'):
    node.worker.run()
  assert node.counter.events[-1] == 'learner_done'


def test_a_step_that_outlasts_the_patience_is_waited_for(tmp_path):
  learner = FakeLearner()
  node = Node(tmp_path, learner).start()
  wait_for(lambda: learner.num_steps >= 2)
  learner.may_finish.clear()
  wait_for(learner.is_held_up.is_set)
  last = learner.num_steps + 1
  # On a busy machine the first report, with the first checkpoint, may have come.
  before = checkpoints.latest(node.run_dir)
  node.stop()
  time.sleep(0.5)  # Patience has run out.
  assert checkpoints.latest(node.run_dir) == before
  learner.may_finish.set()
  node.join()
  assert node.saved() == (last, last)


def test_a_step_that_waits_for_a_shard_at_the_end_is_saved_and_told(
    tmp_path, monkeypatch):
  monkeypatch.setattr(learner_node, '_REPORT_SECONDS', 0.)
  learner = FakeLearner()
  node = Node(tmp_path, learner).start()
  wait_for(lambda: node.counter.steps >= 2)
  learner.shard_answers.clear()
  wait_for(learner.is_held_up.is_set)
  last = learner.num_steps
  assert node.counter.steps < last
  node.stop()
  node.join()
  assert node.saved() == (last, last)
  # And metrics stay what they were last.
  assert node.counter.steps == last
  assert 0. < node.counter.metrics[-1]['loss'] <= last
  learner.shard_answers.set()


@pytest.fixture
def slow_writes(monkeypatch):
  """Runs `during` within each checkpoint's writing, then gives it time to act."""
  hooks = []
  save = checkpoints.Saver.save

  def slowly(saver):
    for during in hooks:
      during()
    time.sleep(0.3)
    return save(saver)

  monkeypatch.setattr(checkpoints.Saver, 'save', slowly)
  return hooks.append


def test_no_step_begins_while_the_last_checkpoint_is_written(
    tmp_path, slow_writes):
  learner = FakeLearner()
  node = Node(tmp_path, learner).start()
  wait_for(lambda: learner.num_steps >= 2)
  learner.batch_there.clear()
  wait_for(learner.is_held_up.is_set)
  last = learner.num_steps
  # Which comes after patience has run out, in the middle of the writing.
  slow_writes(learner.batch_there.set)
  learner.may_finish.clear()  # Half a step would stay half.
  node.stop()
  node.join()
  assert node.saved() == (last, last)
  learner.may_finish.set()


def test_checkpoints_are_written_one_at_a_time(
    tmp_path, slow_writes, monkeypatch):
  monkeypatch.setattr(learner_node, '_REPORT_SECONDS', 0.)
  node = Node(tmp_path, checkpoint_minutes=0.)
  writing, overlaps = [], []

  save = checkpoints.Saver.save

  def watched(saver):
    overlaps.extend(writing)
    writing.append(threading.current_thread().name)
    is_saved = save(saver)
    writing.pop()
    return is_saved

  monkeypatch.setattr(checkpoints.Saver, 'save', watched)
  node.start()
  # Stopped in the middle of a checkpoint that outlasts the patience.
  wait_for(lambda: writing)
  node.stop()
  node.join()
  time.sleep(0.5)
  last = node.learner.num_steps
  assert overlaps == []
  assert node.saved() == (last, last)
