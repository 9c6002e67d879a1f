"""What the benchmarks share: flags, rows, the rule for *solved*, tables."""

import argparse
import csv
import json
import math
import os
import pathlib
import signal
import sys
from typing import Any, Callable, Mapping, NoReturn, Optional, Sequence, Union

import numpy as np
import psutil

from launch import cells
from launch import errors
from programs.runtime import records

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = CHECKOUT / 'benchmarks' / 'results'
# The mean return of the last 100 training episodes that solves a game.
TARGET_RETURNS = {'pong': 18.}
CONFIDENCE = 0.95  # Of all intervals.
ROWS_KEPT = 300

Row = records.Row


class Parser(argparse.ArgumentParser):
  """A benchmark's flags; errors are one line."""

  def __init__(self, name: str, description: Optional[str]):
    """Makes the parser of `python -m benchmarks.<name>`."""
    super().__init__(prog=f'python -m benchmarks.{name}', description=description,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    self._name = name

  def add_json(self) -> None:
    self.add_argument('--json', help='also write the figures to this file')

  def add_several(self, name: str, **kwargs: Any) -> None:
    """Adds a flag that takes one or more values; its plural works too."""
    self.add_argument(f'--{name}', f'--{name}s', dest=f'{name}s', nargs='+',
                      **kwargs)

  def add_train_flags(self, purpose: str = 'flags of launch.train') -> None:
    self.add_argument('train_flags', nargs='*', help=f'{purpose}, after --')

  def check_checkout(self, compare: Optional[pathlib.Path]) -> None:
    """Rejects a `--compare` that is not a built checkout of this project."""
    if compare is None:
      return
    if not (compare / 'launch' / 'train.py').exists():
      self.error(f'--compare {compare} has no launch/train.py; give a checkout of '
                 'this project.')
    for source in compare.glob('programs/*/*.c'):
      if not any(source.parent.glob(f'_{source.stem}.*')):
        self.error(f'--compare {compare} is not built ({source.stem}.c); run `make '
                   '.venv/.stamp` there first.')

  def error(self, message: str) -> NoReturn:
    self.exit(2, f'{self._name}: error: {message}\n')


def positive(number: Callable[[str], float]) -> Callable[[str], float]:
  """Returns the type of a flag that takes positive, finite numbers only."""
  def parse(text: str) -> float:
    value = number(text)
    if not 0 < value < math.inf:
      raise argparse.ArgumentTypeError(f'must be positive, not {text}')
    return value

  parse.__name__ = number.__name__  # argparse quotes it in errors.
  return parse


def run(main: Callable[[], Optional[int]]) -> NoReturn:
  """Runs a benchmark, and ends this process with its exit code.

  Ctrl-C, SIGTERM and SIGHUP end it, and what it has started, without a traceback.
  """
  cells.end_on_signals()
  try:
    sys.exit(main())
  except KeyboardInterrupt:
    sys.exit(128 + signal.SIGINT)
  except BrokenPipeError:  # Such as after `| head`.
    errors.end_unread()


def thin(rows: Sequence[Row], always: Optional[Row] = None) -> list[Row]:
  """Returns at most `ROWS_KEPT` rows, evenly spread and including the last.

  The row `always` is among them too, beyond that number.
  """
  period = max(1, math.ceil((len(rows) - 1) / (ROWS_KEPT - 1)))
  return [row for i, row in enumerate(rows)
          if i % period == 0 or i == len(rows) - 1 or row is always]


def results_of(game: str, variant: str, seed: int) -> pathlib.Path:
  """Returns the folder of a run's results, which may not exist yet."""
  return RESULTS / game / variant / f'seed{seed}'


def keep_rows(game: str, variant: str, seed: int,
              rows: Sequence[Row]) -> pathlib.Path:
  """Writes a run's thinned rows to its folder of results; returns the folder."""
  directory = results_of(game, variant, seed)
  directory.mkdir(parents=True, exist_ok=True)
  with open(directory / records.PROGRESS_FILE, 'w', newline='') as f:
    writer = csv.DictWriter(f, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows({name: f'{value:.12g}' for name, value in row.items()}
                     for row in thin(rows, always=solved_row(rows, game)))
  return directory


def solved_row(rows: Sequence[Row], game: str) -> Optional[Row]:
  """Returns the first row whose last 100 episodes solve the game, or None."""
  if game not in TARGET_RETURNS:
    return None
  for row in rows:
    if (row['episodes'] >= records.EPISODES_IN_MEAN and
        row['episode_return_mean_100'] >= TARGET_RETURNS[game]):
      return row
  return None


def memory_gib(process: psutil.Process) -> float:
  """Returns the proportional set size of a process and its descendants."""
  total = 0
  for p in [process, *process.children(recursive=True)]:
    try:
      total += p.memory_full_info().pss
    except psutil.Error:
      pass  # It has ended meanwhile.
  return total / 2**30


def print_header(titles: Sequence[str]) -> None:
  """Prints the head of a markdown table."""
  print_row(titles)
  print('| --- ' * len(titles) + '|')


def print_row(cells: Sequence[Any]) -> None:
  """Prints a row of a markdown table."""
  print('| ' + ' | '.join(map(str, cells)) + ' |', flush=True)


def print_spread(title: str,
                 figures: Mapping[str, Union[Sequence[float], np.ndarray]],
                 number_format: str) -> None:
  """Prints a table of each figure's median and spread over rounds."""
  num_rounds = len(next(iter(figures.values())))
  print_header([title, f'median of {num_rounds}', 'a quarter below',
                'a quarter above', 'from', 'to'])
  for name, values in figures.items():
    print_row([name, *(format(value, number_format)
                       for value in np.percentile(values, [50, 25, 75, 0, 100]))])


def take_turns(measures: Mapping[str, Callable[[], Any]],
               num_rounds: int) -> list[dict[str, Any]]:
  """Measures several things in each round, reversing the order every round.

  What comes second may find the machine in another state than what comes first.

  Args:
    measures: what to call, by name.
    num_rounds: how often.

  Returns:
    What each returned, by name, for each round.
  """
  rounds = []
  for number in range(num_rounds):
    order = list(measures)[::-1 if number % 2 else 1]
    figures = {name: measures[name]() for name in order}
    rounds.append({name: figures[name] for name in measures})
  return rounds


def write_json(path: Optional[os.PathLike], content: Any) -> None:
  """Writes figures to a file, if a path is given."""
  if path:
    with open(path, 'w') as f:
      json.dump(content, f, indent=2)
      f.write('\n')
