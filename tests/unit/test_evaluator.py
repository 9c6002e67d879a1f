"""Evaluations: which episodes count, and when they are due."""

import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from programs.nodes import evaluator as evaluator_lib
from programs.runtime import records
from tests import scripted

# Short ones are over long before the first long one.
SHORT = [[1.], [2.], [3.], [4.]]
LONG = [[0.5] * 20, [1.] * 20]
ENDLESS = [[1.] * 10**6]
MANY = 10**6


@pytest.mark.parametrize('num_episodes, expected', [
    (5, [1., 2., 3., 10., 20.]), (4, [1., 2., 10., 20.]), (1, [1.]),
    (2, [1., 10.]),
])
def test_short_episodes_are_not_favoured(num_episodes, expected):
  environment = scripted.ScriptedEnvironment([SHORT, LONG])
  returns = evaluator_lib.play_episodes(
      environment, scripted.ScriptedActor(), num_episodes, MANY)
  assert sorted(returns) == expected


def test_episodes_are_shared_out_evenly():
  environments = [[[float(i)]] for i in range(4)]
  returns = evaluator_lib.play_episodes(
      scripted.ScriptedEnvironment(environments), scripted.ScriptedActor(), 10,
      MANY)
  np.testing.assert_array_equal(np.bincount(np.array(returns, int)), [3, 3, 2, 2])


@pytest.mark.parametrize('episodes, num_episodes, expected, num_cut', [
    ([ENDLESS], 3, [7., 7., 7.], 3),
    # A cut one waits for the others, and begins anew with them: short ones are
    # played as often as they were to be.
    ([ENDLESS, SHORT], 4, [1., 2., 7., 7.], 2),
    ([ENDLESS, LONG], 4, [3.5, 3.5, 7., 7.], 4),
    ([[[1.] * 7]], 2, [7., 7.], 0),  # Ends just in time.
    ([[[1.] * 8]], 2, [7., 7.], 2),
])
def test_episodes_that_do_not_end_are_cut(episodes, num_episodes, expected,
                                          num_cut, capsys):
  returns = evaluator_lib.play_episodes(
      scripted.ScriptedEnvironment(episodes), scripted.ScriptedActor(),
      num_episodes, 7)
  assert sorted(returns) == expected
  told = capsys.readouterr().out
  if num_cut:
    assert told.startswith(f'{num_cut} of {num_episodes} episodes had no end '
                           'after 7 steps (--max_episode_steps)')
  else:
    assert told == ''


def test_a_stopped_evaluation_gives_up():
  should_stop = threading.Event()

  class Actor(scripted.ScriptedActor):

    def select_action(self, observation):
      if observation[0, 0] == 2:  # In its third episode.
        should_stop.set()
      return super().select_action(observation)

  returns = evaluator_lib.play_episodes(
      scripted.ScriptedEnvironment([SHORT]), Actor(), 10, MANY, should_stop)
  assert returns == [1., 2., 3.]


class Script:
  """Counts timesteps as written, one number a poll, and stops at their end."""

  def __init__(self, timesteps):
    self._timesteps = iter(timesteps)
    self._next = next(self._timesteps)

  def get_counts(self):
    return {'actor_steps': self._next} if self._next else {}

  def wait(self, seconds):
    assert seconds == evaluator_lib._POLL_SECONDS
    self._next = next(self._timesteps, None)
    return self._next is None

  def is_set(self):
    return False


class Rows:
  """A logger that keeps its rows."""

  def __init__(self):
    self.rows = []

  def write(self, data):
    self.rows.append(data)


def evaluate(timesteps, interval):
  """Returns rows, and what the actor was told."""
  script, logger, actor = Script(timesteps), Rows(), scripted.ScriptedActor()
  made = []

  def make_environment():
    made.append(scripted.ScriptedEnvironment([SHORT]))
    return made[-1]

  evaluator_lib.Evaluator(make_environment, actor, script, logger, 2, interval,
                          MANY, script).run()
  environment, = made
  assert environment.is_closed
  return logger.rows, actor.calls


