"""The counter: what it counts, when it writes rows, and which is the last."""

import os
import shutil
import types

import numpy as np
import pytest

from programs.nodes import counter as counter_lib
from programs.nodes import limiter as limiter_lib
from programs.runtime import collectors
from programs.runtime import records

PERIOD = 5.


class Rows:
  """A logger that keeps its rows, and the time of each."""

  def __init__(self, script):
    self._script = script
    self.rows, self.times = [], []

  def write(self, data):
    self.rows.append(data)
    self.times.append(self._script.now)

  def close(self):
    pass


class Script:
  """The time, what happens when, and the program's end; no second is waited.

  Attributes:
    now: seconds since the start.
  """

  def __init__(self, end):
    self.now = 0.
    self._end = end
    self._events = []

  def at(self, seconds, function, *args):
    self._events.append((seconds, lambda: function(*args)))

  def monotonic(self):
    return 1000. + self.now

  def wait(self, seconds):
    self.now = round(self.now + seconds, 6)
    for event in [e for e in self._events if e[0] <= self.now]:
      self._events.remove(event)
      event[1]()
    return self.now >= self._end

  def make_counter(self, monkeypatch, logger=None, limiter=None, **kwargs):
    monkeypatch.setattr(counter_lib, 'time',
                        types.SimpleNamespace(monotonic=self.monotonic))
    self.logger = logger or Rows(self)
    return counter_lib.RunCounter(
        self.logger, limiter or limiter_lib.Limiter(10**9, None, lambda: None),
        PERIOD, self, **kwargs)


@pytest.fixture(autouse=True)
def no_farewell(monkeypatch):
  """Nobody is waited for who does not come."""
  monkeypatch.setattr(counter_lib, '_FAREWELL_SECONDS', 0.)


def act_steadily(script, counter, begin, end, per_second=100):
  for second in range(begin, end):
    script.at(second, counter.record_acting, per_second, [])


def test_the_window_holds_the_last_returns():
  window = counter_lib.ReturnsWindow(size=3)
  assert np.isnan(window.mean()) and not window.is_full
  window.extend([1., 2.])
  assert window.mean() == 1.5 and not window.is_full
  window.extend([6., 7.])
  assert window.tolist() == [2., 6., 7.] and window.mean() == 5.
  assert window.is_full
  assert not counter_lib.ReturnsWindow().is_full


def test_a_window_is_of_a_hundred():
  window = counter_lib.ReturnsWindow()
  window.extend(range(99))
  assert not window.is_full
  window.extend([99, 100])
  assert window.is_full and window.tolist() == list(range(1, 101))


def test_counts_of_all_nodes_add_up(monkeypatch):
  script = Script(end=1.)
  counter = script.make_counter(monkeypatch)
  assert counter.get_counts() == {'walltime': 0.}
  counter.record_acting(30, [1., 2.])
  counter.record_acting(12, [])
  counter.record_learning(5, {})
  counter.record_learning(7, {})  # All steps so far.
  script.now = 7.5
  assert counter.get_counts() == {
      'actor_steps': 42, 'actor_episodes': 2, 'bad_numbers': 0,
      'learner_steps': 7, 'walltime': 7.5}


def test_rows_begin_a_period_after_the_first_timestep_and_come_once_each(
    monkeypatch):
  script = Script(end=51.)
  counter = script.make_counter(monkeypatch)
  act_steadily(script, counter, begin=32, end=60)  # Nodes start for a while.
  counter.run()
  np.testing.assert_allclose(script.logger.times, [37., 42., 47., 51.], atol=0.11)
  # Rates are of the time between rows, and the start-up is none of it. The first
  # report was of work before: six of them came in five seconds.
  rates = [row['timesteps_per_second'] for row in script.logger.rows]
  np.testing.assert_allclose(rates[:3], [120., 100., 100.])


def test_without_a_timestep_there_is_no_row(monkeypatch):
  script = Script(end=60.)
  script.make_counter(monkeypatch).run()
  assert script.logger.rows == []


