"""Runs variants of the agent on a game, and compares all results so far.

    python -m benchmarks.sweep --game pong --variant full impala --seed 0 1 2
    python -m benchmarks.sweep --game pong --report

Runs go one after the other. Each is stopped once the game is solved, or at
3,000,000 timesteps. Its `config.json` and thinned `progress.csv` go to
`benchmarks/results/<game>/<variant>/seed<k>/`.

The report has a row for each run, and one for each variant: how many of its runs
solved the game, and the mean of their returns at 300,000 timesteps, or when solved,
with its 95% interval by Student's t. Once there are two runs of each subset of the
agent's parts, it also says what each part adds (`factorial`).
"""

import dataclasses
import itertools
import json
import math
import pathlib
import statistics
import tempfile
from typing import Optional, Sequence

from scipy import stats

from benchmarks import common
from benchmarks import factorial
from launch import cells as cells_lib
from launch import settings as settings_lib
from programs.runtime import records

_NO_PPO = ('--loss', 'vtrace')
# The online part of each batch stays the same: replay comes on top of it.
_NO_REPLAY = ('--samples_per_insert', '1', '--batch_size', '2')
_NO_AUTOENCODER = ('--no-autoencoder',)
_WITHOUT = {'replay': _NO_REPLAY, 'ppo': _NO_PPO, 'autoencoder': _NO_AUTOENCODER}
# The parts that variants have, in all ways to leave some out of today's defaults.
_PARTS = {
    'full': frozenset(_WITHOUT),
    'without_ppo': frozenset({'replay', 'autoencoder'}),
    'without_replay': frozenset({'ppo', 'autoencoder'}),
    'without_autoencoder': frozenset({'replay', 'ppo'}),
    'impala_alone': frozenset(),
    'with_ppo': frozenset({'ppo'}),
    'with_replay': frozenset({'replay'}),
    'with_autoencoder': frozenset({'autoencoder'}),
}
_TODAY = {
    # Learns from every trajectory once, as if its policy were the newest.
    'a3c': ('--loss', 'a3c', '--vtrace_lambda', '1') + _NO_REPLAY + _NO_AUTOENCODER,
    **{variant: tuple(itertools.chain.from_iterable(
        flags for part, flags in _WITHOUT.items() if part not in parts))
       for variant, parts in _PARTS.items()},
}
# The defaults when the results of these variants were made.
_SQUARED = ('--value_loss', 'squared', '--baseline_cost', '2', '--discount', '0.99',
            '--batch_size', '12', '--replay_capacity', '16', '--envs_per_actor', '8',
            '--learning_rate_decay_timesteps', '2000000', '--final_learning_rate',
            '1e-5')
_NO_REPLAY_4 = ('--samples_per_insert', '1', '--batch_size', '4')
_UPDATE_PERIOD_8 = _SQUARED + ('--variable_update_period', '8')
_BASELINE_HALF = _UPDATE_PERIOD_8 + ('--baseline_cost', '0.5')
_BEFORE = {
    'full_squared': _SQUARED,
    # At eea229a the actors' lower priority had no effect.
    'full_equal_priority': _SQUARED,
    'full_update_period_8': _UPDATE_PERIOD_8,
    **{name: _BASELINE_HALF + flags for name, flags in {
        'impala': _NO_PPO + _NO_REPLAY_4 + _NO_AUTOENCODER,
        'ppo': _NO_REPLAY_4 + _NO_AUTOENCODER,
        'ppo_unnormalized': _NO_REPLAY_4 + _NO_AUTOENCODER + (
            '--no-normalize_advantages',),
        # The same as the full agent without the auto-encoder.
        'ppo_replay': _NO_AUTOENCODER,
        'full_baseline_half': (),
        'full_without_ppo': _NO_PPO,
        'full_without_replay': _NO_REPLAY_4,
        # The trunk of the Nature DQN: what acting would cost without the latent.
        'nature_cnn': _NO_AUTOENCODER + (
            '--conv_channels', '32,64,64', '--latent_size', '512'),
    }.items()}}
