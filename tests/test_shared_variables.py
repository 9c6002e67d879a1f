"""Weights in shared memory: whole, of the right process, and the latest."""

import multiprocessing
import os

from acme import core
import numpy as np
import pytest

from agents import shared_variables

_SPAWN = multiprocessing.get_context('spawn')


class Source(core.VariableSource):
  """Serves variables of which each element is the version."""
  version = 1

  def get_variables(self, names):
    assert names == ['policy']
    return [[np.full([300, 200], self.version, np.float32),
             np.full([5], self.version, np.float32), np.int64(self.version)]]


def write_until_told(pipe):
  source = Source()
  shared = shared_variables.SharedVariables(source, 'policy')
  pipe.send(shared.handle)
  while not pipe.poll():
    source.version += 1
    shared.update()
  pipe.send(source.version)


def test_another_process_reads_whole_versions_while_they_are_written():
  ours, theirs = _SPAWN.Pipe()
  writer = _SPAWN.Process(target=write_until_told, args=(theirs,))
  writer.start()
  try:
    source = shared_variables.SharedVariableSource(ours.recv())
    seen = []
    while len(set(seen)) < 500:
      (weights, biases, version), = source.get_variables(['policy'])
      assert (weights == version).all() and (biases == version).all()
      seen.append(version)
    ours.send('stop')
    last = ours.recv()
    (weights, biases, version), = source.get_variables(['policy'])
    assert version == last and (weights == last).all()
  finally:
    ours.send('done')
    writer.join()
  assert seen == sorted(seen)
  assert weights.shape == (300, 200) and weights.dtype == np.float32
  assert biases.shape == (5,)
  assert version.dtype == np.int64
  # What was read stays, though the other side has gone.
  assert (weights == last).all()


def test_variables_are_the_same_list_until_there_are_others():
  learner = Source()
  shared = shared_variables.SharedVariables(learner, 'policy')
  source = shared_variables.SharedVariableSource(shared.handle)
  first, = source.get_variables(['policy'])
  assert source.get_variables(['policy'])[0] is first
  learner.version = 2
  shared.update()
  second, = source.get_variables(['policy'])
  assert second is not first
  assert first[-1] == 1 and (first[0] == 1).all()
  assert second[-1] == 2 and (second[0] == 2).all()
  with pytest.raises(KeyError, match='critic.*policy'):
    source.get_variables(['critic'])


class Worker:

  def __init__(self, handle):
    self.handle = handle

  def shared_variables(self):
    return self.handle


def test_a_worker_of_another_machine_is_asked_itself(tmp_path):
  shared = shared_variables.SharedVariables(Source(), 'policy')
  near = Worker(shared.handle)
  assert isinstance(shared_variables.nearest_source(near),
                    shared_variables.SharedVariableSource)

  # What the path may be there: nothing, a pipe, a shorter file, other memory.
  pipe, short = str(tmp_path / 'pipe'), str(tmp_path / 'short')
  os.mkfifo(pipe)
  with open(short, 'wb') as f:
    f.write(b'short')
  other = shared_variables.SharedVariables(Source(), 'policy').handle.path
  for path in (str(tmp_path / 'none'), pipe, short, other):
    far = Worker(shared.handle._replace(path=path))
    assert shared_variables.nearest_source(far) is far
