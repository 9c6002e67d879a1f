"""Evaluations: which episodes count, and when they are due."""

import threading

import numpy as np
import pytest

from programs.nodes import evaluator as evaluator_lib
from programs.runtime import records
from tests import scripted

# Short ones are over long before the first long one.
SHORT = [[1.], [2.], [3.], [4.]]
LONG = [[0.5] * 20, [1.] * 20]


@pytest.mark.parametrize('num_episodes, expected', [
    (5, [1., 2., 3., 10., 20.]), (4, [1., 2., 10., 20.]), (1, [1.]),
    (2, [1., 10.]),
])
def test_short_episodes_are_not_favoured(num_episodes, expected):
  environment = scripted.ScriptedEnvironment([SHORT, LONG])
  returns = evaluator_lib.play_episodes(
      environment, scripted.ScriptedActor(), num_episodes)
  assert sorted(returns) == expected


def test_episodes_are_shared_out_evenly():
  environments = [[[float(i)]] for i in range(4)]
  returns = evaluator_lib.play_episodes(
      scripted.ScriptedEnvironment(environments), scripted.ScriptedActor(), 10)
  np.testing.assert_array_equal(np.bincount(np.array(returns, int)), [3, 3, 2, 2])


def test_a_stopped_evaluation_gives_up():
  should_stop = threading.Event()

  class Actor(scripted.ScriptedActor):

    def select_action(self, observation):
      if observation[0, 0] == 2:  # In its third episode.
        should_stop.set()
      return super().select_action(observation)

  returns = evaluator_lib.play_episodes(
      scripted.ScriptedEnvironment([SHORT]), Actor(), 10, should_stop)
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
                          script).run()
  assert all(environment.is_closed for environment in made)
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
                          script).run()
  assert logger.rows == []
