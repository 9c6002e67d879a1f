"""Weights in shared memory: whole, of the right process, and the latest."""

import multiprocessing
import os
import socket
import threading
import time

from acme import core
import numpy as np
import psutil
import pytest

from programs.runtime import weights

_SPAWN = multiprocessing.get_context('spawn')
NAMES = ('policy', 'version')


class Source(core.VariableSource):
  """Serves variables of which each element is the version."""
  version = 1

  def get_variables(self, names):
    collections = {'policy': [np.full([300, 200], self.version, np.float32),
                              np.full([5], self.version, np.float32)],
                   'version': [np.int64(self.version)]}
    return [collections[name] for name in names]


class Worker(Source):
  """What a source of weights asks for the memory."""

  def __init__(self, handle):
    self.handle = handle

  def shared_weights(self):
    return self.handle


def write_until_told(pipe):
  source = Source()
  shared = weights.SharedWeights(source, NAMES)
  pipe.send(shared.handle)
  while not pipe.poll():
    source.version += 1
    shared.publish()
  pipe.send(source.version)


@pytest.mark.slow
def test_another_process_reads_both_collections_of_the_same_step():
  ours, theirs = _SPAWN.Pipe()
  writer = _SPAWN.Process(target=write_until_told, args=(theirs,))
  writer.start()
  try:
    source = weights.SharedWeightsSource(ours.recv())
    seen = []
    while len(set(seen)) < 500:
      (matrix, vector), (version,) = source.get_variables(NAMES)
      assert (matrix == version).all() and (vector == version).all()
      seen.append(version)
    ours.send('stop')
    last = ours.recv()
    (matrix, vector), (version,) = source.get_variables(NAMES)
    assert version == last and (matrix == last).all()
  finally:
    ours.send('done')
    writer.join()
  assert seen == sorted(seen)
  assert matrix.shape == (300, 200) and matrix.dtype == np.float32
  assert vector.shape == (5,)
  assert version.dtype == np.int64
  # What was read stays, though the other side has gone.
  assert (matrix == last).all()


def test_what_was_read_stays_when_there_are_others():
  learner = Source()
  shared = weights.SharedWeights(learner, NAMES)
  source = weights.SharedWeightsSource(shared.handle)
  first, (first_version,) = source.get_variables(NAMES)
  learner.version = 2
  # Nobody has published them yet.
  assert source.get_variables(['version']) == [[1]]
  shared.publish()
  second, (second_version,) = source.get_variables(NAMES)
  assert (first_version, second_version) == (1, 2)
  assert all((x == 1).all() for x in first)
  assert all((x == 2).all() for x in second)


def test_collections_come_in_the_order_that_is_asked_for():
  source = weights.SharedWeightsSource(
      weights.SharedWeights(Source(), NAMES).handle)
  (version,), policy = source.get_variables(['version', 'policy'])
  assert version == 1 and [x.shape for x in policy] == [(300, 200), (5,)]
  with pytest.raises(KeyError, match='critic.*policy, version'):
    source.get_variables(['critic'])


def test_memory_of_this_machine_is_used_and_told(capsys):
  shared = weights.SharedWeights(Source(), NAMES)
  source = weights.NearestSource(Worker(shared.handle), 'actor/3')
  for _ in range(2):
    assert source.get_variables(['version']) == [[1]]
  line, = capsys.readouterr().out.splitlines()
  assert line == 'actor/3 has weights from memory shared with the learner.'


class FarLearner(Source):
  """A client of a learner whose memory this machine does not see."""

  def __init__(self, version, path='/nowhere'):
    self.version = version
    self.shared = weights.SharedWeights(self, NAMES)
    self.path = path
    self.pulls = 0

  def shared_weights(self):
    return self.shared.handle._replace(path=self.path)

  def newer_weights(self, number):
    token, latest, variables = self.shared.newer(number)
    self.pulls += variables is not None
    return token, latest, variables

  def step(self):
    self.version += 1
    self.shared.publish()


@pytest.mark.parametrize('what', ['nothing', 'pipe', 'short file', 'other memory'])
def test_a_learner_on_another_machine_is_asked_itself_and_told(
    tmp_path, capsys, what):
  # What the path of its memory may be on this machine.
  path = str(tmp_path / 'memory')
  other = weights.SharedWeights(Source(), NAMES)
  if what == 'pipe':
    os.mkfifo(path)
  elif what == 'short file':
    with open(path, 'wb') as f:
      f.write(b'short')
  elif what == 'other memory':
    path = other.handle.path
  source = weights.NearestSource(FarLearner(7, path), 'evaluator')
  assert source.get_variables(['version']) == [[7]]
  line, = capsys.readouterr().out.splitlines()
  assert line.startswith('evaluator has weights from the learner, on another')


def get_until(source, version, seconds=20.):
  """Asks until the version has come; returns that collections were of one step."""
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    (matrix, _), (now,) = source.get_variables(NAMES)
    assert (matrix == now).all()
    if now == version:
      return
    time.sleep(0.01)
  raise AssertionError(f'still at version {now}')


def test_one_process_asks_a_far_learner_for_all_of_its_machine(capsys):
  learner = FarLearner(1)
  sources = [weights.NearestSource(learner, f'actor/{i}') for i in range(5)]
  for _ in range(3):
    for source in sources:
      get_until(source, learner.version)
    learner.step()
  for source in sources:
    get_until(source, 4)
  assert learner.pulls == 4  # One for each version, not for each source.
  time.sleep(0.5)
  assert learner.pulls == 4  # Nor where there is nothing new.
  lines = capsys.readouterr().out.splitlines()
  assert sum('for all processes of this one' in line for line in lines) == 1
  assert sum('process of this machine that gets' in line for line in lines) == 4


