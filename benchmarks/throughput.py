"""Timesteps a second while learning: `python -m benchmarks.throughput`.

Trains Pong by the real command with its default settings, in a directory of
its own, and measures from the rows of `progress.csv` once the learner is under
way. Flags after `--` go to the training command.
"""

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Dict, List

import numpy as np
import psutil

_START_SECONDS = 120
_WARM_UP_ROWS = 3


def _rows(run_dir: str) -> List[Dict[str, str]]:
  path = os.path.join(run_dir, 'progress.csv')
  if not os.path.exists(path):
    return []
  with open(path, newline='') as f:
    return list(csv.DictReader(f))


def _learning_rows(run_dir: str) -> List[Dict[str, str]]:
  rows = [row for row in _rows(run_dir) if int(row['learner_steps']) > 0]
  return rows[_WARM_UP_ROWS:]


def _memory_gib(process: psutil.Process) -> float:
  """Proportional set size of a process and all below it."""
  total = 0
  for p in [process, *process.children(recursive=True)]:
    try:
      total += p.memory_full_info().pss
    except psutil.Error:
      pass  # It has ended meanwhile.
  return total / 2**30


def measure(seconds: float, train_flags: List[str]) -> Dict[str, float]:
  """Runs the program and measures it for some seconds of learning.

  Args:
    seconds: how long to measure.
    train_flags: flags of the training command.

  Returns:
    Overall and median timesteps a second (over the rows), the learner's rate
    and waiting, the policy lag and the peak memory.

  Raises:
    RuntimeError: if training does not start or does not last.
  """
  with tempfile.TemporaryDirectory() as scratch:
    run_dir = os.path.join(scratch, 'run')
    process = subprocess.Popen(
        [sys.executable, '-m', 'launch.train', '--game', 'pong', '--run_dir',
         run_dir, '--evaluation_interval', '0', *train_flags],
        stdout=subprocess.DEVNULL)
    try:
      deadline = time.monotonic() + _START_SECONDS
      while not _learning_rows(run_dir):
        if process.poll() is not None or time.monotonic() > deadline:
          raise RuntimeError('training did not start; try the same flags with '
                             'python -m launch.train.')
        time.sleep(0.5)
      memory = 0.
      deadline = time.monotonic() + seconds
      while time.monotonic() < deadline and process.poll() is None:
        memory = max(memory, _memory_gib(psutil.Process(process.pid)))
        time.sleep(5.)
      if process.poll() is not None:
        raise RuntimeError('training ended while it was being measured.')
      rows = _learning_rows(run_dir)
    finally:
      if process.poll() is None:
        process.send_signal(signal.SIGTERM)
      process.wait()

  def column(name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])

  elapsed = column('walltime_seconds')[-1] - column('walltime_seconds')[0]
  return {
      'timesteps_per_second': float(
          (column('timesteps')[-1] - column('timesteps')[0]) / elapsed),
      'timesteps_per_second_median': float(
          np.median(column('timesteps_per_second'))),
      'learner_frames_per_second': float(
          np.median(column('learner_frames_per_second'))),
      'learner_wait_fraction': float(np.median(column('learner_wait_fraction'))),
      'policy_lag': float(np.median(column('policy_lag'))),
      'peak_memory_gib': memory,
      'seconds': float(elapsed),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seconds', type=float, default=60.)
  parser.add_argument('--json', help='also write the figures to this file')
  parser.add_argument('train_flags', nargs='*',
                      help='flags of launch.train, after --')
  flags = parser.parse_args()
  try:
    figures = measure(flags.seconds, flags.train_flags)
  except RuntimeError as e:
    sys.exit(f'throughput: error: {e}')
  for name, value in figures.items():
    print(f'{name:30} {value:12,.3f}')
  if flags.json:
    with open(flags.json, 'w') as f:
      json.dump(figures, f, indent=2)


if __name__ == '__main__':
  main()
