"""Finds what is surely wrong with a run, from its rows of progress.

docs/metrics.md says what each metric is like in a healthy run.
"""

import math
import sys
from typing import Any, Callable, Mapping, Optional

from acme.utils import loggers

Row = Mapping[str, Any]
# A rule takes a row and the run's history, and returns what is wrong.
Rule = Callable[[Row, 'History'], Optional[str]]

# A row covers one batch: this many in a row, a minute by default, are not chance.
_ROWS = 12
_STARVED = 0.95
_HELD_UP = 0.95
_BUSY = 0.05
_COLLAPSED = 0.01
_FALLEN = 0.5
_DIVERGED = -1.
_SLOW = 0.1
# Where each timestep is learned from once, no ratio need leave the clip's range.
_STILL_KL = 1e-6


class History:
  """The extremes of a run so far.

  Attributes:
    most: the largest finite value of each column.
    least: the smallest.
  """

  def __init__(self):
    self.most: dict[str, float] = {}
    self.least: dict[str, float] = {}

  def add(self, row: Row) -> None:
    for name, value in row.items():
      if isinstance(value, (int, float)) and math.isfinite(value):
        self.most[name] = max(value, self.most.get(name, value))
        self.least[name] = min(value, self.least.get(name, value))


def _value(row: Row, name: str) -> float:
  """Returns a row's value, or NaN (neither above nor below) if it has none."""
  return row.get(name, math.nan)


def starved(row: Row, history: History) -> Optional[str]:
  """The learner waits for data nearly all the time."""
  waits = _value(row, 'learner_wait_fraction')
  if waits > _STARVED and _value(row, 'queue_fill') < 1 - _HELD_UP:
    return (f'the learner is starved: it waits {waits:.0%} of its time for '
            'trajectories. Give it more actors (--num_actors, --envs_per_actor), '
            'or let it learn more often from each (--samples_per_insert).')
  return None


def held_up(row: Row, history: History) -> Optional[str]:
  """Actors wait for the learner, which hardly ever waits."""
  fill = _value(row, 'queue_fill')
  if fill > _HELD_UP and _value(row, 'learner_wait_fraction') < _BUSY:
    return (f'actors are held up: the queue is {fill:.0%} full, and the learner '
            'always busy. More actors bring nothing; a faster learner does '
            '(--num_gpus, --batch_size, --samples_per_insert).')
  return None


def collapsed(row: Row, history: History) -> Optional[str]:
  """The policy always does the same, and earns less than it did."""
  entropy = _value(row, 'entropy')
  returns = 'episode_return_mean_100'
  if returns not in history.most:
    return None
  best, worst = history.most[returns], history.least[returns]
  if (entropy < _COLLAPSED * history.most.get('entropy', 0.) and
      _value(row, returns) <= worst + _FALLEN * (best - worst)):
    return (f'the policy has collapsed: its entropy is {entropy:.2g} nats, and its '
            f'return {row[returns]:.4g}, which was {best:.4g}. Raise '
            '--entropy_cost or lower --learning_rate, and start anew.')
  return None


def diverging(row: Row, history: History) -> Optional[str]:
  """Values are further from their targets than a constant would be."""
  explained = _value(row, 'explained_variance')
  if explained < _DIVERGED:
    return (f'values diverge: they explain {explained:.3g} of the variance of their '
            'targets, where a constant explains 0. Lower --learning_rate, or '
            '--discount.')
  return None


def still(row: Row, history: History) -> Optional[str]:
  """The policy does not change, though the learning rate is not small."""
  rate = _value(row, 'learning_rate')
  if (_value(row, 'clip_fraction') == 0. and
      _value(row, 'approximate_kl') < _STILL_KL and
      rate > _SLOW * history.most.get('learning_rate', math.inf)):
    return ('the policy stays as it is: what it learns from hardly makes any action '
            'more or less likely. Raise --learning_rate.')
  return None


def skipping(row: Row, history: History) -> Optional[str]:
  """Updates are skipped."""
  skipped = _value(row, 'skipped_updates')
  if skipped > 0:
    return (f'{skipped:,.0f} updates were skipped, whose gradients were not finite. '
            'Lower --learning_rate, or look at the rewards.')
  return None


_RULES: tuple[Rule, ...] = (starved, held_up, collapsed, diverging, still, skipping)


class Watch:
  """Applies the rules to a run's rows, one after the other."""

  def __init__(self):
    self._history = History()
    self._rows_for = dict.fromkeys(_RULES, 0)
    self._learner_steps = 0

  def warnings(self, row: Row) -> list[str]:
    """Returns new problems as of this row, each once until it is over.

    Args:
      row: of progress. One without new learner steps gives no warnings.
    """
    self._history.add(row)
    steps = row['learner_steps']
    if steps <= self._learner_steps:
      return []
    self._learner_steps = steps
    lines = []
    for rule in _RULES:
      line = rule(row, self._history)
      self._rows_for[rule] = 0 if line is None else self._rows_for[rule] + 1
      if line is not None and self._rows_for[rule] == _ROWS:
        lines.append(line)
    return lines


class Warner(loggers.Logger):
  """Prints warnings about rows of progress."""

  def __init__(self):
    self._watch = Watch()

  def write(self, data: loggers.LoggingData) -> None:
    for line in self._watch.warnings(data):
      print(f'warning: {line} See docs/metrics.md.', file=sys.stderr, flush=True)

  def close(self) -> None:
    pass
