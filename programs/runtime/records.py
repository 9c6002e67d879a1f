"""Writes and reads the rows that a run records.

Each kind of record has one of Acme's loggers, which takes rows {name: value}.
`collectors` combines those that take rows of progress.
"""

import contextlib
import csv
import errno
import io
import json
import numbers
import os
import sys
from typing import Any, Callable, Mapping, Optional, Sequence

from acme.utils import loggers
import numpy as np

PROGRESS_FILE = 'progress.csv'
PROGRESS_COLUMNS = (
    'timesteps', 'walltime_seconds', 'episodes', 'episode_return_mean_100',
    'timesteps_per_second', 'learner_steps', 'learner_timesteps_per_second',
    'policy_lag', 'learner_wait_fraction', 'loss', 'policy_loss', 'value_loss',
    'entropy', 'reconstruction_loss', 'clip_fraction', 'approximate_kl',
    'gradient_norm', 'skipped_updates', 'learning_rate', 'restarts',
    'bad_numbers', 'weight_pulls', 'rho_mean', 'rho_clipped_fraction',
    'explained_variance', 'queue_fill', 'replay_fill', 'samples_per_insert')
EPISODES_IN_MEAN = 100  # Of `episode_return_mean_100`, or all if there are fewer.
Row = dict[str, float]
# Further values of some rows of progress, which no file of rows has.
RETURNS = 'episode_returns'  # Those in the mean, as a list.
EVALUATION = 'evaluation_return_mean'
PICTURE = 'reconstructions'  # Frames beside their reconstructions, as a PNG.
CONFIG_FILE = 'config.json'
RESTARTS_FILE = 'restarts.csv'
RESTARTS_COLUMNS = ('time', 'node', 'how')
# Prefixes of lines that send the launcher a row of progress, or what starting
# nodes wait for; JSON follows.
ROW = 'row: '
STARTING = 'starting: '
_TELLS_LAUNCHER = 'counter'  # The only node that prints such lines.
_STATE_FILE = 'counter.json'
EVALUATION_FILE = 'evaluation.csv'
EVALUATION_COLUMNS = ('timesteps', 'episodes', 'return_mean', 'return_std',
                      'return_min', 'return_max')


def own_metrics(row: loggers.LoggingData) -> list[str]:
  """Returns the names of numbers in a row of progress that only some runs have.

  A custom loss may have added them to the learner's metrics.
  """
  return [name for name, value in row.items()
          if isinstance(value, numbers.Real) and
          name not in PROGRESS_COLUMNS and name != EVALUATION]


def evaluation_row(timesteps: int,
                   returns: Sequence[float]) -> dict[str, float]:
  """Returns the row of an evaluation after `timesteps` of training."""
  return {'timesteps': timesteps, 'episodes': len(returns),
          'return_mean': float(np.mean(returns)),
          'return_std': float(np.std(returns)),
          'return_min': min(returns), 'return_max': max(returns)}


class CsvLogger(loggers.Logger):
  """Appends rows to a file, with the columns in a given order.

  Acme's own sorts columns by name, and keeps rows in memory for a while.
  """

  def __init__(self, path: str, columns: Sequence[str],
               further: Callable[[loggers.LoggingData], Sequence[str]] = (
                   lambda data: ())):
    """Makes a logger; the first row creates the file.

    Args:
      path: of the file.
      columns: the file's first ones.
      further: returns the names of a row's other columns. Those that the file
        lacks are added to it.
    """
    self._path = path
    self._columns = columns
    self._further = further

  def write(self, data: loggers.LoggingData) -> None:
    further = self._further(data)
    # A run that was begun by another version may have other columns.
    header = self._header()
    text = io.StringIO()
    if not header:
      header = [*self._columns, *further]
      if os.path.exists(self._path) and os.path.getsize(self._path):
        text.write('\n')  # Ends the zeros that a power failure has left.
      csv.writer(text).writerow(header)
    else:
      missing = [name for name in further if name not in header]
      if missing:
        _add_columns(self._path, header, missing)
        header += missing
    writer = csv.DictWriter(text, header, restval='nan', extrasaction='ignore')
    writer.writerow({name: _rounded(data[name]) for name in data
                     if name in self._columns or name in further})
    _append(self._path, text.getvalue().encode())

  def _header(self) -> Optional[list[str]]:
    try:
      with open(self._path, newline='') as f:
        return next(csv.reader(f), None)
    except FileNotFoundError:
      return None
    except csv.Error:  # Zeros, as a power failure leaves them.
      return next(csv.reader(_whole_lines(self._path)), None)

  def close(self) -> None:
    pass