VARIANTS = {**_TODAY, **_BEFORE}
# When to compare variants: by then a good run of Pong has won, a bad one has not.
_COMPARED_AT = 300_000
_PARTS_COMPARED_AT = (200_000, _COMPARED_AT)


@dataclasses.dataclass
class Cell:
  """One run's result."""
  variant: str
  seed: int
  rows: list[common.Row]


def run_cell(game: str, variant: str, seed: int, runs_dir: str,
             train_flags: Sequence[str]) -> int:
  """Trains one cell below `runs_dir`, keeps its results, returns the exit code.

  Raises:
    KeyboardInterrupt: if the run was told to stop; nothing is kept of it.
  """
  run_dir = pathlib.Path(runs_dir, game, variant, f'seed{seed}')
  cell = cells_lib.Cell(str(run_dir), [
      '--game', game, '--seed', str(seed), *VARIANTS.get(variant, ()),
      *train_flags])
  code = cell.train()
  if code == 0 and not cell.is_done():
    raise KeyboardInterrupt
  if code == 0:
    kept = common.keep_rows(game, variant, seed, records.read(
        str(run_dir / records.PROGRESS_FILE)))
    config = json.loads((run_dir / settings_lib.CONFIG_FILE).read_text())
    # The original path means nothing to others.
    config['run']['run_dir'] = run_dir.name
    common.write_json(kept / settings_lib.CONFIG_FILE, config)
  return code


def read_cells(game: str) -> list[Cell]:
  """Reads all results of a game, including peers', in the order of `VARIANTS`."""
  paths = (common.RESULTS / game).glob(f'*/seed*/{records.PROGRESS_FILE}')
  cells = [Cell(path.parts[-3], int(path.parts[-2][len('seed'):]),
                records.read(str(path))) for path in paths]
  order = list(VARIANTS)
  return sorted(cells, key=lambda c: (
      order.index(c.variant) if c.variant in order else len(order),
      c.variant, c.seed))


def report(game: str, cells: Sequence[Cell]) -> None:
  """Prints the table of a game's results, and draws their curves."""
  common.print_header(['variant', 'seed', 'solved at (timesteps)', 'minutes',
                       'timesteps run', 'last mean return'])
  for cell in cells:
    solved, last = common.solved_row(cell.rows, game), cell.rows[-1]
    common.print_row([
        cell.variant, cell.seed,
        f'{solved["timesteps"]:,.0f}' if solved else '-',
        f'{solved["walltime_seconds"] / 60:.1f}' if solved else '-',
        f'{last["timesteps"]:,.0f}', f'{last["episode_return_mean_100"]:.1f}'])
  print()
  _report_variants(game, cells)
  _report_parts(game, cells)
  path = common.RESULTS / f'{game}.png'
  _draw(game, cells, path)
  print(f'\ncurves: {path}')


def _report_variants(game: str, cells: Sequence[Cell]) -> None:
  common.print_header(['variant', 'runs', 'solved', 'median (timesteps)',
                       f'return at {_COMPARED_AT:,}', '95% interval'])
  for variant, group in itertools.groupby(cells, lambda cell: cell.variant):
    runs = list(group)
    solved = [row['timesteps'] if row else float('inf') for row in (
        common.solved_row(cell.rows, game) for cell in runs)]
    median = statistics.median(solved)
    returns = [value for value in (
        return_at(cell.rows, game, _COMPARED_AT) for cell in runs)
               if value is not None]
    interval = mean_interval(returns)
    common.print_row([
        variant, len(runs), sum(map(math.isfinite, solved)),
        f'{median:,.0f}' if math.isfinite(median) else '-',
        f'{statistics.mean(returns):.1f}' if returns else '-',
        f'{interval[0]:.1f} to {interval[1]:.1f}' if interval else '-'])