def test_a_row_tells_all_that_is_known(monkeypatch):
  script = Script(end=6.)
  counter = script.make_counter(monkeypatch)
  script.at(0.1, counter.record_acting, 100, [1., 2.])
  script.at(2., counter.record_acting, 400, [6.])
  script.at(3., counter.record_learning, 2, {'loss': 9.})
  script.at(4., counter.record_learning, 5, {
      'loss': 0.5, 'wait_fraction': 0.25, 'timesteps_per_second': 1500.,
      'policy_lag': 1.5})
  counter.run()
  row = script.logger.rows[0]
  assert row == {
      'timesteps': 500, 'walltime_seconds': 5.1, 'episodes': 3,
      'episode_return_mean_100': 3., 'timesteps_per_second': 500 / 5,
      'learner_steps': 5, 'learner_timesteps_per_second': 1500.,
      'learner_wait_fraction': 0.25, 'loss': 0.5, 'policy_lag': 1.5,
      'restarts': 0, 'bad_numbers': 0, records.RETURNS: [1., 2., 6.]}
  assert set(row) - {records.RETURNS} <= set(records.PROGRESS_COLUMNS)


def test_metrics_of_ones_own_take_no_others_place(monkeypatch):
  script = Script(end=6.)
  counter = script.make_counter(monkeypatch)
  script.at(0.1, counter.record_acting, 100, [1.])
  script.at(4., counter.record_learning, 5, {'my_loss': 0.5, 'timesteps': 7.,
                                             'restarts': 8.})
  counter.run()
  row = script.logger.rows[0]
  assert (row['my_loss'], row['timesteps'], row['restarts']) == (0.5, 100, 0)


def test_what_comes_now_and_then_is_in_the_next_row_only(monkeypatch):
  script = Script(end=16.)
  counter = script.make_counter(monkeypatch)
  script.at(0.1, counter.record_acting, 100, [])
  script.at(6., counter.record_picture, b'one')
  script.at(7., counter.record_picture, b'two')
  script.at(8., counter.record_evaluation, 3.)
  counter.run()
  extras = [{name: row[name] for name in (records.PICTURE, records.EVALUATION)
             if name in row} for row in script.logger.rows]
  assert extras == [{}, {records.PICTURE: b'two', records.EVALUATION: 3.}, {}, {}]


def test_what_nodes_wait_for_is_announced_as_it_changes(monkeypatch):
  script, said = Script(end=4.), []
  counter = script.make_counter(
      monkeypatch, nodes=['learner', 'actor/0'],
      announce=lambda waits_for: said.append((script.now, waits_for)))
  script.at(1., counter.record_start, 'learner', 'the replay')
  script.at(2., counter.record_start, 'learner', 'the replay')
  script.at(3., counter.record_acting, 1, [])
  script.at(3.5, counter.record_start, 'learner', 'too late to matter')
  counter.run()
  first = dict.fromkeys(['learner', 'actor/0'], 'a first sign of life')
  assert [waits_for for _, waits_for in said] == [
      first, {**first, 'learner': 'the replay'}]
  assert said[1][0] == 1.


def test_before_the_learner_has_reported_it_waits(monkeypatch):
  script = Script(end=6.)
  counter = script.make_counter(monkeypatch)
  script.at(0.1, counter.record_acting, 100, [])
  counter.run()
  row = script.logger.rows[0]
  assert row['learner_steps'] == row['learner_timesteps_per_second'] == 0
  assert row['learner_wait_fraction'] == 1.
  assert np.isnan(row['episode_return_mean_100'])


def test_the_last_row_is_what_the_last_checkpoint_holds(monkeypatch):
  script = Script(end=3.)
  counter = script.make_counter(monkeypatch)
  script.at(1., counter.record_acting, 100, [4.])
  saved = []

  def say_farewell(seconds):
    # Actors go on for a moment while the learner saves.
    saved.append(counter.save())
    counter.record_acting(50, [8.])
    counter.record_learning(7, {})
    return True

  counter._learner_done = types.SimpleNamespace(
      wait=say_farewell, clear=lambda: None)
  counter.run()
  row = script.logger.rows[-1]
  assert saved == [{'counts': {'actor_steps': 100, 'actor_episodes': 1,
                               'bad_numbers': 0},
                    'returns': [4.], 'walltime': 3.}]
  assert (row['timesteps'], row['episodes'], row['learner_steps']) == (100, 1, 7)
  assert row['episode_return_mean_100'] == 4. and row['walltime_seconds'] == 3.


