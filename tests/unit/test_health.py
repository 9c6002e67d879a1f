"""Warnings, from rows of progress."""

import csv
import pathlib

import pytest

from programs.runtime import health

ROOT = pathlib.Path(__file__).parents[2]
HEALTHY = {
    'learner_wait_fraction': 0.5, 'queue_fill': 0.1, 'entropy': 1.5,
    'episode_return_mean_100': 0., 'explained_variance': 0.8, 'clip_fraction': 0.1,
    'approximate_kl': 0.02,
    'learning_rate': 7e-4, 'skipped_updates': 0}
SICK = {
    'starved': {'learner_wait_fraction': 0.99, 'queue_fill': 0.},
    'held up': {'learner_wait_fraction': 0.01, 'queue_fill': 1.},
    'collapsed': {'entropy': 0.001, 'episode_return_mean_100': -20.},
    'diverge': {'explained_variance': -3.},
    'stays as it is': {'clip_fraction': 0., 'approximate_kl': 1e-8},
    'skipped': {'skipped_updates': 3},
}


class Run:
  """A run's rows, one after the other."""

  def __init__(self):
    self._watch = health.Watch()
    self._steps = 0

  def rows(self, number, new_steps=10, **values):
    """Returns the warnings of so many rows."""
    lines = []
    for _ in range(number):
      self._steps += new_steps
      lines += self._watch.warnings(
          {**HEALTHY, 'learner_steps': self._steps, **values})
    return lines


@pytest.fixture
def run():
  run = Run()
  assert run.rows(30) == []
  return run


@pytest.mark.parametrize('what', SICK)
def test_what_lasts_is_warned_of_once_and_again_once_it_was_over(run, what):
  assert run.rows(11, **SICK[what]) == []
  warning, = run.rows(30, **SICK[what])
  assert what in warning
  assert run.rows(5) == []
  again, = run.rows(12, **SICK[what])
  assert again == warning


@pytest.mark.parametrize('what', SICK)
def test_what_comes_and_goes_is_not(run, what):
  for _ in range(10):
    assert run.rows(11, **SICK[what]) + run.rows(1) == []


@pytest.mark.parametrize('what', SICK)
def test_rows_without_a_step_of_the_learner_tell_nothing(run, what):
  assert run.rows(50, new_steps=0, **SICK[what]) == []


def test_a_policy_that_is_sure_and_good_has_not_collapsed(run):
  run.rows(1, episode_return_mean_100=-20.)
  assert run.rows(30, entropy=0.001, episode_return_mean_100=18.) == []


def test_a_policy_may_rest_as_its_learning_rate_does(run):
  assert run.rows(30, clip_fraction=0., approximate_kl=1e-8,
                  learning_rate=1e-5) == []


def test_a_policy_that_learns_once_from_each_timestep_is_well(run):
  assert run.rows(30, clip_fraction=0., approximate_kl=1e-4) == []


def test_columns_that_are_missing_tell_nothing():
  watch = health.Watch()
  for step in range(1, 50):
    assert watch.warnings({'learner_steps': step}) == []


@pytest.mark.parametrize('path', sorted(
    path for path in (ROOT / 'benchmarks' / 'results').glob('*/*/*/progress.csv')
    if not path.parts[-3].startswith('peer_')),
    ids=lambda path: '/'.join(path.parts[-4:-1]))
def test_no_kept_run_was_ill(path):
  watch = health.Watch()
  with open(path, newline='') as f:
    rows = [{name: float(value) for name, value in row.items()}
            for row in csv.DictReader(f)]
  assert [line for row in rows for line in watch.warnings(row)] == []
