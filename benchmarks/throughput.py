"""The parts, the bound and the whole: `python -m benchmarks.throughput`.

Measures what each part of the system costs alone, in core-milliseconds for a
timestep; from these, the rate at which the machine's cores could train if they
did nothing else; and then the real command on Pong, with its default settings,
once the learner is under way. `efficiency` is the whole over the bound. All of
it is measured in turn, several times, and the medians are printed. Flags after
`--` go to the training command.
"""

import argparse
import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Dict, List

import numpy as np
import psutil

from benchmarks import parts
from launch import settings as settings_lib

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


def measure_parts(settings: settings_lib.Settings,
                  seconds: float) -> Dict[str, parts.Cost]:
  """Measures each part for some seconds; the learner's are of one sample."""
  return {part.__name__: parts.measure(part, settings, seconds)
          for part in (parts.environment, parts.policy, parts.insertion,
                       parts.sampling, parts.learner)}


def compare_loading(settings: settings_lib.Settings,
                    seconds: float) -> Dict[str, parts.Cost]:
  """Measures the learner with the parallel data pipeline and a plain one."""
  plain = dataclasses.replace(settings, agent=dataclasses.replace(
      settings.agent, prefetch_size=0, num_fetch_workers=1))
  return {name: parts.measure(parts.learner_with_data, changed, seconds)
          for name, changed in (('parallel', settings), ('plain', plain))}


def _times(part: str, samples_per_insert: float) -> float:
  """Returns how often a part is done for each timestep."""
  return samples_per_insert if part in ('sampling', 'learner') else 1.


def bound(costs: Dict[str, parts.Cost], samples_per_insert: float) -> float:
  """Returns the timesteps a second of all cores doing nothing but the parts."""
  seconds = sum(cost.core_seconds * _times(name, samples_per_insert)
                for name, cost in costs.items())
  return os.cpu_count() / seconds


def measure_whole(seconds: float, train_flags: List[str]) -> Dict[str, float]:
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
        memory = max(memory, parts.memory_gib(psutil.Process(process.pid)))
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


def measure_round(settings: settings_lib.Settings, part_seconds: float,
                  seconds: float, train_flags: List[str]) -> Dict[str, Any]:
  """Measures everything once; returns what the JSON file holds of a round."""
  costs = measure_parts(settings, part_seconds)
  limit = bound(costs, settings.agent.samples_per_insert)
  loading = compare_loading(settings, part_seconds)
  whole = measure_whole(seconds, train_flags)
  return {
      'efficiency': whole['timesteps_per_second'] / limit,
      **whole,
      'bound': limit,
      'parts': {name: dataclasses.asdict(c) for name, c in costs.items()},
      'loading': {name: dataclasses.asdict(c) for name, c in loading.items()}}


def summarize(rounds: List[Any]) -> Any:
  """Returns the median of each figure over rounds of the same structure."""
  if isinstance(rounds[0], dict):
    return {name: summarize([r[name] for r in rounds]) for name in rounds[0]}
  return float(np.median(rounds))


def _print_tables(result: Dict[str, Any], rounds: List[Dict[str, Any]],
                  samples_per_insert: float):
  print('| part alone | core-ms a timestep | times | timesteps a second |')
  print('| --- | --- | --- | --- |')
  for name, cost in result['parts'].items():
    print(f'| {name} | {1e3 * cost["core_seconds"]:.4f} | '
          f'{_times(name, samples_per_insert):g} | '
          f'{cost["timesteps_per_second"]:,.0f} |')
  print(f'| bound, {os.cpu_count()} cores | '
        f'{1e3 * os.cpu_count() / result["bound"]:.4f} | 1 | '
        f'{result["bound"]:,.0f} |\n')
  print('| learner with data in the tables | waits | timesteps a second |')
  print('| --- | --- | --- |')
  for name, cost in result['loading'].items():
    print(f'| {name} loading | {cost["wait_fraction"]:.2%} | '
          f'{cost["timesteps_per_second"]:,.0f} |')
  print(f'\n| whole | median of {len(rounds)} | from | to |')
  print('| --- | --- | --- | --- |')
  for name, value in result.items():
    if isinstance(value, float):
      values = [r[name] for r in rounds]
      print(f'| {name} | {value:,.3f} | {min(values):,.3f} | '
            f'{max(values):,.3f} |')


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--rounds', type=int, default=3,
                      help='how often to measure everything')
  parser.add_argument('--seconds', type=float, default=40.,
                      help='to measure the whole for')
  parser.add_argument('--part_seconds', type=float, default=5.,
                      help='to measure each part for')
  parser.add_argument('--json', help='also write the figures to this file')
  parser.add_argument('train_flags', nargs='*',
                      help='flags of launch.train, after --')
  flags = parser.parse_args()
  for name in ('rounds', 'seconds', 'part_seconds'):
    if not getattr(flags, name) > 0:
      sys.exit(f'throughput: error: --{name} must be positive, not '
               f'{getattr(flags, name)}.')
  settings = settings_lib.from_train_flags(flags.train_flags)
  try:
    rounds = [measure_round(settings, flags.part_seconds, flags.seconds,
                            flags.train_flags) for _ in range(flags.rounds)]
  except RuntimeError as e:
    sys.exit(f'throughput: error: {e}')
  result = summarize(rounds)
  _print_tables(result, rounds, settings.agent.samples_per_insert)
  if flags.json:
    with open(flags.json, 'w') as f:
      json.dump({**result, 'rounds': rounds}, f, indent=2)


if __name__ == '__main__':
  main()
