"""What each part is worth on an Atari game, Rainbow-style.

    python -m benchmarks.pong --variant full --seed 0    # runs one cell
    python -m benchmarks.pong --report                   # draws what there is

A cell is stopped once it is solved, or at 3,000,000 timesteps. Its
`config.json` and thinned `progress.csv` go to
`benchmarks/results/<game>/<variant>/seed<k>/`.
"""

import argparse
import csv
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from typing import Dict, List, Optional

RESULTS = pathlib.Path(__file__).parent / 'results'
SOLVED = 18.
BUDGET = 3_000_000
_ROWS_KEPT = 300

_NO_PPO = ('--loss', 'vtrace')
# The online part of each batch stays the same: replay comes on top of it.
_NO_REPLAY = ('--samples_per_insert', '1', '--batch_size', '4')
_NO_AUTOENCODER = ('--no-autoencoder',)
# IMPALA's own, and the default when all but `full` were run.
_BASELINE_COST = ('--baseline_cost', '0.5')
VARIANTS = {
    'full': (),
    **{name: flags + _BASELINE_COST for name, flags in {
        'impala': _NO_PPO + _NO_REPLAY + _NO_AUTOENCODER,
        'ppo': _NO_REPLAY + _NO_AUTOENCODER,
        # The same as the full agent without the auto-encoder.
        'ppo_replay': _NO_AUTOENCODER,
        'full_baseline_half': (),
        'full_without_ppo': _NO_PPO,
        'full_without_replay': _NO_REPLAY,
        # The trunk of the Nature DQN: what acting would cost without the latent.
        'nature_cnn': _NO_AUTOENCODER + (
            '--conv_channels', '32,64,64', '--latent_size', '512'),
    }.items()}}


@dataclasses.dataclass
class Cell:
  """One run's result: the rows of its progress, as numbers."""
  game: str
  variant: str
  seed: int
  rows: List[Dict[str, float]]

  def solved_at(self) -> Optional[Dict[str, float]]:
    """Returns the first row of the last 100 episodes being good enough."""
    for row in self.rows:
      if row['episodes'] >= 100 and row['episode_return_mean_100'] >= SOLVED:
        return row
    return None


def _directory(game: str, variant: str, seed: int) -> pathlib.Path:
  return RESULTS / game / variant / f'seed{seed}'


def _read_rows(path: pathlib.Path) -> List[Dict[str, str]]:
  with open(path, newline='') as f:
    return list(csv.DictReader(f))


