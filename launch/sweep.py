"""Trains a grid of settings, or searches them: `python -m launch.sweep --out D`."""

# ruff: noqa: E402
import os
import sys
from typing import Collection, Optional, Sequence

from launch import cells as cells_lib
from launch import errors
from launch import plans

if __name__ == '__main__':
  # Neither --help nor a bad flag waits for the imports below.
  with errors.in_one_line():
    plans.parse(sys.argv[1:])

from launch import plot
from launch.views import curves
from launch.views import printing

FLAGS = plans.FLAGS


def _say(line: str) -> None:
  printing.print_line(f'sweep: {line}', sys.stdout)


def train_all(cells: Sequence[cells_lib.Cell]) -> int:
  """Trains cells that are not done; returns how many failed."""
  num_failed = 0
  for i, cell in enumerate(cells):
    where = f'{i + 1} of {len(cells)}, {cell.run_dir}'
    if cell.is_done():
      _say(f'{where}: done before.')
      continue
    _say(f'{where}: {" ".join(cell.flags)}')
    code = cell.train()
    if code:
      _say(f'{where}: failed with exit code {code}.')
      num_failed += 1
    elif not cell.is_done():  # It was told to stop.
      raise KeyboardInterrupt
  return num_failed


def report(cells: Sequence[cells_lib.Cell], out: str,
           varied: Collection[str]) -> None:
  """Prints the table of all cells with progress, and draws their curves.

  Args:
    cells: of the sweep.
    out: its directory.
    varied: the settings in which cells differ.
  """
  runs = []
  for cell in cells:
    try:
      run = curves.read(cell.run_dir, varied)
      curves.points(run, 'timesteps', curves.RETURN)
      runs.append(run)
    except ValueError as e:
      _say(f'left out: {e}')
  if not runs:
    return
  panels = plot.by_game(runs)
  path = os.path.join(out, 'curves.png')
  try:
    plot.draw(panels, path)
    plot.print_table(panels)
    _say(f'curves: {path}')
  except ValueError as e:  # Such as for very short runs.
    _say(f'no curves: {e}')


def main(argv: Optional[Sequence[str]] = None) -> int:
  """Trains the missing runs, reports on all, and returns the exit code."""
  cells_lib.end_on_signals()
  with errors.in_one_line():
    plan = plans.parse(sys.argv[1:] if argv is None else argv)
    os.makedirs(plan.command.out, exist_ok=True)
    try:
      if plan.command.search:
        with errors.extra('search'):
          from launch import search
        cells, num_failed = search.run(plan, _say)
      else:
        cells = plans.grid_cells(plan)
        for cell in cells:
          cell.check()
        left = [cell for cell in cells if not cell.is_done()]
        if plan.command.ray_address is None or not left:
          num_failed = train_all(cells)
        else:
          with errors.extra('ray'):
            from launch.engines import side_by_side
          num_failed = side_by_side.train_all(left, plan.command.ray_address, _say)
    except KeyboardInterrupt:
      _say('stopped; the same command goes on.')
      return 130
    report(cells, plan.command.out, plan.varied)
  if num_failed and plan.command.search:
    _say(f'error: {num_failed} trials failed; the same command goes on with others.')
  elif num_failed:
    _say(f'error: {num_failed} of {len(cells)} runs failed; the same command tries '
         'them again.')
  return int(bool(num_failed))


if __name__ == '__main__':
  sys.exit(main())
