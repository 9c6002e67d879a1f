"""Draws learning curves of runs: `python -m launch.plot RUN [RUN ...]`."""

# ruff: noqa: E402
import csv
import dataclasses
import os
import sys
import textwrap
from typing import Annotated, Literal, Optional, Sequence

from pydantic import Field

from agents import validation
from launch import errors
from launch import flags
from programs import config as run_config


@dataclasses.dataclass
class PlotCommand:
  """What to draw.

  Attributes:
    runs: the directories of runs. Those that differ only in their seed are drawn
      as one curve, with a band; each game has a panel.
    out: the picture; its ending sets the format, such as png, svg or pdf.
    x: what the x axis shows.
    y: what the y axis shows, a column of progress.csv.
    statistic: over the runs of a group: their mean, or their interquartile mean.
    csv: a file to write the curves to, as numbers.
  """
  runs: Annotated[tuple[run_config.Directory, ...], Field(min_length=1)]
  out: run_config.Directory = 'curves.png'
  x: Literal['timesteps', 'minutes', 'learner_steps'] = 'timesteps'
  y: Annotated[str, Field(min_length=1, max_length=100)] = (
      'episode_return_mean_100')
  statistic: Literal['mean', 'iqm'] = 'mean'
  csv: Optional[run_config.Directory] = None

  def __post_init__(self):
    validation.check(self)
    if not os.path.splitext(self.out)[1]:
      raise ValueError('out must be a file whose ending says of what kind it is, '
                       f'such as curves.png, not {validation.shown(self.out)}.')


FLAGS = flags.Flags('python -m launch.plot', 'Draws learning curves of runs.',
                    {'command': PlotCommand}, positional='runs')


def parse(argv: Sequence[str]) -> PlotCommand:
  """Reads the flags of the command.

  Args:
    argv: the flags; `--help` prints the help and exits.

  Returns:
    The command.

  Raises:
    ValueError: for a bad flag; the message is one line.
  """
  given = FLAGS.parse(argv)['command']
  if not given.get('runs'):
    raise ValueError('no runs are given; give the directory of one or more.')
  return PlotCommand(**given)


if __name__ == '__main__':
  # Neither --help nor a bad flag waits for the imports below.
  with errors.in_one_line():
    parse(sys.argv[1:])

import matplotlib
from matplotlib import pyplot as plt
from matplotlib import ticker

from launch.views import curves

matplotlib.use('Agg')

# Okabe and Ito's colours, which the colour-blind can tell apart, without the yellow,
# which is pale on white. Further groups also have other line styles.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00',
            '#000000')
_LINES = ('-', '--', ':', '-.')
_NAMES = {curves.RETURN: 'mean return of the last 100 training episodes'}
# With more, the runs themselves would hide the band.
_MOST_RUNS_SHOWN = 10


@dataclasses.dataclass
class Panel:
  """A part of a picture or of a table.

  Attributes:
    game: the game of all its runs.
    groups: its runs, by the settings that set each group apart.
    x: what the x axis shows, one of `curves.AXES`.
  """
  game: str
  groups: dict[str, list[curves.Run]]
  x: str = 'timesteps'


def by_game(runs: Sequence[curves.Run], x: str = 'timesteps') -> list[Panel]:
  """Groups runs by game, and then by their settings."""
  games: dict[str, list[curves.Run]] = {}
  for run in runs:
    games.setdefault(run.game, []).append(run)
  return [Panel(game, curves.group_by_settings(runs), x)
          for game, runs in games.items()]


