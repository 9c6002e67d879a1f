"""Two versions of the training program, in turn: `python -m benchmarks.compare`.

    python -m benchmarks.compare --checkout ../before      # two states of the code
    python -m benchmarks.compare -- --envs_per_actor 16    # two sets of settings

Trains Pong here with the default settings, and once more: with the code of
another checkout, with the flags after `--`, or both. Each is stopped in its
tracks while the other runs for some seconds, round after round, so that a
machine that is slow for a while is slow for both. Prints the median of each
one's timesteps a second, and of the ratio of this checkout's to the other's
within a round, with the spread.
"""

import argparse
import contextlib
import json
import os
import signal
import sys

import numpy as np

from benchmarks import throughput
from launch import settings as settings_lib

_HERE, _OTHER, _RATIO = 'here', 'other', 'here / other'


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--checkout', default=throughput.CHECKOUT,
                      help='the code of the other; by default the same')
  parser.add_argument('--rounds', type=int, default=12)
  parser.add_argument('--seconds', type=float, default=12.,
                      help='to measure each for, in each round')
  parser.add_argument('--json', help='also write the figures to this file')
  parser.add_argument('train_flags', nargs='*',
                      help='flags of launch.train for the other, after --')
  flags = parser.parse_args()
  # As Ctrl-C does: what was started ends too.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  throughput.check_positive('compare', flags, 'rounds', 'seconds')
  if not os.path.exists(os.path.join(flags.checkout, 'launch', 'train.py')):
    sys.exit(f'compare: error: --checkout {flags.checkout} has no '
             'launch/train.py; give a checkout of this project.')
  if flags.checkout == throughput.CHECKOUT:
    settings_lib.from_train_flags(flags.train_flags)  # Or says what is wrong.

  with contextlib.ExitStack() as stack:
    try:
      here, other = (
          stack.enter_context(contextlib.closing(throughput.Whole(*arguments)))
          for arguments in (([],), (flags.train_flags, flags.checkout)))
      rounds = [{_HERE: here.measure(flags.seconds),
                 _OTHER: other.measure(flags.seconds)}
                for _ in range(flags.rounds)]
    except RuntimeError as e:
      sys.exit(f'compare: error: {e}')

  rates = {name: np.array([r[name]['timesteps_per_second'] for r in rounds])
           for name in (_HERE, _OTHER)}
  rates[_RATIO] = rates[_HERE] / rates[_OTHER]
  throughput.print_spread('timesteps/s', rates, ',.4g')
  if flags.json:
    with open(flags.json, 'w') as f:
      json.dump({'ratio': float(np.median(rates[_RATIO])), 'rounds': rounds}, f,
                indent=2)


if __name__ == '__main__':
  main()