def test_the_farewell_of_a_learner_that_came_back_is_not_its_last(monkeypatch):
  script = Script(end=9.)
  counter = script.make_counter(monkeypatch)
  script.at(1., counter.record_acting, 100, [])
  script.at(2., counter.save)
  script.at(2., counter.learner_done, 5, {})  # It failed, and is started again.
  script.at(3., counter.record_learning, 4, {})
  script.at(7., counter.record_acting, 50, [])
  counter.run()
  assert [row['timesteps'] for row in script.logger.rows] == [100, 150]


def test_without_a_last_checkpoint_the_last_row_is_the_latest(monkeypatch):
  script = Script(end=3.)
  counter = script.make_counter(monkeypatch)
  script.at(1., counter.record_acting, 100, [])
  script.at(2., counter.save)  # An earlier checkpoint.
  script.at(2.5, counter.record_acting, 50, [])
  counter.run()
  assert [row['timesteps'] for row in script.logger.rows] == [150]


def test_a_restored_counter_goes_on(monkeypatch):
  script = Script(end=60.)
  before = script.make_counter(monkeypatch)
  script.at(1., before.record_acting, 1000, [3.] * 150)
  script.at(2., before.record_learning, 10, {})
  for _ in range(400):
    script.wait(0.1)
  state = before.save()

  script = Script(end=8.)
  counter = script.make_counter(monkeypatch)
  counter.restore(state)
  assert counter.get_counts() == {
      'actor_steps': 1000, 'actor_episodes': 150, 'bad_numbers': 0,
      'learner_steps': 10, 'walltime': 40.}
  script.at(2., counter.record_acting, 500, [103.])
  counter.run()
  row = script.logger.rows[0]
  assert row['timesteps'] == 1500 and row['learner_steps'] == 10
  assert row['episode_return_mean_100'] == 4. and row['episodes'] == 151
  # Counting again is no acting: rates are of this run only.
  assert row['timesteps_per_second'] == pytest.approx(100., rel=0.05)
  assert row['walltime_seconds'] == pytest.approx(40. + script.logger.times[0])
  # The state was not touched by going on.
  assert state['counts']['actor_steps'] == 1000 and len(state['returns']) == 100


@pytest.mark.parametrize('episodes, stopped', [(99, []), (100, [3.])])
def test_the_target_waits_for_a_hundred_episodes(monkeypatch, episodes, stopped):
  script, stops = Script(end=9.), []
  counter = script.make_counter(monkeypatch, limiter=limiter_lib.Limiter(
      10**9, 10., lambda: stops.append(script.now)))
  script.at(1., counter.record_acting, 1, [])
  script.at(3., counter.record_acting, 99, [20.] * episodes)
  counter.run()
  assert stops == stopped


def test_the_budget_is_of_timesteps(monkeypatch):
  script, stops = Script(end=9.), []
  counter = script.make_counter(monkeypatch, limiter=limiter_lib.Limiter(
      100, None, lambda: stops.append(script.now)))
  script.at(1., counter.record_acting, 99, [])
  script.at(2., counter.record_learning, 1000, {})
  script.at(3., counter.record_acting, 1, [])
  counter.run()
  assert stops == [3.]


def test_what_ends_a_run_has_a_row_though_the_mean_falls_again(monkeypatch):
  script = Script(end=9.)
  counter = script.make_counter(monkeypatch, limiter=limiter_lib.Limiter(
      10**9, 10., lambda: None))
  script.at(1., counter.record_acting, 1, [])
  script.at(3., counter.record_acting, 99, [10.] * 100)
  script.at(3.3, counter.record_acting, 50, [-5.] * 10)
  counter.run()
  assert [(row['timesteps'], row['episode_return_mean_100'])
          for row in script.logger.rows] == [(100, 10.), (150, 8.5)]
  assert script.logger.times == [3., 9.]


