"""How fast training is: `python -m benchmarks.throughput`.

Measures what each part of the system costs alone, in core-milliseconds per
timestep; from these, the rate at which the machine's cores could train if they
did nothing else (the bound); and the real command on Pong (the whole), with its
default settings, once the learner is under way. `efficiency` is the whole over
the bound. Flags after `--` go to the training command.

With `--compare` it measures two training programs instead:

    python -m benchmarks.throughput --compare ../before          # two states of code
    python -m benchmarks.throughput --compare -- --batch_size 6  # two settings

One uses this checkout, with the default settings; the other uses the given
checkout, with the flags after `--`. Prints the timesteps a second of each, and the
ratio of this checkout's to the other's within a round.

Everything is started once and then measured in turn, for some seconds, round
after round; training programs are paused in between. So a round's figures are of
the same half minute, and a machine that is slow for a while is slow for all of
them. Medians over rounds are printed.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Optional, Sequence

import numpy as np
import psutil

from benchmarks import common
from benchmarks import parts
from launch import settings as settings_lib
from programs.runtime import machine
from programs.runtime import records

_START_SECONDS = 120
_WARM_UP_ROWS = 3
# After a pause the program catches up on rows, which are of no use.
_RESUME_SECONDS = 1.
_LOADING = ('parallel', 'plain')
_LEARNER_RATE = 'learner_timesteps_per_second'
_OLD_LEARNER_RATE = 'learner_frames_per_second'  # Its column in older checkouts.


def start_parts(settings: settings_lib.Settings,
                stack: contextlib.ExitStack) -> dict[str, parts.Part]:
  """Starts each part, and the learner with its data loaded either way."""
  plain = dataclasses.replace(settings, agent=dataclasses.replace(
      settings.agent, prefetch_size=0, num_fetch_workers=1))
  to_start = {part.__name__: (part, settings) for part in (
      parts.environment, parts.policy, parts.insertion, parts.sampling,
      parts.learner)}
  to_start |= {name: (parts.learner_with_data, changed)
               for name, changed in zip(_LOADING, (settings, plain))}
  return {name: stack.enter_context(contextlib.closing(parts.Part(*arguments)))
          for name, arguments in to_start.items()}


def _times(part: str, samples_per_insert: float) -> float:
  """Returns how often a part is done for each timestep."""
  return samples_per_insert if part in ('sampling', 'learner') else 1.


def bound(costs: dict[str, parts.Cost], samples_per_insert: float) -> float:
  """Returns the timesteps a second if all cores do nothing but the parts."""
  seconds = sum(cost.core_seconds * _times(name, samples_per_insert)
                for name, cost in costs.items())
  return machine.cores() / seconds


class Whole:
  """The training program, which runs only while it is measured."""

  def __init__(self, train_flags: Sequence[str] = (),
               checkout: os.PathLike = common.CHECKOUT,
               stdout: int = subprocess.DEVNULL):
    """Starts training and waits until it learns.

    Args:
      train_flags: flags of the training command.
      checkout: the directory of the code to train with.
      stdout: a file descriptor for its output, such as that of a terminal.

    Raises:
      RuntimeError: if training does not start.
    """
    self._scratch = tempfile.TemporaryDirectory()
    run_dir = os.path.join(self._scratch.name, 'run')
    self._path = os.path.join(run_dir, records.PROGRESS_FILE)
    self._process = subprocess.Popen(
        [sys.executable, '-m', 'launch.train', '--game', 'pong', '--run_dir',
         run_dir, '--evaluation_interval', '0', *train_flags],
        cwd=checkout, stdout=stdout, env={**os.environ, 'TERM': 'xterm'})
    try:
      deadline = time.monotonic() + _START_SECONDS
      while sum(row['learner_steps'] > 0 for row in
                records.read(self._path)) <= _WARM_UP_ROWS:
        if self._process.poll() is not None or time.monotonic() > deadline:
          raise RuntimeError('training did not start; try the same flags with '
                             'python -m launch.train.')
        time.sleep(0.5)
    except BaseException:
      self.close()
      raise
    self._signal(signal.SIGSTOP)

  def measure(self, seconds: float) -> dict[str, float]:
    """Lets training go on for at least some seconds.

    Returns:
      Timesteps a second, the learner's rate, its waiting and the policy lag, and
      the program's memory.

    Raises:
      RuntimeError: if training ends meanwhile.
    """
    self._signal(signal.SIGCONT)
    time.sleep(_RESUME_SECONDS)
    first = len(records.read(self._path))
    rows: list[common.Row] = []
    while not rows or (rows[-1]['walltime_seconds'] <
                       rows[0]['walltime_seconds'] + seconds):
      if self._process.poll() is not None:
        raise RuntimeError('training ended while it was being measured.')
      time.sleep(0.2)
      rows = records.read(self._path)[first:]
    self._signal(signal.SIGSTOP)
    elapsed = rows[-1]['walltime_seconds'] - rows[0]['walltime_seconds']

    def mean(column: str) -> float:
      return float(np.mean([row[column] for row in rows[1:]]))

    return {
        'timesteps_per_second': (
            rows[-1]['timesteps'] - rows[0]['timesteps']) / elapsed,
        _LEARNER_RATE: mean(_LEARNER_RATE if _LEARNER_RATE in rows[0]
                            else _OLD_LEARNER_RATE),
        'learner_wait_fraction': mean('learner_wait_fraction'),
        'policy_lag': mean('policy_lag'),
        'memory_gib': common.memory_gib(psutil.Process(self._process.pid)),
    }

  def core_seconds(self) -> dict[str, float]:
    """Returns the core time used so far by the launcher and each kind of node."""
    launcher = psutil.Process(self._process.pid)
    used = collections.defaultdict(float, launcher=sum(launcher.cpu_times()[:2]))
    for process in launcher.children(recursive=True):
      with contextlib.suppress(psutil.NoSuchProcess):
        used[process.name().partition('/')[0]] += sum(process.cpu_times()[:2])
    return dict(used)

  def close(self) -> None:
    """Ends training."""
    if self._process.poll() is None:
      self._signal(signal.SIGCONT)
      self._process.send_signal(signal.SIGTERM)
    self._process.wait()
    self._scratch.cleanup()

  def _signal(self, signal_number: int):
    """Sends a signal to the launcher and to its nodes."""
    launcher = psutil.Process(self._process.pid)
    for process in [launcher, *launcher.children(recursive=True)]:
      with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal_number)


def measure_round(running: dict[str, parts.Part], whole: Whole,
                  samples_per_insert: float, part_seconds: float,
                  seconds: float) -> dict[str, Any]:
  """Measures everything once; returns what the JSON file holds for a round."""
  costs = {name: part.measure(part_seconds) for name, part in running.items()}
  loading = {name: costs.pop(name) for name in _LOADING}
  limit = bound(costs, samples_per_insert)
  measured = whole.measure(seconds)
  return {
      'efficiency': measured['timesteps_per_second'] / limit,
      **measured,
      'bound': limit,
      'parts': {name: dataclasses.asdict(c) for name, c in costs.items()},
      'loading': {name: dataclasses.asdict(c) for name, c in loading.items()}}


def summarize(rounds: list[Any]) -> Any:
  """Returns the median of each figure over rounds of the same structure."""
  if isinstance(rounds[0], dict):
    return {name: summarize([r[name] for r in rounds]) for name in rounds[0]}
  return float(np.median(rounds))


def _print_tables(result: dict[str, Any], rounds: list[dict[str, Any]],
                  samples_per_insert: float):
  common.print_header(['part alone', 'core-ms a timestep', 'times',
                       'timesteps a second'])
  for name, cost in result['parts'].items():
    common.print_row([name, f'{1e3 * cost["core_seconds"]:.4f}',
                      f'{_times(name, samples_per_insert):g}',
                      f'{cost["timesteps_per_second"]:,.0f}'])
  common.print_row([f'bound, {machine.cores()} cores',
                    f'{1e3 * machine.cores() / result["bound"]:.4f}', 1,
                    f'{result["bound"]:,.0f}'])
  print()
  common.print_header(['learner with data in the tables', 'waits',
                       'timesteps a second'])
  for name, cost in result['loading'].items():
    common.print_row([f'{name} loading', f'{cost["wait_fraction"]:.2%}',
                      f'{cost["timesteps_per_second"]:,.0f}'])
  print()
  common.print_spread('whole', {name: [r[name] for r in rounds]
                                for name, value in result.items()
                                if isinstance(value, float)}, ',.3f')


def measure_parts_and_whole(flags: argparse.Namespace) -> dict[str, Any]:
  """Prints what the parts cost and how fast the whole is; returns the figures."""
  settings = settings_lib.from_train_flags(flags.train_flags)
  samples_per_insert = settings.agent.samples_per_insert
  with contextlib.ExitStack() as stack:
    running = start_parts(settings, stack)
    whole = stack.enter_context(contextlib.closing(Whole(flags.train_flags)))
    rounds = [measure_round(running, whole, samples_per_insert,
                            flags.part_seconds, flags.seconds)
              for _ in range(flags.rounds)]
  result = summarize(rounds)
  _print_tables(result, rounds, samples_per_insert)
  return {**result, 'rounds': rounds}


def compare(flags: argparse.Namespace) -> dict[str, Any]:
  """Prints how fast two training programs are; returns the figures."""
  with contextlib.closing(Whole()) as here, contextlib.closing(
      Whole(flags.train_flags, flags.compare)) as other:
    rounds = common.take_turns({
        name: functools.partial(program.measure, flags.seconds)
        for name, program in (('here', here), ('other', other))}, flags.rounds)
  rates = {name: np.array([r[name]['timesteps_per_second'] for r in rounds])
           for name in rounds[0]}
  ratios = rates['here'] / rates['other']
  common.print_spread('timesteps/s', {**rates, 'here / other': ratios}, ',.4g')
  return {'ratio': float(np.median(ratios)), 'rounds': rounds}


def main(argv: Optional[Sequence[str]] = None) -> None:
  parser = common.Parser('throughput', __doc__)
  parser.add_argument('--compare', nargs='?', type=pathlib.Path, metavar='CHECKOUT',
                      const=common.CHECKOUT, help='measure training against the '
                      'code of another checkout, by default of this one')
  parser.add_argument('--rounds', type=common.positive(int), default=12,
                      help='how often to measure everything')
  parser.add_argument('--seconds', type=common.positive(float), default=15.,
                      help='to measure each training program for, in each round')
  parser.add_argument('--part_seconds', type=common.positive(float), default=1.5,
                      help='to measure each part for, in each round')
  parser.add_json()
  parser.add_train_flags()
  flags = parser.parse_args(argv)
  parser.check_checkout(flags.compare)
  if flags.compare == common.CHECKOUT:
    settings_lib.from_train_flags(flags.train_flags)  # Reports bad flags.
  try:
    figures = (compare if flags.compare else measure_parts_and_whole)(flags)
  except RuntimeError as e:
    sys.exit(f'throughput: error: {e}')
  common.write_json(flags.json, figures)


if __name__ == '__main__':
  common.run(main)
