"""What watching a run costs: `python -m benchmarks.watching`.

Trains Pong twice, in turn, round after round, as `benchmarks.throughput --compare`
does: once as people do, on a terminal, with the live display, all records, the
board, pictures and warnings; and once with the least that can be measured: rows of
progress in their file, and `--quiet`. Prints

* the rate, and the ratio of the watched run's to the other's within a round;
* the shares of a run's core time that go to its launcher, which draws the display,
  and to its counter, which writes records and board; and how much larger both are
  in the watched run. This is sharper, as it excludes the machine's other load.

The learner draws the pictures, so they affect the rate only. Flags after `--` go to
both training commands.
"""

import contextlib
import functools
import os
import pathlib
import shutil
import sys
import tempfile
import threading
from typing import Optional, Sequence

import numpy as np

from benchmarks import common
from benchmarks import throughput
from launch import settings as settings_lib

_PACKAGES = ('agents', 'programs', 'launch')
# Appended to modules, in a copy of the code.
_LEAST = {
    'programs/runtime/collectors.py': """
def progress_logger(run_dir, verbose, track=None):
  return records.progress_csv_logger(run_dir)
""",
    'programs/nodes/learner.py': "_PICTURE_SECONDS = float('inf')\n",
}
_WATCHES = ('launcher', 'counter')
# A run is paused while the other is measured; that must not count as a hung step.
_PATIENT = ('--step_timeout', '3600')


@contextlib.contextmanager
def unwatched_code():
  """Yields a checkout whose runs keep only the rows of their progress."""
  with tempfile.TemporaryDirectory() as scratch:
    checkout = pathlib.Path(scratch)
    for package in _PACKAGES:
      shutil.copytree(common.CHECKOUT / package, checkout / package)
    for module, text in _LEAST.items():
      with open(checkout / module, 'a') as f:
        f.write(text)
    yield checkout


@contextlib.contextmanager
def terminal():
  """Yields the file descriptor of a terminal that nobody looks at."""
  reader, writer = os.openpty()

  def read():
    with contextlib.suppress(OSError):  # It ends with its last writer.
      while os.read(reader, 1 << 16):
        pass

  thread = threading.Thread(target=read, daemon=True)
  thread.start()
  try:
    yield writer
  finally:
    os.close(writer)
    thread.join()
    os.close(reader)


def measure(whole: throughput.Whole, seconds: float) -> dict[str, float]:
  """Returns the rate of a run, and shares of its core time."""
  before = whole.core_seconds()
  figures = whole.measure(seconds)
  used = {name: value - before.get(name, 0.)
          for name, value in whole.core_seconds().items()}
  total = sum(used.values())
  return {'timesteps/s': figures['timesteps_per_second'],
          **{f'% of core time: {name}': 100 * used[name] / total
             for name in _WATCHES}}


def main(argv: Optional[Sequence[str]] = None) -> None:
  parser = common.Parser('watching', __doc__)
  parser.add_argument('--rounds', type=common.positive(int), default=12,
                      help='how often to measure both')
  parser.add_argument('--seconds', type=common.positive(float), default=30.,
                      help='to measure each for, in each round')
  parser.add_json()
  parser.add_train_flags()
  flags = parser.parse_args(argv)
  settings_lib.from_train_flags(flags.train_flags)  # Reports bad flags.
  try:
    with contextlib.ExitStack() as stack:
      watched, least = (
          stack.enter_context(contextlib.closing(throughput.Whole(*arguments)))
          for arguments in (
              ([*_PATIENT, *flags.train_flags], common.CHECKOUT,
               stack.enter_context(terminal())),
              (['--quiet', *_PATIENT, *flags.train_flags],
               stack.enter_context(unwatched_code()))))
      rounds = common.take_turns({
          name: functools.partial(measure, run, flags.seconds)
          for name, run in (('watched', watched), ('least', least))}, flags.rounds)
  except RuntimeError as e:
    sys.exit(f'watching: error: {e}')
  columns = {f'{run}: {what}': np.array([r[run][what] for r in rounds])
             for run in rounds[0] for what in rounds[0][run]}
  columns['watched / least: timesteps/s'] = (
      columns['watched: timesteps/s'] / columns['least: timesteps/s'])
  columns['watched - least: % of core time'] = sum(
      columns[f'watched: % of core time: {name}'] -
      columns[f'least: % of core time: {name}'] for name in _WATCHES)
  common.print_spread('figure', columns, '.4g')
  common.write_json(flags.json, rounds)


if __name__ == '__main__':
  common.run(main)