def _append(path: str, row: bytes) -> None:
  """Appends all of a row or nothing: the next must not follow a part of it."""
  # Opened for each row, so that a new file begins if this one is moved away.
  with open(path, 'ab', buffering=0) as f:
    size = os.fstat(f.fileno()).st_size
    try:
      if f.write(row) < len(row):  # As when the disk fills up.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    except OSError:
      f.truncate(size)
      raise


def _add_columns(path: str, header: Sequence[str], names: Sequence[str]) -> None:
  """Adds columns to a file with this header, with nan in existing rows."""
  text = io.StringIO()
  writer = csv.writer(text)
  rows = list(csv.reader(_whole_lines(path)))[1:]
  writer.writerow([*header, *names])
  for row in rows:
    # A broken row must not become a valid one.
    is_row = len(row) == len(header)
    writer.writerow([*row, *['nan'] * len(names)] if is_row else row)
  with open(f'{path}.new', 'w', newline='') as f:
    f.write(text.getvalue())
  os.replace(f'{path}.new', path)


def _whole_lines(path: str) -> list[str]:
  """Returns the lines of a file, except one that is being written."""
  with open(path, newline='') as f:
    text = f.read()
  # A truncated number may still be a number, so only the line's end tells.
  lines = text[:text.rfind('\n') + 1].splitlines()
  # A power failure may have left zeros, which csv refuses.
  return [line for line in lines if '\0' not in line]


def _rounded(value: Any) -> Any:
  """Keeps integers whole and gives floats seven digits."""
  return f'{value:.7g}' if isinstance(value, (float, np.floating)) else value


class TerminalLogger(loggers.Logger):
  """Prints a line for each row of progress."""

  def write(self, data: loggers.LoggingData) -> None:
    print(f'{data["timesteps"]:>11,} timesteps  '
          f'{data["walltime_seconds"]:>8.0f} s  '
          f'{data["timesteps_per_second"]:>7,.0f}/s  '
          f'return {data["episode_return_mean_100"]:>9.2f}  '
          f'({data["episodes"]:,} episodes, {data["learner_steps"]:,} learner '
          f'steps, waiting {data["learner_wait_fraction"]:.0%})', flush=True)

  def close(self) -> None:
    pass


class LauncherLogger(loggers.Logger):
  """Prints rows for the launcher, on lines that begin with `ROW`."""

  def write(self, data: loggers.LoggingData) -> None:
    print(ROW + json.dumps({name: data[name] for name in data
                            if name in (*PROGRESS_COLUMNS, EVALUATION)}), flush=True)

  def close(self) -> None:
    pass


def is_for_launcher(node: str, line: str) -> bool:
  """Tells `ROW` and `STARTING` lines from others, such as those of a game.

  Args:
    node: the node that printed the line, such as actor/0.
    line: the printed line.
  """
  return (node.partition('/')[0] == _TELLS_LAUNCHER and
          line.startswith((ROW, STARTING)))


def what_is_missing(waits_for: Mapping[str, str]) -> str:
  """Returns one line that says what nodes wait for.

  Args:
    waits_for: what each node waits for.
  """
  nodes: dict[str, list[str]] = {}
  for node, what in list(waits_for.items()):
    nodes.setdefault(what, []).append(node)
  return '; '.join(
      f'{what} ({", ".join(names[:3])}'
      f'{f" and {len(names) - 3} more" if len(names) > 3 else ""})'
      for what, names in nodes.items())


class SurvivingLogger(loggers.Logger):
  """Warns once if rows cannot be written, and lets training continue."""

  def __init__(self, to: loggers.Logger, what: str,
               errors: type[Exception] = OSError):
    """Makes a logger.

    Args:
      to: writes the rows.
      what: what is written, for the warning.
      errors: the exceptions that `to` may raise.
    """
    self._to = to
    self._what = what
    self._errors = errors
    self._has_warned = False

  def write(self, data: loggers.LoggingData) -> None:
    try:
      self._to.write(data)
    except self._errors as e:
      if not self._has_warned:
        self._has_warned = True
        print(f'warning: {self._what} cannot be written ({e}); training goes on '
              'without it.', file=sys.stderr, flush=True)

  def close(self) -> None:
    with contextlib.suppress(self._errors):
      self._to.close()