def test_a_mirror_is_hardly_behind_memory_of_the_same_machine():
  learner = FarLearner(1)
  near = weights.SharedWeightsSource(learner.shared.handle)
  far = weights.NearestSource(learner, 'actor/0')
  published, behind = {}, []
  for _ in range(100):
    learner.step()
    published[learner.version] = time.monotonic()
    time.sleep(0.02)
    [[here]], [[there]] = (s.get_variables(['version']) for s in (near, far))
    assert here == learner.version
    behind.append(published[here] - published.get(there, 0.))
  # It asks ten times a second: it is half of that behind, and what asking takes,
  # which on a busy machine may be much.
  assert np.median(behind) < 0.5


def test_a_mirror_ends_with_its_learner(capsys):
  learner = FarLearner(1)
  sources = [weights.NearestSource(learner, f'actor/{i}') for i in range(2)]
  for source in sources:
    get_until(source, 1)
  # It is started anew, from an older checkpoint.
  learner.shared = weights.SharedWeights(learner, NAMES)
  learner.version = 0
  learner.shared.publish()
  for source in sources:
    get_until(source, 0)
  assert capsys.readouterr().out.count('for all processes of this one') == 2


def test_readers_that_have_gone_or_are_anothers_leave_a_mirror_as_it_is(monkeypatch):
  learner = FarLearner(1)
  get_until(weights.NearestSource(learner, 'actor/0'), 1)
  name = weights._name(learner.shared.handle)
  for _ in range(3):
    with socket.socket(socket.AF_UNIX) as impatient:
      impatient.connect(name)
  monkeypatch.setattr(weights, '_is_ours', lambda peer: False)
  with socket.socket(socket.AF_UNIX) as stranger:
    stranger.connect(name)
    stranger.settimeout(20.)
    assert stranger.recv(1) == b''  # It is closed, with nothing sent.
  monkeypatch.undo()
  get_until(weights.NearestSource(learner, 'actor/1'), 1)
  assert learner.pulls <= 1


def test_a_mirror_keeps_no_descriptor_of_readers_that_have_gone():
  learner = FarLearner(1)
  get_until(weights.NearestSource(learner, 'actor/0'), 1)
  before = psutil.Process().num_fds()
  for _ in range(20):
    with socket.socket(socket.AF_UNIX) as short_lived:
      short_lived.connect(weights._name(learner.shared.handle))
      assert short_lived.recv(1) == b'.'
  assert psutil.Process().num_fds() <= before + 2


def test_a_mirror_leaves_no_thread_behind():
  learner = FarLearner(1)
  before = set(threading.enumerate())
  get_until(weights.NearestSource(learner, 'actor/0'), 1)
  threads = set(threading.enumerate()) - before
  assert len(threads) == 2
  learner.shared = weights.SharedWeights(learner, NAMES)
  for thread in threads:
    thread.join(20.)
    assert not thread.is_alive()


def test_a_mirror_goes_on_while_its_learner_is_away():
  class Away(FarLearner):
    is_away = False

    def newer_weights(self, number):
      if self.is_away:
        raise RuntimeError('socket closed')
      return super().newer_weights(number)

  learner = Away(1)
  first, second = [weights.NearestSource(learner, f'actor/{i}') for i in range(2)]
  get_until(first, 1)
  learner.is_away = True
  learner.step()
  time.sleep(0.5)
  get_until(second, 1)
  learner.is_away = False
  get_until(second, 2)


def mirror(pipe, token):
  """A process that asks a learner, of which there is one for each here."""
  learner = FarLearner(5)
  learner.shared = weights.SharedWeights(learner, NAMES, token)
  weights.NearestSource(learner, 'actor/0').get_variables(NAMES)
  pipe.send('ready')
  pipe.recv()


def test_another_process_takes_the_place_of_a_mirror_that_is_killed():
  learner = FarLearner(7)
  ours, theirs = _SPAWN.Pipe()
  process = _SPAWN.Process(target=mirror, daemon=True,
                           args=(theirs, learner.shared.handle.token))
  process.start()
  assert ours.recv() == 'ready'
  source = weights.NearestSource(learner, 'actor/1')
  get_until(source, 5)  # Of the mirror, not of the learner.
  assert learner.pulls == 0
  process.kill()
  process.join()
  get_until(source, 7)


def hold(pipe, version):
  """A learner's process: shares weights until it is killed."""
  source = Source()
  source.version = version
  pipe.send(weights.SharedWeights(source, NAMES).handle)
  pipe.recv()


def test_a_learner_that_is_restarted_is_found_again(capsys):
  class Learner(Source):
    """A client of one; fails while it is away, as Courier does."""
    handle = None

    def shared_weights(self):
      if self.handle is None:
        raise RuntimeError('socket closed')
      return self.handle

  def start(version):
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=hold, args=(theirs, version), daemon=True)
    process.start()
    learner.handle = ours.recv()
    return process

  learner = Learner()
  source = weights.NearestSource(learner, 'actor/0')
  first = start(3)
  assert source.get_variables(['version']) == [[3]]
  first.kill()
  first.join()
  learner.handle = None
  # Meanwhile, the last weights are good enough.
  assert source.get_variables(['version']) == [[3]]
  second = start(2)
  assert source.get_variables(['version']) == [[2]]
  second.kill()
  assert capsys.readouterr().out.count('memory shared with the learner') == 2