def draw(panels: Sequence[Panel], out: str, y: str = curves.RETURN,
         statistic: curves.Statistic = 'mean') -> None:
  """Draws the curves of groups of runs, a panel for each game.

  A group is drawn as far as all its runs go, with a band of 95% bootstrap
  intervals; thin lines are its runs.

  Args:
    panels: what to draw, from left to right.
    out: the picture to write.
    y: a column of progress.
    statistic: the statistic over the runs of a group.

  Raises:
    ValueError: if they cannot be drawn; the message is one line.
  """
  figure, axes = plt.subplots(
      1, len(panels), figsize=(7.5 * len(panels), 5), squeeze=False,
      layout='constrained')
  for axis, panel in zip(axes[0], panels):
    x = panel.x
    for i, (label, runs) in enumerate(panel.groups.items()):
      colour = _COLOURS[i % len(_COLOURS)]
      line = _LINES[i // len(_COLOURS) % len(_LINES)]
      number = '1 run' if len(runs) == 1 else f'{len(runs)} runs'
      label = textwrap.fill(f'{label} ({number})', 50)
      curve = curves.aggregate(runs, x, y, statistic)
      if 1 < len(runs) <= _MOST_RUNS_SHOWN:
        for run in runs:
          axis.plot(*curves.points(run, x, y), color=colour, linewidth=0.6,
                    linestyle=line, alpha=0.5)
      if len(runs) == 1:  # Drawn in full, with each of its rows.
        axis.plot(*curves.points(runs[0], x, y), color=colour, linestyle=line,
                  label=label)
        continue
      axis.plot(curve.x, curve.centre, color=colour, linestyle=line, linewidth=2,
                label=label)
      axis.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.2,
                        linewidth=0)
    axis.set_title(panel.game)
    axis.set_xlabel(x.replace('_', ' '))
    if x != 'minutes':
      axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
    axis.grid(alpha=0.3)
    axis.spines[['top', 'right']].set_visible(False)
    # Below the axes, where even many labels hide nothing.
    axis.legend(loc='upper center', bbox_to_anchor=(0.5, -0.13), frameon=False,
                fontsize='small', ncols=2 if len(panel.groups) > 1 else 1)
  name = _NAMES.get(y, y.replace('_', ' '))
  axes[0, 0].set_ylabel(name)
  try:
    figure.savefig(out, dpi=150)
  except (ValueError, RuntimeError) as e:  # RuntimeError where LaTeX is missing.
    raise ValueError(f'{out} cannot be drawn: {e}.') from None
  finally:
    plt.close(figure)


def print_table(panels: Sequence[Panel], y: str = curves.RETURN,
                statistic: curves.Statistic = 'mean') -> None:
  """Prints the final value of each group, with its 95% bootstrap interval."""
  rows = [('game', 'runs that differ in their seed only', 'runs',
           f'at {panels[0].x}', f'{y}, {statistic}', '95% interval'), ('---',) * 6]
  for panel in panels:
    for label, runs in panel.groups.items():
      curve = curves.aggregate(runs, panel.x, y, statistic)
      rows.append((
          panel.game, label, str(len(runs)), f'{curve.x[-1]:,.6g}',
          f'{curve.centre[-1]:.4g}', '-' if len(runs) == 1 else
          f'{curve.low[-1]:.4g} to {curve.high[-1]:.4g}'))
  widths = [max(map(len, column)) for column in zip(*rows)]
  for row in rows:
    print('| ' + ' | '.join(
        cell.ljust(width) for cell, width in zip(row, widths)) + ' |', flush=True)


def _write_csv(panels: Sequence[Panel], path: str, y: str,
               statistic: curves.Statistic) -> None:
  with open(path, 'w', newline='') as f:
    writer = csv.writer(f)
    writer.writerow(['game', 'group', 'runs', panels[0].x, f'{y}_{statistic}', 'low',
                     'high'])
    for panel in panels:
      for label, runs in panel.groups.items():
        curve = curves.aggregate(runs, panel.x, y, statistic)
        writer.writerows(
            [panel.game, label, curve.num_runs, *(f'{value:.7g}' for value in point)]
            for point in zip(curve.x, curve.centre, curve.low, curve.high))


def main(argv: Optional[Sequence[str]] = None) -> int:
  """Draws the curves, prints their final values, and returns the exit code."""
  with errors.in_one_line():
    command = parse(sys.argv[1:] if argv is None else argv)
    # The same run, given twice, counts once.
    paths = {os.path.realpath(path): path
             for path in map(os.path.expanduser, command.runs)}
    panels = by_game([curves.read(path) for path in paths.values()], command.x)
    what = (command.y, command.statistic)
    draw(panels, os.path.expanduser(command.out), *what)
    if command.csv is not None:
      _write_csv(panels, os.path.expanduser(command.csv), *what)
    print_table(panels, *what)
    print(f'curves: {command.out}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