def csv_logger(run_dir: str, file: str, columns: Sequence[str]) -> loggers.Logger:
  """Makes a logger that appends to a file of a run."""
  path = os.path.join(run_dir, file)
  return SurvivingLogger(CsvLogger(path, columns), path)


def progress_csv_logger(run_dir: str) -> loggers.Logger:
  """Makes a logger that appends rows of progress, own metrics too, to a file."""
  path = os.path.join(run_dir, PROGRESS_FILE)
  return SurvivingLogger(CsvLogger(path, PROGRESS_COLUMNS, own_metrics), path)


def cut_after(run_dir: str, file: str, timesteps: float) -> int:
  """Moves rows past a number of timesteps out of a file of a run.

  They go to the file of the same name with `.cut` appended, as does an incomplete
  last row.

  Args:
    run_dir: a run's directory.
    file: `PROGRESS_FILE`, `EVALUATION_FILE` or another with their first column.
    timesteps: how far the run has come.

  Returns:
    How many rows were moved.

  Raises:
    OSError: if the file can be read, but not written.
  """
  path = os.path.join(run_dir, file)
  if not os.path.isfile(path):
    return 0
  with open(path, newline='') as f:
    header, *rows = f.read().splitlines(keepends=True) or ['']
  try:
    column = next(csv.reader([header])).index('timesteps')
  except (StopIteration, ValueError, csv.Error):
    return 0  # Not one of our files.
  kept: list[str] = [header]
  cut: list[str] = []
  for row in rows:
    try:
      is_past = not row.endswith('\n') or (
          float(next(csv.reader([row]))[column]) > timesteps)
    except (ValueError, IndexError, csv.Error):
      is_past = True
    (cut if is_past else kept).append(row)
  if cut:
    with open(f'{path}.cut', 'a', newline='') as f:
      f.writelines([header, *cut] if f.tell() == 0 else cut)
    with open(f'{path}.new', 'w', newline='') as f:
      f.writelines(kept)
    os.replace(f'{path}.new', path)
  return len(cut)


def count_restarts(run_dir: str) -> int:
  """Returns how many nodes of a run were restarted, over all resumptions."""
  try:
    lines = _whole_lines(os.path.join(run_dir, RESTARTS_FILE))
    return sum(1 for _ in csv.DictReader(lines))
  except (OSError, UnicodeDecodeError, csv.Error):
    return 0


class KeptState:
  """The counter's state in a file, for a counter that is restarted."""

  def __init__(self, run_dir: str):
    self._path = os.path.join(run_dir, _STATE_FILE)

  def write(self, state: Mapping[str, Any]) -> None:
    try:
      with open(f'{self._path}.new', 'w') as f:
        json.dump(state, f)
      os.replace(f'{self._path}.new', self._path)
    except OSError:
      pass  # The loggers of rows, which write to the same place, have warned.

  def discard(self) -> None:
    """Removes the state, for a run that is resumed from its checkpoint."""
    with contextlib.suppress(OSError):
      os.remove(self._path)

  def read(self) -> Optional[Mapping[str, Any]]:
    try:
      with open(self._path) as f:
        return json.load(f)
    except (OSError, ValueError):
      return None


def read_config(run_dir: str) -> dict[str, Any]:
  """Returns a run's settings by section and name, or {} if there are none."""
  try:
    with open(os.path.join(run_dir, CONFIG_FILE)) as f:
      return json.load(f)
  except (OSError, ValueError):
    return {}


def read(path: str) -> list[Row]:
  """Returns the complete rows of a file, or [] if there is no file.

  It skips a row that is being written, and rows that are not all numbers.
  """
  if not os.path.exists(path):
    return []
  rows = []
  for row in csv.DictReader(_whole_lines(path)):
    try:
      rows.append({name: float(value) for name, value in row.items()})
    except (TypeError, ValueError):  # It has too few columns, or too many.
      continue
  return rows
