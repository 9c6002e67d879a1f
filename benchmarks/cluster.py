"""Pong on a Ray cluster of hosts: `python -m benchmarks.cluster`.

The hosts are namespaces of this machine (`benchmarks.hosts`) that share its cores,
on a wire that delays what it carries; the same run without Ray is measured too.
Needs the right to make namespaces, which root has. Prints a row for each run:

* `timesteps/s`, `lag`: of acting, and how many learner steps old the policy was
* `waits`: the fraction of its time that the learner waits for timesteps
* `pulls/s`: how often the learner's weights went over the wire
* `bytes`: what the wire carried for each timestep

and a row for each fault, in the first run without Ray and the first with it: the
seconds until a row of progress reached 0.7 times the rate before, and the seconds
of learning that were undone.
"""

import contextlib
import functools
import itertools
import os
import signal
import statistics
import time
from typing import Any, Callable, Iterator

import psutil

from benchmarks import common
from benchmarks import faults
from benchmarks import hosts as hosts_lib
from launch import settings as settings_lib

# The learner, a shard and an actor; and an actor on each of the other hosts.
_HEAD_CPUS = 3
_RETRIES = 20
_TITLES = ('hosts', 'delay ms', 'timesteps/s', 'lag', 'waits', 'pulls/s', 'bytes')
_FAULT_TITLES = ('hosts', 'delay ms', 'fault', 'back after, s', 'lost, s')


class Run(faults.Run):
  """A run on hosts."""
  # Ray gives up a host after half a minute, and starts slowly on few cores.
  patience_seconds = 600.

  def __init__(self, hosts: hosts_lib.Hosts, *flags: str):
    """Starts a run on the first of the hosts."""
    self.hosts = hosts
    super().__init__(
        '--lp_launch_type', 'ray', '--ray_address', 'auto', '--retries',
        str(_RETRIES), *flags, enter=hosts.head.command)

  def node(self, name: str) -> psutil.Process:
    return self.hosts.node(name)[1]

  def interrupt(self) -> None:
    for trainer in psutil.Process(self.process.pid).children():
      trainer.send_signal(signal.SIGINT)


@contextlib.contextmanager
def running(num_hosts: int, delay_ms: float, *flags: str) -> Iterator[Run]:
  """Trains on `num_hosts` hosts for as long as the context lasts."""
  cpus = [_HEAD_CPUS, *[1] * (num_hosts - 1)]
  with hosts_lib.made(cpus, delay_ms) as hosts, Run(
      hosts, '--num_actors', str(num_hosts), *flags) as run:
    run.wait_until_steady()
    yield run


@contextlib.contextmanager
def running_here(num_actors: int, *flags: str) -> Iterator[faults.Run]:
  """Trains without Ray for as long as the context lasts."""
  with faults.Run('--num_actors', str(num_actors), *flags) as run:
    run.wait_until_steady()
    yield run


def measure(run: faults.Run, seconds: float,
            bytes_carried: Callable[[], int]) -> dict[str, float]:
  """Returns the figures of some seconds of a run."""
  first, carried = run.rows()[-1], bytes_carried()
  number = len(run.rows())
  time.sleep(seconds)
  run.wait_for(lambda: len(run.rows()) > number, 'row of progress')
  rows = run.rows()[number:]
  last, carried = rows[-1], bytes_carried() - carried
  timesteps = last['timesteps'] - first['timesteps']
  elapsed = last['walltime_seconds'] - first['walltime_seconds']
  return {
      'timesteps/s': timesteps / elapsed,
      'lag': statistics.mean(row['policy_lag'] for row in rows),
      'waits': statistics.mean(row['learner_wait_fraction'] for row in rows),
      'pulls/s': (last['weight_pulls'] - first['weight_pulls']) / elapsed,
      'bytes': carried / timesteps}


Fault = tuple[str, float, float]


def kill_nodes(run: faults.Run) -> Iterator[Fault]:
  """Kills nodes of a run; yields each with what `faults.Run.recovery` returns."""
  for name in ('actor/1', 'replay/0', 'learner/0', 'counter/0'):
    yield (f'{name} killed',
           *run.recovery(functools.partial(faults.kill, run, name)))


def lose_a_host(run: Run) -> Iterator[Fault]:
  """Takes a host of actors away from a run, and brings it back."""
  far, _ = run.hosts.node('actor/1')
  assert far != 1, 'the head has room for one actor'

  log = os.path.join(run.directory, settings_lib.LOGS, 'actor_1.log')

  def starts() -> int:
    with open(log) as f:
      return f.read().count('has weights')

  yield 'host lost', *run.recovery(lambda: run.hosts.kill(far))
  before = starts()
  run.hosts.add(far, 1)
  yield ('host back, until its actor acts',
         run.wait_for(lambda: starts() > before, 'actor'), 0.)


def main() -> None:
  parser = common.Parser('cluster', __doc__)
  parser.add_argument('--hosts', type=common.positive(int), nargs='+',
                      default=[2, 4])
  parser.add_argument('--delays', type=float, nargs='+', default=[1., 10.],
                      help='milliseconds that the wire adds one way; 0 for none')
  parser.add_argument('--seconds', type=common.positive(float), default=45.)
  parser.add_argument('--no_faults', action='store_true',
                      help='do not measure what runs make of faults')
  parser.add_json()
  parser.add_train_flags()
  flags = parser.parse_args()
  if not flags.no_faults and flags.hosts[0] == 1:
    parser.error('faults need the actor of a second host: give --hosts from 2 on, '
                 'or --no_faults.')
  train_flags = ['--evaluation_interval', '0', *flags.train_flags]
  rows: list[dict[str, Any]] = []
  fault_rows: list[dict[str, Any]] = []

  def write():
    common.write_json(flags.json, {'runs': rows, 'faults': fault_rows})

  def show(hosts: object, delay: object, figures: dict[str, float]):
    rows.append(dict(zip(_TITLES, (hosts, delay, *figures.values()))))
    write()
    common.print_row([hosts, delay, *(f'{x:,.4g}' for x in figures.values())])

  def show_faults(hosts: object, delay: object, seen: Iterator[Fault]):
    if not flags.no_faults:
      fault_rows.extend(dict(zip(_FAULT_TITLES, (hosts, delay, *fault)))
                        for fault in seen)
      write()

  common.print_header(_TITLES)
  for number in flags.hosts:
    is_first = number == flags.hosts[0]
    with running_here(number, *train_flags) as here:
      name = f'none, {number} actors'
      show(name, '', measure(here, flags.seconds, lambda: 0))
      if is_first:
        show_faults(name, '', kill_nodes(here))
    for delay in flags.delays:
      with running(number, delay, *train_flags) as run:
        show(number, f'{delay:g}',
             measure(run, flags.seconds, run.hosts.bytes_carried))
        if is_first and delay == flags.delays[0]:
          show_faults(number, f'{delay:g}',
                      itertools.chain(kill_nodes(run), lose_a_host(run)))
  if fault_rows:
    print()
    common.print_header(_FAULT_TITLES)
    for row in fault_rows:
      common.print_row([f'{x:.1f}' if isinstance(x, float) else x
                        for x in row.values()])


if __name__ == '__main__':
  common.run(main)
