"""The paper's scale on one machine: `python -m benchmarks.scale`.

Runs the real Reverb shards, adders, data pipeline, variable source and a
learner of two replicas against many concurrent actor clients, which write
recorded trajectories of Pong at the pace of real actors and ask for variables
as actors do. Clients are threads of a few processes, as that many TensorFlow
processes would not fit. The learner's compute, the work of two GPUs, is a fixed
delay unless `--real_learner` is given.

With `--hosts` the processes are spread over that many hosts of a Ray cluster, which
are namespaces of this machine (`benchmarks.hosts`): a process of clients on each,
and the shards on different ones. Further columns then give the bytes that the hosts
exchange for each timestep, and the cores that each kind of process takes.

Prints a row for each number of clients and of shards. With `--soak_minutes` it
runs only the largest of them, for that long, and prints a row a minute.
"""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import time
from typing import Iterator, NamedTuple, Optional, Sequence

import numpy as np
import psutil

from benchmarks import common
from benchmarks import hosts as hosts_lib
from benchmarks import replayed
from launch import settings as settings_lib


def _entries(out: str, prefix: str, name: str) -> np.ndarray:
  """Returns the entries [N, 2] (time, value) of a log, in order of time."""
  found = [np.zeros([0, 2])]
  for file in os.listdir(out):
    if file.startswith(prefix):
      with np.load(os.path.join(out, file)) as log:
        if name in log:
          found.append(log[name])
  entries = np.concatenate(found)
  return entries[np.argsort(entries[:, 0], kind='stable')]


def _rows(cell: replayed.Cell,
          seconds: float) -> Iterator[tuple[float, dict[str, float]]]:
  """Yields the start and the figures of each successive interval of a run."""
  logs = {
      'append': _entries(cell.out, 'clients', 'append'),
      'pull': _entries(cell.out, 'clients', 'pull'),
      **{name: _entries(cell.out, 'learner', name)
         for name in ('waited', 'computed', 'lag')},
      'gib': _entries(cell.out, 'memory', 'gib')}
  start = logs['gib'][0, 0] + replayed.WARM_UP_SECONDS
  agent = cell.settings.agent
  while start + 0.9 * seconds <= logs['gib'][-1, 0] + replayed.MEMORY_SECONDS:
    now = {name: log[(log[:, 0] >= start) & (log[:, 0] < start + seconds), 1]
           for name, log in logs.items()}
    steps = len(now['computed'])
    if not len(now['pull']):
      now['pull'] = np.array([np.nan])
    yield start, {
        'clients': cell.num_clients,
        'shards': cell.num_shards,
        'in/s': len(now['append']) * cell.settings.run.envs_per_actor / seconds,
        'learned/s': steps * agent.batch_size * agent.sequence_length / seconds,
        **{f'{name} p{percent} ms': 1e3 * np.percentile(now[name], percent)
           for name in ('append', 'pull') for percent in (50, 99)},
        'lag': np.mean(now['lag']),
        'step ms': 1e3 * np.mean(now['computed']),
        'waits': np.sum(now['waited']) / (np.sum(now['waited']) +
                                          np.sum(now['computed'])),
        'GiB': np.max(now['gib']),
    }
    start += seconds


def run_cell(cell: replayed.Cell, row_seconds: float) -> list[dict[str, float]]:
  """Runs a cell and returns its figures, one row for each `row_seconds`."""
  with tempfile.TemporaryDirectory() as out:
    cell = dataclasses.replace(cell, out=out)
    if cell.num_hosts:
      samples = _run_on_hosts(cell)
      return [{**row, **_on_hosts(samples, start, row_seconds, row['in/s'])}
              for start, row in _rows(cell, row_seconds)]
    process = multiprocessing.get_context('spawn').Process(
        target=replayed.launch, args=(cell,))
    process.start()
    try:
      process.join()
    except KeyboardInterrupt:
      process.terminate()
      process.join()
      raise
    _check(cell, process.exitcode)
    return [row for _, row in _rows(cell, row_seconds)]


def _check(cell: replayed.Cell, code: Optional[int]) -> None:
  if code:
    with open(os.path.join(cell.out, replayed.OUTPUT_FILE)) as f:
      tail = f.read()[-2000:]
    sys.exit(f'scale: error: the program failed; its nodes said last:\n{tail}')


