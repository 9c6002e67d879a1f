"""Larger machines on paper: `python -m benchmarks.estimate PARTS SCALE`.

PARTS and SCALE are the files that `benchmarks.throughput --json` and
`benchmarks.scale --hosts N --json` wrote, with the same flags of launch.train; of
SCALE only the row that wrote most timesteps is used. Prints a row for each number
of cores:

* `by cores`: timesteps a second, if the environment, policy and insertion cost what
  they do in PARTS, the shard and the learner's host what they do in SCALE, and as
  much is lost to waiting as in PARTS
* `acting`, `replay`, `learner`: how many of the cores each of them then takes
* `by learner`: timesteps a second that one learner takes, step after step, assuming
  that its GPUs compute in the time that SCALE slept
* `MB/s`, `1.7 million, min`: what hosts exchange, and how long the abstract's
  training takes, at the smaller of the two rates

Ignores limits that SCALE did not meet, and assumes cores like those measured.
"""

import json
from typing import Any, Mapping, Sequence

from benchmarks import common
from launch import settings as settings_lib

_ACTING = ('environment', 'policy', 'insertion')
_ABSTRACT_TIMESTEPS = 1.7e6


def estimate(parts: Mapping[str, Any], scale: Sequence[Mapping[str, float]],
             cores: int, timesteps_per_step: int) -> dict[str, float]:
  """Returns the figures for a number of cores.

  Args:
    parts: as `benchmarks.throughput` writes it.
    scale: rows as `benchmarks.scale` writes them, with hosts.
    cores: of all hosts together.
    timesteps_per_step: how many are new to the learner in each of its steps.
  """
  row = max(scale, key=lambda row: row['in/s'])
  seconds = {
      'acting': sum(parts['parts'][name]['core_seconds'] for name in _ACTING),
      **{name: row[f'{name} cores'] / row['in/s']
         for name in ('replay', 'learner')}}
  by_cores = parts['efficiency'] * cores / sum(seconds.values())
  by_learner = 1e3 * timesteps_per_step / row['step ms']
  rate = min(by_cores, by_learner)
  return {
      'by cores': by_cores,
      **{name: by_cores * cost for name, cost in seconds.items()},
      'by learner': by_learner,
      'MB/s': rate * row['bytes'] / 1e6,
      '1.7 million, min': _ABSTRACT_TIMESTEPS / rate / 60}


def main() -> None:
  parser = common.Parser('estimate', __doc__)
  parser.add_argument('parts', help='JSON of benchmarks.throughput')
  parser.add_argument('scale', help='JSON of benchmarks.scale')
  parser.add_argument('--cores', type=common.positive(int), nargs='+',
                      default=[128, 1000])
  parser.add_train_flags()
  flags = parser.parse_args()
  agent = settings_lib.from_train_flags(flags.train_flags).agent
  try:
    with open(flags.parts) as parts_file, open(flags.scale) as scale_file:
      parts, scale = json.load(parts_file), json.load(scale_file)
    rows = [estimate(parts, scale, cores, agent.timesteps_per_learner_step)
            for cores in flags.cores]
  except (OSError, ValueError, KeyError, TypeError) as e:
    parser.error(f'not what the two benchmarks write, with --hosts ({e!r}).')
  common.print_header(['cores', *rows[0]])
  for cores, row in zip(flags.cores, rows):
    common.print_row([cores, *(f'{x:,.4g}' for x in row.values())])


if __name__ == '__main__':
  common.run(main)
