"""The same game by what people would use instead: `python -m benchmarks.peers`.

    benchmarks/peers/install.sh cleanrl_ppo /tmp/cleanrl
    python -m benchmarks.peers --peer cleanrl_ppo --environment /tmp/cleanrl
    python -m benchmarks.peers --peer ours

Runs one peer on a game and measures its timesteps a second for some minutes after
a warm-up; with `--solve` for as long as it takes to solve Pong. Frames are grey,
of four emulator frames each, stacked by four, after up to 30 no-ops and without
sticky actions; their size is the peer's choice. Prints a row of a table. With
`--keep` the thinned rows go to `benchmarks/results/<game>/peer_<name>/seed<k>/`,
where `benchmarks.sweep --report` finds them. `benchmarks.games` runs several peers
on several games.
"""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Sequence

import numpy as np
import psutil

from benchmarks import common
from programs.runtime import records

OURS = 'ours'
# By the directory of the environment that install.sh makes: scripts that play any
# game, with what they take after it; and those that play Pong only.
_ANY_GAME = {'cleanrl_ppo': ('cleanrl_ppo', '84'),
             'cleanrl_ppo_42': ('cleanrl_ppo', '42'),
             'sb3_ppo': ('sb3_ppo',)}
_ONLY_PONG = ('acme_impala', 'rllib_appo', 'sample_factory_appo')
PEERS = (*_ANY_GAME, *_ONLY_PONG)
_DIRECTORY = pathlib.Path(__file__).parent
_START_SECONDS = 300.
_STOP_SECONDS = 20.
_LOOK_SECONDS = 5.


def plays(peer: str, game: str) -> bool:
  """Tells whether a peer's script can play a game."""
  return game == 'pong' or peer not in _ONLY_PONG


def installed_as(peer: str) -> str:
  """Returns the name by which install.sh knows what a peer needs."""
  return _ANY_GAME.get(peer, (peer,))[0]


def command(peer: str, environment: str, game: str, seed: int, run_dir: str,
            train_flags: Sequence[str] = ()) -> list[str]:
  """Returns what starts a peer.

  Args:
    peer: of `PEERS`, or `OURS`.
    environment: the directory that install.sh made; not read for ours.
    game: a ROM's name, such as ms_pacman.
    seed: of the run.
    run_dir: where its rows are to be.
    train_flags: of launch.train, for ours.
  """
  if peer == OURS:
    return [sys.executable, '-m', 'launch.train', '--game', game, '--run_dir',
            run_dir, '--seed', str(seed), '--max_timesteps', str(10**9),
            *train_flags]
  script, *options = _ANY_GAME.get(peer, (peer,))
  return [os.path.join(environment, 'bin', 'python'),
          str(_DIRECTORY / f'{script}.py'),
          os.path.join(run_dir, records.PROGRESS_FILE), str(seed),
          *([game, *options] if peer in _ANY_GAME else [])]


def _stop(process: subprocess.Popen):
  """Ends a peer and whatever it has started."""
  everything = [psutil.Process(process.pid)]
  everything += everything[0].children(recursive=True)
  process.send_signal(signal.SIGTERM)
  _, alive = psutil.wait_procs(everything, _STOP_SECONDS)
  for other in alive:
    other.kill()
  process.wait()


def run(command: list[str], run_dir: str, seconds: float,
        until: Callable[[Sequence[common.Row]], bool] = lambda rows: False,
        ) -> tuple[list[common.Row], float]:
  """Runs a peer; returns the rows that it wrote, and its peak memory in GiB.

  Args:
    command: starts it.
    run_dir: where it writes its rows.
    seconds: to let it go on for after its first row.
    until: of the rows so far; whether to stop before.

  Raises:
    RuntimeError: if it ends by itself, or does not start.
  """
  progress = os.path.join(run_dir, records.PROGRESS_FILE)
  output_path = os.path.join(os.path.dirname(run_dir), 'output.txt')
  with open(output_path, 'w') as output:
    process = subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT,
        # Ours finds its packages from here, the others write where they are.
        cwd=None if 'launch.train' in command else run_dir,
        env={**os.environ, 'PYTHONPATH': ''})
    memory = 0.
    try:
      deadline = time.monotonic() + _START_SECONDS
      started = False
      while time.monotonic() < deadline:
        if process.poll() is not None:
          break
        rows = records.read(progress)
        if rows and not started:
          started = True
          deadline = time.monotonic() + seconds
        if until(rows):
          break
        memory = max(memory, common.memory_gib(psutil.Process(process.pid)))
        time.sleep(_LOOK_SECONDS)
      rows = records.read(progress)
      if process.poll() is not None or not rows:
        output.flush()
        with open(output_path) as f:
          tail = f.read()[-2000:]
        raise RuntimeError(f'it did not run; it said last:\n{tail}')
    finally:
      if process.poll() is None:
        _stop(process)
  return rows, memory


def summarize(rows: Sequence[common.Row], warm_up: float,
              game: str) -> dict[str, Any]:
  """Returns the figures of a run; the rate is of after the warm-up, in seconds.

  Raises:
    RuntimeError: if there are no two rows after the warm-up.
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
  parser.add_argument('--peer', required=True, choices=(*PEERS, OURS))
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
  common.end_on_sigterm()
  if flags.peer == OURS and flags.keep:
    parser.error('--keep is for peers; ours are kept by benchmarks.sweep.')
  if not plays(flags.peer, flags.game):
    parser.error(f'{flags.peer} plays Pong only here.')
  if flags.solve and flags.game not in common.TARGET_RETURNS:
    parser.error(f'--solve: there is no return that solves {flags.game}.')
  if flags.peer != OURS and not (flags.environment and os.path.exists(
      os.path.join(flags.environment, 'bin', 'python'))):
    parser.error(
        f'--environment {flags.environment} holds no Python; make it with '
        f'benchmarks/peers/install.sh {installed_as(flags.peer)} DIRECTORY.')
  warm_up = 60. * flags.warm_up_minutes
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
    run_dir = os.path.join(scratch, 'run')
    os.mkdir(run_dir)
    try:
      rows, memory = run(
          command(flags.peer, flags.environment, flags.game, flags.seed, run_dir,
                  flags.train_flags),
          run_dir, warm_up + 60. * flags.minutes,
          lambda rows: flags.solve and bool(common.solved_row(rows, flags.game)))
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
    common.keep_rows(flags.game, f'peer_{flags.peer}', flags.seed, rows)


if __name__ == '__main__':
  main()