class _Sample(NamedTuple):
  """What the hosts have done up to some time.

  Attributes:
    time: in seconds.
    cpu: seconds of processor time of each node.
    gib: memory of all processes.
    carried: bytes that the hosts have exchanged.
  """
  time: float
  cpu: dict[str, float]
  gib: float
  carried: int


def _run_on_hosts(cell: replayed.Cell) -> list[_Sample]:
  """Runs a cell on hosts, each with the CPUs that are needed there."""
  cpus = [1 + (i < cell.num_shards) + (i == 0) for i in range(cell.num_hosts)]
  path = os.path.join(cell.out, 'cell')
  with open(path, 'wb') as f:
    pickle.dump(cell, f)
  samples = []
  with hosts_lib.made(cpus) as hosts:
    process = subprocess.Popen(hosts.head.command(
        sys.executable, '-m', 'benchmarks.replayed', path))
    while process.poll() is None:
      samples.append(_sample(hosts))
      time.sleep(replayed.MEMORY_SECONDS)
  _check(cell, process.returncode)
  return samples


def _sample(hosts: hosts_lib.Hosts) -> _Sample:
  cpu = {}
  for host in hosts.hosts.values():
    for name, node in host.nodes().items():
      with contextlib.suppress(psutil.Error):
        used = node.cpu_times()
        cpu[name] = used.user + used.system
  return _Sample(time.time(), cpu, hosts.memory_gib(), hosts.bytes_carried())


def _on_hosts(samples: Sequence[_Sample], start: float, seconds: float,
              rate: float) -> dict[str, float]:
  """Returns the figures that only hosts have, for an interval and its rate."""
  within = [s for s in samples if start <= s.time <= start + seconds]
  first, last = within[0], within[-1]
  elapsed = last.time - first.time
  groups: dict[str, float] = dict.fromkeys(('replay', 'learner', 'actor'), 0.)
  for name, cpu in last.cpu.items():
    group = name.split('/')[0]
    if group in groups:
      groups[group] += (cpu - first.cpu.get(name, 0.)) / elapsed
  return {'GiB': max(s.gib for s in within),
          'bytes': (last.carried - first.carried) / elapsed / rate,
          **{f'{group} cores': cores for group, cores in groups.items()}}


def main() -> None:
  parser = common.Parser('scale', __doc__)
  parser.add_argument('--clients', type=common.positive(int), nargs='+',
                      default=[8, 32, 128])
  parser.add_argument('--shards', type=common.positive(int), nargs='+',
                      default=[1, 2, 4])
  parser.add_argument('--hosts', type=common.positive(int), default=0,
                      help='hosts of a cluster to run on; by default none but this '
                      'machine')
  parser.add_argument('--rate', type=common.positive(float), default=10_000.,
                      help='timesteps a second that the clients try to write')
  parser.add_argument('--learner_delay', type=float, default=0.01,
                      help='seconds in place of the compute of a learner step')
  parser.add_argument('--real_learner', action='store_true',
                      help='compute learner steps on two logical CPU devices')
  parser.add_argument('--no_pull', action='store_true',
                      help='clients do not ask for variables')
  parser.add_argument('--seconds', type=common.positive(float), default=30.)
  parser.add_argument('--soak_minutes', type=int, default=0)
  parser.add_json()
  parser.add_train_flags()
  flags = parser.parse_args()
  if flags.hosts and max(flags.shards) > flags.hosts:
    parser.error(f'--shards {max(flags.shards)} are more than the {flags.hosts} '
                 'hosts have room for; give at most one for each host.')
  settings = settings_lib.from_train_flags(flags.train_flags)
  rows: list[common.Row] = []
  cells = list(itertools.product(flags.clients, flags.shards))
  row_seconds = seconds = flags.seconds
  if flags.soak_minutes:
    cells = [(max(flags.clients), max(flags.shards))]
    row_seconds, seconds = 60., 60. * flags.soak_minutes
  for clients, shards in cells:
    cell = replayed.Cell(settings, clients, shards, flags.rate,
                         None if flags.real_learner else flags.learner_delay,
                         not flags.no_pull, seconds, num_hosts=flags.hosts)
    for row in run_cell(cell, row_seconds):
      if not rows:
        common.print_header(list(row))
      rows.append(row)
      common.print_row([f'{value:,.5g}' for value in row.values()])
    common.write_json(flags.json, rows)


if __name__ == '__main__':
  common.run(main)