@pytest.mark.parametrize('timesteps, evaluated', [
    ([0, 50, 99, 100, 150], [100]),
    # Late is better than never, but what was missed is not made up for.
    ([0, 130, 150, 199, 410, 420, 500], [130, 410, 500]),
    # A resumed run goes on where the next one is due.
    ([250, 260, 299, 300], [300]),
    ([300, 310, 399, 400], [400]),
])
def test_evaluations_are_due_at_multiples_of_the_interval(timesteps, evaluated):
  rows, _ = evaluate(timesteps, 100)
  assert [row['timesteps'] for row in rows] == evaluated


def test_each_evaluation_is_of_the_latest_weights():
  _, calls = evaluate([0, 100, 200], 100)
  # An episode's step and its reset, twice: less the last reset.
  assert [name for name, _ in calls] == 2 * (['update'] + 3 * ['select_action'])
  assert all(wait for name, wait in calls if name == 'update')


def test_a_row_describes_the_returns():
  (row,), _ = evaluate([0, 100], 100)
  assert row == records.evaluation_row(100, [1., 2.])
  assert row == {'timesteps': 100, 'episodes': 2, 'return_mean': 1.5,
                 'return_std': 0.5, 'return_min': 1., 'return_max': 2.}


def test_an_evaluation_that_was_broken_off_leaves_no_row():
  class Stopped(Script):

    def is_set(self):
      return True

  script, logger = Stopped([0, 100]), Rows()
  evaluator_lib.Evaluator(lambda: scripted.ScriptedEnvironment([SHORT]),
                          scripted.ScriptedActor(), script, logger, 2, 100,
                          MANY, script).run()
  assert logger.rows == []


EVALUATIONS = """
import agents
import threading
import types

import numpy as np

from agents import games
from programs import config as config_lib
from programs.nodes import evaluator
from tests import heap

NUM_EVALUATIONS = 10
should_stop = threading.Event()
ready = threading.Barrier(2)
held = []


def stay():
  # Takes a heap that is free, and keeps it, as some threads of gRPC do.
  bytes(10_000)
  ready.wait()
  should_stop.wait()


class Counter:

  def get_counts(self):
    held.append(heap.held())
    threading.Thread(target=stay, daemon=True).start()
    ready.wait()
    if len(held) > NUM_EVALUATIONS:
      should_stop.set()
    return {'actor_steps': len(held)}

  def record_evaluation(self, mean_return):
    pass


class Actor:

  def update(self, wait):
    # As weights do, this lets glibc keep all that is freed and not larger.
    np.ones(2**20)

  def select_action(self, observation):
    return np.zeros(len(observation), int)


def make_environment(num_envs, seed):
  return games.EnvironmentConfig('pong').make(num_envs, seed)


evaluator._POLL_SECONDS = 0.
evaluator.run(
    types.SimpleNamespace(
        config=config_lib.RunConfig(
            run_dir='.', evaluation_interval=1, evaluation_episodes=4,
            max_episode_steps=10),
        make_policy=lambda evaluation: {True: None}[evaluation],
        builder=types.SimpleNamespace(make_actor=lambda *_, **__: Actor()),
        environment_factory=make_environment),
    None, Counter(), should_stop)
print('grew by', held[-1] - held[4])
"""


@pytest.mark.slow
def test_evaluations_leave_no_memory_behind(tmp_path):
  root = pathlib.Path(__file__).parents[2]
  result = subprocess.run(
      [sys.executable, '-c', EVALUATIONS], capture_output=True, text=True,
      cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(root)}, timeout=300)
  *_, grew = result.stdout.split()
  # 2.7 MB each time, if each made environments, and so a thread, anew.
  assert int(grew) < 4e6, result.stderr