@pytest.mark.parametrize('obstacle', ['no directory', 'a directory in its place'])
def test_a_record_that_cannot_be_written_does_not_stop_the_run(
    monkeypatch, tmp_path, capsys, obstacle):
  run_dir = tmp_path / 'run'
  run_dir.mkdir()
  script, stops = Script(end=40.), []
  counter = script.make_counter(
      monkeypatch, collectors.progress_logger(str(run_dir), verbose=False),
      limiter_lib.Limiter(3000, None, lambda: stops.append(script.now)))
  act_steadily(script, counter, begin=1, end=40)
  if obstacle == 'no directory':
    script.at(12., shutil.rmtree, run_dir)
  else:
    path = run_dir / records.PROGRESS_FILE
    script.at(12., os.remove, path)
    script.at(12., os.mkdir, path)
  counter.run()
  warning, *_ = capsys.readouterr().err.splitlines()
  assert records.PROGRESS_FILE in warning and 'training goes on' in warning
  # It counted on, and ended the run when it was time.
  assert stops == [30.] and counter.get_counts()['actor_steps'] == 3900


def test_a_restarted_learner_does_not_turn_the_counts_back(monkeypatch):
  script = Script(end=1.)
  counter = script.make_counter(monkeypatch)
  saved = {'counts': {'actor_steps': 70, 'learner_steps': 4}, 'returns': [1.],
           'walltime': 9.}
  counter.restore(saved)
  assert counter.get_counts()['actor_steps'] == 70
  counter.record_acting(30, [3.])
  counter.record_learning(6, {})
  # The learner is back from its checkpoint; actors never stopped.
  counter.restore(saved)
  counter.record_learning(5, {})
  counts = counter.get_counts()
  assert (counts['actor_steps'], counts['learner_steps']) == (100, 5)


def test_a_restarted_counter_goes_on_from_its_last_row(monkeypatch, tmp_path):
  kept = records.KeptState(str(tmp_path))
  assert kept.read() is None
  script = Script(end=6.)
  counter = script.make_counter(monkeypatch, keep=kept.write)
  script.at(0.1, counter.record_acting, 100, [2., 4.])
  script.at(5.5, counter.record_acting, 50, [])
  killed = []  # What there is if it is killed, and has no last row.
  script.at(5.9, lambda: killed.append(kept.read()))
  counter.run()
  for state, timesteps, walltime in ((*killed, 100, 5.1), (kept.read(), 150, 6.)):
    second = Script(end=1.).make_counter(monkeypatch)
    second.restore(state)
    counts = second.get_counts()
    assert (counts['actor_steps'], counts['actor_episodes']) == (timesteps, 2)
    assert counts['walltime'] == pytest.approx(walltime)
  (tmp_path / 'counter.json').write_text('{"counts": {"act')
  assert kept.read() is None


def test_a_counter_that_dies_before_its_first_row_forgets_no_checkpoint(
    monkeypatch, tmp_path):
  kept = records.KeptState(str(tmp_path))
  counter = Script(end=1.).make_counter(monkeypatch, keep=kept.write)
  counter.restore({'counts': {'actor_steps': 70}, 'returns': [1.], 'walltime': 9.})
  second = Script(end=1.).make_counter(monkeypatch)
  second.restore(kept.read())
  assert second.get_counts()['actor_steps'] == 70


def test_a_start_that_takes_long_says_what_it_waits_for(monkeypatch, capsys):
  script = Script(end=400.)
  counter = script.make_counter(
      monkeypatch, nodes=['learner', *(f'actor/{i}' for i in range(5))])
  script.at(10, counter.record_start, 'learner', 'the replay')
  for i in range(4):
    script.at(70, counter.record_start, f'actor/{i}', 'weights')
  script.at(190, counter.record_acting, 10, [])
  counter.run()
  said = [line for line in capsys.readouterr().out.splitlines()
          if 'no timestep' in line]
  life = 'a first sign of life'
  assert said == [
      'counter: no timestep after 60 s; waiting for the replay (learner); '
      f'{life} (actor/0, actor/1, actor/2 and 2 more).',
      'counter: no timestep after 120 s; waiting for the replay (learner); '
      f'weights (actor/0, actor/1, actor/2 and 1 more); {life} (actor/4).',
      'counter: no timestep after 180 s; waiting for the replay (learner); '
      f'weights (actor/0, actor/1, actor/2 and 1 more); {life} (actor/4).']