def _report_parts(game: str, cells: Sequence[Cell]) -> None:
  """Prints what each part adds, to any others or to replay, if that can be said."""
  groups = [_returns_by_parts(game, cells, timesteps)
            for timesteps in _PARTS_COMPARED_AT]
  rows = []
  for part in _WITHOUT:
    for beside in ([], ['replay'])[:1 if part == 'replay' else 2]:
      effects = [factorial.effect(group, part, set(beside)) for group in groups]
      if any(effects):
        rows.append([part, *(beside or ['any']), *(
            f'{found.mean:.1f} ({found.low:.1f} to {found.high:.1f})'
            if found else '-' for found in effects)])
  if rows:
    print()
    common.print_header(['part', 'beside', *(
        f'adds at {timesteps:,}' for timesteps in _PARTS_COMPARED_AT)])
  for row in rows:
    common.print_row(row)


def _returns_by_parts(game: str, cells: Sequence[Cell],
                      timesteps: int) -> dict[frozenset[str], list[float]]:
  groups: dict[frozenset[str], list[float]] = {
      parts: [] for parts in _PARTS.values()}
  for cell in cells:
    value = return_at(cell.rows, game, timesteps)
    if cell.variant in _PARTS and value is not None:
      groups[_PARTS[cell.variant]].append(value)
  return groups


def return_at(rows: Sequence[common.Row], game: str,
              timesteps: int) -> Optional[float]:
  """Returns the mean return of a run at a number of timesteps.

  For a run that ended sooner, this is its last mean return if it solved the game,
  and None if it did not.
  """
  for row in rows:
    if row['timesteps'] >= timesteps:
      return row['episode_return_mean_100']
  return (rows[-1]['episode_return_mean_100'] if common.solved_row(rows, game)
          else None)


def mean_interval(values: Sequence[float]) -> Optional[tuple[float, float]]:
  """Returns the 95% interval of a mean, or None for fewer than two values.

  It is Student's, which unlike a bootstrap is not too narrow for three seeds.
  """
  if len(values) < 2:
    return None
  half = (stats.t.ppf((1 + common.CONFIDENCE) / 2, len(values) - 1) *
          float(stats.sem(values)))
  mean = statistics.mean(values)
  return mean - half, mean + half


def _draw(game: str, cells: Sequence[Cell], path: pathlib.Path) -> None:
  from launch import plot
  from launch.views import curves  # Only for drawing.
  groups = {variant: [curves.Run(variant, game, {}, cell.rows) for cell in runs]
            for variant, runs in itertools.groupby(
                cells, lambda cell: cell.variant)}
  plot.draw([plot.Panel(game, groups, 'timesteps'),
             plot.Panel(game, groups, 'minutes')], str(path))


def main(argv: Optional[Sequence[str]] = None) -> int:
  parser = common.Parser('sweep', __doc__)
  parser.add_argument('--game', default='pong')
  parser.add_several(
      'variant', default=['full'],
      help=f'of {", ".join(VARIANTS)}, or a new name for flags after --')
  parser.add_several('seed', type=int, default=[0])
  parser.add_argument('--max_timesteps', type=common.positive(int),
                      default=3_000_000)
  parser.add_argument('--run_to_the_end', action='store_true',
                      help='do not stop once solved')
  parser.add_argument('--runs_dir', help='keep the whole runs below this folder')
  parser.add_argument('--report', action='store_true',
                      help='print the table and draw the curves')
  parser.add_train_flags('further flags of launch.train')
  flags = parser.parse_args(argv)
  if flags.report:
    cells = read_cells(flags.game)
    if not cells:
      parser.error(f'there are no results of {flags.game}; run a variant first.')
    report(flags.game, cells)
    return 0
  unknown = set(flags.variants) - set(VARIANTS)
  if unknown and not flags.train_flags:
    parser.error(f'unknown variant {unknown.pop()!r}; there are '
                 f'{", ".join(VARIANTS)}.')
  train_flags = ['--max_timesteps', str(flags.max_timesteps), *flags.train_flags]
  if flags.game in common.TARGET_RETURNS and not flags.run_to_the_end:
    train_flags += ['--target_return', str(common.TARGET_RETURNS[flags.game])]
  with tempfile.TemporaryDirectory() as scratch:
    for variant, seed in itertools.product(flags.variants, flags.seeds):
      code = run_cell(flags.game, variant, seed, flags.runs_dir or scratch,
                      train_flags)
      if code:
        return code
  return 0


if __name__ == '__main__':
  common.run(main)
