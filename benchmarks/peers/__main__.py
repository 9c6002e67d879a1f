"""The same game by what people would use instead: `python -m benchmarks.peers`.

    benchmarks/peers/install.sh cleanrl_ppo /tmp/cleanrl
    python -m benchmarks.peers --peer cleanrl_ppo --environment /tmp/cleanrl
    python -m benchmarks.peers --peer ours

Runs one peer on Pong and measures its timesteps a second for some minutes after
a warm-up; with `--solve` for as long as it takes to solve Pong. Frames are grey,
of four emulator frames each, stacked by four, after up to 30 no-ops and without
sticky actions; their size is the peer's choice. Prints a row of a table.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Dict, List, Optional

import numpy as np
import psutil

from benchmarks import parts

OURS = 'ours'
PEERS = ('acme_impala', 'cleanrl_ppo', 'rllib_appo', 'sample_factory_appo')
SOLVED = 18.
_DIRECTORY = pathlib.Path(__file__).parent
_START_SECONDS = 300.
_STOP_SECONDS = 20.
_LOOK_SECONDS = 5.


def _command(peer: str, environment: Optional[str], scratch: str, seed: int,
             train_flags: List[str]) -> List[str]:
  if peer == OURS:
    return [sys.executable, '-m', 'launch.train', '--run_dir',
            os.path.join(scratch, 'run'), '--seed', str(seed),
            '--max_timesteps', str(10**9), *train_flags]
  return [os.path.join(environment, 'bin', 'python'),
          str(_DIRECTORY / f'{peer}.py'), os.path.join(scratch, 'progress.csv'),
          str(seed)]


def _rows(scratch: str) -> List[Dict[str, float]]:
  return (parts.read_progress(os.path.join(scratch, 'progress.csv')) or
          parts.read_progress(os.path.join(scratch, 'run', 'progress.csv')))


def _solved_row(rows: List[Dict[str, float]]) -> Optional[Dict[str, float]]:
  for row in rows:
    if row['episodes'] >= 100 and row['episode_return_mean_100'] >= SOLVED:
      return row
  return None


def _stop(process: subprocess.Popen):
  """Ends a peer and whatever it has started."""
  everything = [psutil.Process(process.pid)]
  everything += everything[0].children(recursive=True)
  process.send_signal(signal.SIGTERM)
  _, alive = psutil.wait_procs(everything, _STOP_SECONDS)
  for other in alive:
    other.kill()
  process.wait()


def run(command: List[str], scratch: str, warm_up: float, seconds: float,
        solve: bool) -> List[Dict[str, float]]:
  """Runs a peer and returns the rows that it wrote.

  Args:
    command: starts it.
    scratch: where it runs, and writes its rows.
    warm_up: seconds after its first row before it is measured.
    seconds: to measure it for.
    solve: whether to stop once the game is solved.

  Raises:
    RuntimeError: if it ends by itself, or does not start.
  """
  output_path = os.path.join(scratch, 'output.txt')
  with open(output_path, 'w') as output:
    process = subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT,
        # Ours finds its packages from here, the others write where they are.
        cwd=None if 'launch.train' in command else scratch,
        env={**os.environ, 'PYTHONPATH': ''})
    memory = 0.
    try:
      deadline = time.monotonic() + _START_SECONDS
      started = False
      while time.monotonic() < deadline:
        if process.poll() is not None:
          break
        rows = _rows(scratch)
        if rows and not started:
          started = True
          deadline = time.monotonic() + warm_up + seconds
        if solve and _solved_row(rows):
          break
        memory = max(memory, parts.memory_gib(psutil.Process(process.pid)))
        time.sleep(_LOOK_SECONDS)
      rows = _rows(scratch)
      if process.poll() is not None or not rows:
        output.flush()
        with open(output_path) as f:
          tail = f.read()[-2000:]
        raise RuntimeError(f'it did not run; it said last:\n{tail}')
    finally:
      if process.poll() is None:
        _stop(process)
  for row in rows:
    row['peak_memory_gib'] = memory
  return rows


def main() -> int:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--peer', required=True, choices=(*PEERS, OURS))
  parser.add_argument('--environment',
                      help='the directory that install.sh made for the peer')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--minutes', type=float, default=5., help=(
      'to measure for, after the warm-up; with --solve at the longest'))
  parser.add_argument('--warm_up_minutes', type=float, default=1.)
  parser.add_argument('--solve', action='store_true',
                      help='go on until Pong is solved')
  parser.add_argument('--json', help='also write the figures and rows here')
  parser.add_argument('train_flags', nargs='*',
                      help='flags of launch.train, after --; ours only')
  flags = parser.parse_args()
  # As Ctrl-C does: what was started ends too.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  if flags.peer != OURS and not (flags.environment and os.path.exists(
      os.path.join(flags.environment, 'bin', 'python'))):
    sys.exit(f'peers: error: --environment {flags.environment} holds no Python; '
             f'make it with benchmarks/peers/install.sh {flags.peer} DIRECTORY.')
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
    try:
      rows = run(_command(flags.peer, flags.environment, scratch, flags.seed,
                          flags.train_flags),
                 scratch, 60. * flags.warm_up_minutes, 60. * flags.minutes,
                 flags.solve)
    except RuntimeError as e:
      sys.exit(f'peers: error: {flags.peer}: {e}')

  warm = [row for row in rows if row['walltime_seconds'] >=
          rows[0]['walltime_seconds'] + 60. * flags.warm_up_minutes]
  times = np.array([row['walltime_seconds'] for row in warm])
  counts = np.array([row['timesteps'] for row in warm])
  if len(warm) < 2:
    sys.exit(f'peers: error: {flags.peer} wrote no two rows after the warm-up; '
             'give it more --minutes.')
  # The rate of each whole minute shows how steady it is.
  edges = np.arange(times[0], times[-1] + 1e-3, 60.)
  by_minute = np.diff(np.interp(edges, times, counts)) / 60.
  solved = _solved_row(rows)
  figures = {
      'peer': flags.peer,
      'seed': flags.seed,
      'timesteps_per_second': (counts[-1] - counts[0]) / (times[-1] - times[0]),
      'slowest_minute': float(by_minute.min()) if len(by_minute) else None,
      'fastest_minute': float(by_minute.max()) if len(by_minute) else None,
      'peak_memory_gib': rows[-1]['peak_memory_gib'],
      'timesteps': rows[-1]['timesteps'],
      'minutes': rows[-1]['walltime_seconds'] / 60.,
      'last_mean_return': rows[-1]['episode_return_mean_100'],
      'solved_timesteps': solved['timesteps'] if solved else None,
      'solved_minutes': solved['walltime_seconds'] / 60. if solved else None,
  }
  print('| ' + ' | '.join(figures) + ' |\n' + '| --- ' * len(figures) + '|')
  print('| ' + ' | '.join(
      f'{value:,.5g}' if isinstance(value, float) else
      '-' if value is None else str(value) for value in figures.values()) + ' |')
  if flags.json:
    with open(flags.json, 'w') as f:
      json.dump({**figures, 'rows': rows}, f, indent=2)
  return 0


if __name__ == '__main__':
  sys.exit(main())
