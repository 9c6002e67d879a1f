"""Learning curves of runs, and of groups of runs that differ only in their seed."""

import dataclasses
import os
import statistics
from typing import Any, Callable, Collection, Literal, Mapping, Sequence

import numpy as np
from scipy import stats

from agents import validation
from launch import files
from launch import settings as settings_lib
from programs.runtime import records

Statistic = Literal['mean', 'iqm']

# For each axis, its column and what to divide the values by.
AXES = {'timesteps': ('timesteps', 1.), 'minutes': ('walltime_seconds', 60.),
        'learner_steps': ('learner_steps', 1.)}
RETURN = 'episode_return_mean_100'

_POINTS = 200
_RESAMPLES = 2000
_CONFIDENCE = 0.95
_BOOTSTRAP_SEED = 0
# The settings of section `run` that can change what is learned or when.
_THAT_MATTER = ('num_actors', 'envs_per_actor', 'num_gpus', 'num_replay_shards')
_MOST_SETTINGS_TOLD = 3


@dataclasses.dataclass
class Run:
  """A run, as its directory describes it.

  Attributes:
    path: the directory.
    game: what it played.
    settings: by name, those that can distinguish it from other runs of the game.
    rows: its progress.
  """
  path: str
  game: str
  settings: Mapping[str, Any]
  rows: Sequence[Mapping[str, float]]


@dataclasses.dataclass
class Curve:
  """One curve for a group of runs.

  Attributes:
    x: [P] float64, from where all runs have begun to where the first has ended.
    centre: [P], the mean or the interquartile mean over runs.
    low: [P], the lower end of its 95% bootstrap interval; for one run, `centre`.
    high: [P], the upper end.
    num_runs: how many runs there are.
  """
  x: np.ndarray
  centre: np.ndarray
  low: np.ndarray
  high: np.ndarray
  num_runs: int


def read(run_dir: str, also: Collection[str] = ()) -> Run:
  """Reads a run.

  Runs of other versions can be read too. A setting that did not exist yet gets the
  value that matches what such runs did, or else its default. A setting that no
  longer exists is treated like any other.

  Args:
    run_dir: its directory.
    also: settings of section `run` that can distinguish it, beside the usual ones.

  Returns:
    The run.

  Raises:
    ValueError: if there is none; the message is one line.
  """
  path = os.path.join(run_dir, settings_lib.CONFIG_FILE)
  if not os.path.exists(path):
    raise ValueError(f'{run_dir} holds no run: it has no '
                     f'{settings_lib.CONFIG_FILE}.')
  content = files.read(path)
  values: dict[str, Any] = {}
  for section, config_class in settings_lib.SECTIONS.items():
    given = content.get(section) if isinstance(content, dict) else None
    if not isinstance(given, dict):
      raise ValueError(f'{path} is not the config of a run: it has no {section}.')
    known = {field.name: field.default
             for field in dataclasses.fields(config_class)
             if field.default is not dataclasses.MISSING}
    values |= {name: tuple(value) if isinstance(value, list) else value
               for name, value in {
                   **known, **settings_lib.unsaid(content, section), **given}.items()
               if section != 'run' or name in {*_THAT_MATTER, *also}}
  rows = records.read(os.path.join(run_dir, records.PROGRESS_FILE))
  if not rows:
    raise ValueError(f'{run_dir} has no rows in its {records.PROGRESS_FILE} yet.')
  return Run(run_dir, str(values.pop('game', '')), values, rows)


def group_by_settings(runs: Sequence[Run]) -> dict[str, list[Run]]:
  """Groups runs of one game by the settings in which any of them differ.

  Args:
    runs: of one game.

  Returns:
    The runs of each group, by its settings, such as 'learning_rate=0.001'; if no
    setting differs, by the name of the game. If many settings differ, a group is
    named by those that it does not share with most runs.
  """
  names = dict.fromkeys(name for run in runs for name in run.settings)
  assignments = {name: [_assignment(run, name) for run in runs] for name in names}
  differing = [name for name in names if len(set(assignments[name])) > 1]
  usual: Mapping[str, str] = {}
  if len(differing) > _MOST_SETTINGS_TOLD:
    usual = {name: statistics.mode(assignments[name]) for name in differing}
  groups: dict[str, list[Run]] = {}
  for i, run in enumerate(runs):
    label = ', '.join(assignments[name][i] for name in differing
                      if assignments[name][i] != usual.get(name))
    nothing = 'the most common settings' if usual else run.game
    groups.setdefault(label or nothing, []).append(run)
  return groups


def _assignment(run: Run, name: str) -> str:
  if name not in run.settings:
    return f'no {name}'
  value = run.settings[name]
  return f'{name}=' + (value if isinstance(value, str) else
                       ','.join(map(str, value)) if isinstance(value, tuple) else
                       validation.shown(value))


def points(run: Run, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns a run's points with finite y, in increasing order of x.

  Args:
    run: the run.
    x: one of `AXES`.
    y: a column of its rows.

  Raises:
    ValueError: if it has none; the message is one line.
  """
  column, scale = AXES[x]
  if y not in run.rows[0]:
    raise ValueError(f'{run.path} has no column {y}; there are '
                     f'{", ".join(run.rows[0])}.')
  pairs = sorted((row[column] / scale, row[y]) for row in run.rows
                 if np.isfinite(row[y]))
  if not pairs:
    raise ValueError(f'{run.path} has no {y} yet.')
  xs, ys = np.array(pairs).T
  return xs, ys


def aggregate(runs: Sequence[Run], x: str, y: str, statistic: Statistic) -> Curve:
  """Makes one curve from several runs of a game.

  Whole runs are resampled, not points. Games are never mixed, so the bootstrap is
  stratified by game.

  Args:
    runs: one or more.
    x: one of `AXES`.
    y: a column of their rows.
    statistic: the mean, or the interquartile mean. The latter leaves out the best
      and the worst quarter of runs, rounded down; with up to three runs it is the
      mean.

  Returns:
    The curve.

  Raises:
    ValueError: if the runs have no x in common; the message is one line.
  """
  curves = [points(run, x, y) for run in runs]
  begin = max(xs[0] for xs, _ in curves)
  end = min(xs[-1] for xs, _ in curves)
  if begin > end:
    raise ValueError(
        f'{", ".join(run.path for run in runs)} have no {x} in common; the last '
        f'of them begins at {begin:g}, and the first ends at {end:g}.')
  grid = np.linspace(begin, end, _POINTS)
  values = np.stack([np.interp(grid, xs, ys) for xs, ys in curves])
  centre, low, high = interval(values, statistic)
  return Curve(grid, centre, low, high, len(runs))


def interval(values: np.ndarray, statistic: Statistic = 'mean'
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns a statistic [...] of values [N, ...], and its 95% bootstrap interval.

  For a single value, the interval is that value.
  """
  function = _FUNCTIONS[statistic]
  centre = function(values, axis=0)
  if len(values) == 1:
    return centre, centre, centre
  ends = stats.bootstrap(
      (values,), function, axis=0, n_resamples=_RESAMPLES, vectorized=True,
      confidence_level=_CONFIDENCE, method='percentile', batch=100,
      random_state=np.random.default_rng(_BOOTSTRAP_SEED)).confidence_interval
  return centre, ends.low, ends.high


def _iqm(values: np.ndarray, axis: int) -> np.ndarray:
  return stats.trim_mean(values, 0.25, axis=axis)


_FUNCTIONS: Mapping[str, Callable[..., np.ndarray]] = {
    'mean': np.mean, 'iqm': _iqm}
