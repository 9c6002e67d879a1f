"""How long training takes to start: `python -m benchmarks.startup`.

Starts the training command on Pong in each round, and stops it once there are
timesteps. Prints the seconds to the first line of output and to the first timestep,
and the processor time that all processes had used by then, which does not depend on
the machine's other load. `--compare ../before` takes turns with the code of another
checkout, and prints the ratio of this checkout's figures to the other's. Flags
after `--` go to the training command.
"""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Optional, Sequence

import numpy as np
import psutil

from benchmarks import common
from programs.runtime import records

_START_SECONDS = 300
_POLL_SECONDS = 0.05


def _processor_seconds(process: psutil.Process) -> float:
  """Returns the processor time used so far by a process and its descendants."""
  total = 0.
  for p in [process, *process.children(recursive=True)]:
    with contextlib.suppress(psutil.Error):
      total += sum(p.cpu_times()[:4])
  return total


def measure(checkout: os.PathLike, train_flags: Sequence[str]) -> dict[str, float]:
  """Starts training once.

  Args:
    checkout: the directory of the code to train with.
    train_flags: flags of the training command.

  Returns:
    Seconds, by the name of the figure.

  Raises:
    RuntimeError: if training does not start.
  """
  with tempfile.TemporaryDirectory() as scratch:
    run_dir = os.path.join(scratch, 'run')
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, '-m', 'launch.train', '--game', 'pong', '--run_dir',
         run_dir, '--progress_seconds', '0.1', *train_flags],
        cwd=checkout, stdout=subprocess.PIPE)
    try:
      assert process.stdout is not None
      process.stdout.readline()
      first_line = time.monotonic() - began
      os.set_blocking(process.stdout.fileno(), False)
      while not records.read(os.path.join(run_dir, records.PROGRESS_FILE)):
        process.stdout.read()
        if process.poll() is not None or time.monotonic() > began + _START_SECONDS:
          raise RuntimeError('training did not start; try the same flags with '
                             'python -m launch.train.')
        time.sleep(_POLL_SECONDS)
      return {'first line': first_line,
              'first timestep': time.monotonic() - began,
              'processor time': _processor_seconds(psutil.Process(process.pid))}
    finally:
      process.terminate()
      process.communicate()


def main(argv: Optional[Sequence[str]] = None) -> None:
  parser = common.Parser('startup', __doc__)
  parser.add_argument('--compare', type=pathlib.Path, metavar='CHECKOUT',
                      help='measure in turn with the code of another checkout')
  parser.add_argument('--rounds', type=common.positive(int), default=6,
                      help='how often to start')
  parser.add_json()
  parser.add_train_flags()
  flags = parser.parse_args(argv)
  parser.check_checkout(flags.compare)
  checkouts = {'here': common.CHECKOUT} | (
      {'other': flags.compare} if flags.compare else {})
  try:
    rounds = [{name: measure(checkout, flags.train_flags)
               for name, checkout in checkouts.items()}
              for _ in range(flags.rounds)]
  except RuntimeError as e:
    sys.exit(f'startup: error: {e}')
  figures = {f'{name}: {what}': np.array([r[name][what] for r in rounds])
             for name in checkouts for what in rounds[0][name]}
  if flags.compare:
    figures |= {f'here / other: {what}':
                figures[f'here: {what}'] / figures[f'other: {what}']
                for what in rounds[0]['here']}
  common.print_spread('seconds', figures, '.3g')
  common.write_json(flags.json, rounds)


if __name__ == '__main__':
  common.run(main)
