"""Measures what people would use instead, on one game: `python -m benchmarks.peers`.

    benchmarks/peers/install.sh cleanrl_ppo /tmp/cleanrl
    python -m benchmarks.peers --peer cleanrl_ppo --environment /tmp/cleanrl
    python -m benchmarks.peers --peer ours

Runs one peer on a game and measures its timesteps a second for some minutes after
a warm-up, or with `--solve` for as long as it takes to solve Pong. Frames are grey,
one for each four emulator frames, and stacked by four; their size is the peer's
choice. Games start with up to 30 no-ops and have no sticky actions. Prints a row of
a table. With `--keep` the thinned rows go to
`benchmarks/results/<game>/peer_<name>/seed<k>/`, where `benchmarks.sweep --report`
finds them. `benchmarks.games` runs several peers on several games.
"""

import sys
from typing import Any, Sequence

import numpy as np

from benchmarks import common
from benchmarks.peers import runs


def summarize(rows: Sequence[common.Row], warm_up: float,
              game: str) -> dict[str, Any]:
  """Returns a run's figures; the rate excludes the warm-up, which is in seconds.

  Raises:
    RuntimeError: if there are fewer than two rows after the warm-up.
  """
  warm = [row for row in rows if
          row['walltime_seconds'] >= rows[0]['walltime_seconds'] + warm_up]
  if len(warm) < 2:
    raise RuntimeError('it wrote no two rows after the warm-up; give it more '
                       '--minutes.')
  times = np.array([row['walltime_seconds'] for row in warm])
  counts = np.array([row['timesteps'] for row in warm])
  # The rate of each whole minute shows how steady it is.
  edges = np.arange(times[0], times[-1] + 1e-3, 60.)
  by_minute = np.diff(np.interp(edges, times, counts)) / 60.
  solved = common.solved_row(rows, game)
  return {
      'timesteps_per_second': (counts[-1] - counts[0]) / (times[-1] - times[0]),
      'slowest_minute': float(by_minute.min()) if len(by_minute) else None,
      'fastest_minute': float(by_minute.max()) if len(by_minute) else None,
      'timesteps': rows[-1]['timesteps'],
      'minutes': rows[-1]['walltime_seconds'] / 60.,
      'last_mean_return': rows[-1]['episode_return_mean_100'],
      'solved_timesteps': solved['timesteps'] if solved else None,
      'solved_minutes': solved['walltime_seconds'] / 60. if solved else None,
  }


def main() -> None:
  parser = common.Parser('peers', __doc__)
  parser.add_argument('--peer', required=True, choices=(*runs.PEERS, runs.OURS))
  parser.add_argument('--environment',
                      help='the directory that install.sh made for the peer')
  parser.add_argument('--game', default='pong', help="a ROM's name: ms_pacman")
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--minutes', type=common.positive(float), default=5., help=(
      'to measure for, after the warm-up; with --solve at the longest'))
  parser.add_argument('--warm_up_minutes', type=float, default=1.)
  parser.add_argument('--solve', action='store_true',
                      help='go on until Pong is solved')
  parser.add_argument('--keep', action='store_true',
                      help='put the rows among the results')
  parser.add_json()
  parser.add_train_flags('flags of launch.train, for ours only')
  flags = parser.parse_args()
  if flags.peer == runs.OURS and flags.keep:
    parser.error('--keep is for peers; ours are kept by benchmarks.sweep.')
  if not runs.plays(flags.peer, flags.game):
    parser.error(f'{flags.peer} plays Pong only here.')
  if flags.solve and flags.game not in common.TARGET_RETURNS:
    parser.error(f'--solve: there is no return that solves {flags.game}.')
  if not runs.can_run(flags.peer, flags.environment):
    parser.error(
        f'--environment {flags.environment} holds no Python; make it with '
        f'benchmarks/peers/install.sh {runs.installed_as(flags.peer)} DIRECTORY.')
  warm_up = 60. * flags.warm_up_minutes
  # Before the run, as the checkout may change meanwhile.
  machine = runs.made_on(flags.peer, flags.environment) if flags.keep else {}
  try:
    rows, memory = runs.play(
        flags.peer, flags.environment, flags.game, flags.seed,
        warm_up + 60. * flags.minutes,
        lambda rows: flags.solve and bool(common.solved_row(rows, flags.game)),
        flags.train_flags)
    figures = {'peer': flags.peer, 'seed': flags.seed,
               **summarize(rows, warm_up, flags.game), 'peak_memory_gib': memory}
  except RuntimeError as e:
    sys.exit(f'peers: error: {flags.peer}: {e}')

  common.print_header(list(figures))
  common.print_row([
      f'{value:,.5g}' if isinstance(value, float) else
      '-' if value is None else value for value in figures.values()])
  common.write_json(flags.json, {**figures, 'rows': rows})
  if flags.keep:
    runs.keep(flags.peer, flags.game, flags.seed, rows, memory=memory,
              minutes=flags.warm_up_minutes + flags.minutes, machine=machine)


if __name__ == '__main__':
  common.run(main)