def run_cell(game: str, variant: str, seed: int, max_timesteps: int,
             target_return: Optional[float], run_dir: Optional[str],
             train_flags: List[str]) -> int:
  """Trains one cell and keeps its results; returns training's exit code."""
  with tempfile.TemporaryDirectory() as scratch:
    run_dir = run_dir or os.path.join(scratch, 'run')
    command = [sys.executable, '-m', 'launch.train', '--game', game, '--seed',
               str(seed), '--run_dir', run_dir, '--max_timesteps',
               str(max_timesteps), *VARIANTS.get(variant, ()), *train_flags]
    if target_return is not None:
      command += ['--target_return', str(target_return)]
    training = subprocess.Popen(command)
    try:
      code = training.wait()
    except KeyboardInterrupt:
      training.terminate()
      training.wait()
      raise
    if code:
      return code
    kept = _directory(game, variant, seed)
    kept.mkdir(parents=True, exist_ok=True)
    with open(os.path.join(run_dir, 'config.json')) as f:
      config = json.load(f)
    # Where it ran says nothing to others.
    config['run']['run_dir'] = os.path.basename(run_dir)
    with open(kept / 'config.json', 'w') as f:
      json.dump(config, f, indent=2)
      f.write('\n')
    rows = _read_rows(pathlib.Path(run_dir) / 'progress.csv')
    period = -(-len(rows) // _ROWS_KEPT)
    thinned = rows[:-1:period] + rows[-1:]
    with open(kept / 'progress.csv', 'w', newline='') as f:
      writer = csv.DictWriter(f, list(rows[0]), lineterminator='\n')
      writer.writeheader()
      writer.writerows(thinned)
  return 0


def read_cells(game: str) -> List[Cell]:
  """Reads all results of a game, in the order of `VARIANTS`."""
  cells = []
  for path in sorted((RESULTS / game).glob('*/seed*/progress.csv')):
    rows = [{name: float(value) for name, value in row.items()}
            for row in _read_rows(path)]
    cells.append(Cell(game, path.parts[-3], int(path.parts[-2][4:]), rows))
  order = list(VARIANTS)
  return sorted(cells, key=lambda c: (
      order.index(c.variant) if c.variant in order else len(order),
      c.variant, c.seed))


def report(game: str) -> None:
  """Prints the table of a game's results, and draws their curves."""
  cells = read_cells(game)
  if not cells:
    sys.exit(f'pong: error: there are no results of {game}; run a cell first.')
  print('| variant | seed | solved at (timesteps) | minutes | timesteps run | '
        'last mean return |')
  print('| --- | --- | --- | --- | --- | --- |')
  for cell in cells:
    solved, last = cell.solved_at(), cell.rows[-1]
    at = f'{solved["timesteps"]:,.0f}' if solved else '-'
    minutes = f'{solved["walltime_seconds"] / 60:.1f}' if solved else '-'
    print(f'| {cell.variant} | {cell.seed} | {at} | {minutes} | '
          f'{last["timesteps"]:,.0f} | {last["episode_return_mean_100"]:.1f} |')
  path = RESULTS / f'{game}.png'
  _draw(cells, path)
  print(f'\ncurves: {path}')


def _draw(cells: List[Cell], path: pathlib.Path) -> None:
  import matplotlib  # Only for drawing.
  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(1, 2, figsize=(13, 5), sharey=True)
  variants = list(dict.fromkeys(cell.variant for cell in cells))
  for axis, column, scale, label in (
      (axes[0], 'timesteps', 1e6, 'timesteps (millions)'),
      (axes[1], 'walltime_seconds', 60., 'minutes')):
    for cell in cells:
      index = variants.index(cell.variant)
      first = next(c for c in cells if c.variant == cell.variant) is cell
      axis.plot([row[column] / scale for row in cell.rows],
                [row['episode_return_mean_100'] for row in cell.rows],
                color=f'C{index}', label=cell.variant if first else None)
    axis.set_xlabel(label)
    axis.grid(alpha=0.3)
  axes[0].set_ylabel('mean return of the last 100 training episodes')
  axes[0].legend()
  figure.suptitle(cells[0].game)
  figure.tight_layout()
  figure.savefig(path, dpi=110)


def main() -> int:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--game', default='pong')
  parser.add_argument('--variant', default='full', help=(
      f'one of {", ".join(VARIANTS)}, or a new name for flags after --'))
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--max_timesteps', type=int, default=BUDGET)
  parser.add_argument('--target_return', type=float, default=SOLVED)
  parser.add_argument('--run_to_the_end', action='store_true',
                      help='do not stop once solved')
  parser.add_argument('--run_dir', help='keep the whole run here')
  parser.add_argument('--report', action='store_true',
                      help='print the table and draw the curves')
  parser.add_argument('train_flags', nargs='*',
                      help='further flags of launch.train, after --')
  flags = parser.parse_args()
  # As Ctrl-C does: the training ends too.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  if flags.report:
    report(flags.game)
    return 0
  if flags.variant not in VARIANTS and not flags.train_flags:
    sys.exit(f'pong: error: unknown variant {flags.variant!r}; there are '
             f'{", ".join(VARIANTS)}.')
  return run_cell(flags.game, flags.variant, flags.seed, flags.max_timesteps,
                  None if flags.run_to_the_end else flags.target_return,
                  flags.run_dir, flags.train_flags)


if __name__ == '__main__':
  sys.exit(main())
