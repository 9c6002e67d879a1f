"""How a run copes with faults, on real Pong: `python -m benchmarks.faults`.

In one run an actor is killed ten times, and the evaluator, the learner, the
counter and a replay shard once each; it still has to reach its budget. Then
come faults that each have their own run. Prints a row for each fault:

* `back after`: seconds until a row of progress reached 0.7 times the rate before;
  if the fault ends the run, seconds until its last process had ended
* `lost`: seconds of learning that were undone
* `processes`, `ports`: how many of the run's were left after it had ended
"""

import functools
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Callable, Iterator, Optional, Sequence, TypeVar

import psutil

from benchmarks import common
from programs.runtime import checkpoints
from programs.runtime import processes
from programs.runtime import records

_RATE_IS_BACK = 0.7
_ROWS_BEFORE = 8
_PATIENCE_SECONDS = 180.
_END_SECONDS = 40.
_ACTOR_KILLS = 10
_STANDS_STILL_SECONDS = 30.
_TITLES = ('fault', 'back after, s', 'lost, s', 'then', 'processes', 'ports')


_Run = TypeVar('_Run', bound='Run')


class Run:
  """A training run to inject faults into, which ends with its context.

  Its directory is removed then, unless an error may refer to the logs there.

  Attributes:
    patience_seconds: how long to wait for a condition at most.
  """
  patience_seconds = _PATIENCE_SECONDS

  def __init__(self, *flags: str, game: str = 'pong',
               stdout: Optional[int] = subprocess.DEVNULL,
               enter: Callable[..., list[str]] = lambda *args: list(args)):
    """Starts a run.

    Args:
      *flags: of the training command.
      game: to train on.
      stdout: as `subprocess` takes it.
      enter: wraps a command so that it runs where it should.
    """
    self.directory = tempfile.mkdtemp()
    self.process = subprocess.Popen(
        enter(sys.executable, '-m', 'launch.train', '--game', game, '--run_dir',
              self.directory, '--progress_seconds', '1', *flags),
        cwd=common.CHECKOUT, stdout=stdout, stderr=subprocess.STDOUT)
    self._launcher = psutil.Process(self.process.pid)

  def __enter__(self: _Run) -> _Run:
    return self

  def __exit__(self, kind: Optional[type[BaseException]], *unused_args) -> None:
    if self.process.poll() is None:
      self.interrupt()
      self.process.wait()
    if kind is None or issubclass(kind, KeyboardInterrupt):
      shutil.rmtree(self.directory, ignore_errors=True)

  def interrupt(self) -> None:
    """Tells the run to stop."""
    self.process.send_signal(signal.SIGINT)

  def rows(self) -> list[common.Row]:
    return records.read(os.path.join(self.directory, records.PROGRESS_FILE))

  def wait_for(self, condition: Callable[[], bool], what: str,
               seconds: Optional[float] = None) -> float:
    """Waits for a condition; returns how many seconds that took."""
    seconds = seconds or self.patience_seconds
    start = time.monotonic()
    while not condition():
      if time.monotonic() - start > seconds:
        raise RuntimeError(f'no {what} within {seconds:.0f} s; see '
                           f'{self.directory}/logs')
      time.sleep(0.1)
    return time.monotonic() - start

  def wait_until_steady(self) -> None:
    """Waits for some rows of learning since the last fault."""
    count = len(self.rows())
    self.wait_for(lambda: len(self.rows()) >= count + _ROWS_BEFORE and
                  self.rows()[-1]['learner_steps'] > 0, 'steady rate')

  def node(self, name: str) -> psutil.Process:
    """Returns the process of a node."""
    process = processes.find_node(self._launcher, name)
    if process is None:
      raise RuntimeError(f'there is no node {name}.')
    return process

  def recovery(self, fault: Callable[[], None]) -> tuple[float, float]:
    """Injects a fault; returns seconds until the rate is back, and lost learning."""
    self.wait_until_steady()
    before = self.rows()
    recent = before[-_ROWS_BEFORE:]
    rate = statistics.median(row['timesteps_per_second'] for row in recent)
    steps_per_second = (recent[-1]['learner_steps'] - recent[0]['learner_steps']
                        ) / (_ROWS_BEFORE - 1)
    fault()
    # The row being written covers time before or during the fault.
    ignored = len(self.rows()) + 2
    seconds = self.wait_for(lambda: any(
        row['timesteps_per_second'] >= _RATE_IS_BACK * rate
        for row in self.rows()[ignored:]), 'rate as before')
    after = [row['learner_steps'] for row in self.rows()[len(before) - 1:]]
    drop = max(0., *(a - b for a, b in zip(after, after[1:])), 0.)
    return seconds, drop / max(steps_per_second, 1e-6)

  def end(self, fault: Callable[[], None],
          patience_seconds: float = _END_SECONDS) -> tuple[float, int, int]:
    """Calls `fault`, which ends the run.

    Returns:
      Seconds until every process had ended or patience ran out, and how many
      processes and ports were left.
    """
    family = [self._launcher, *self._launcher.children(recursive=True)]
    ports = _listening(family)
    start = time.monotonic()
    fault()
    while (any(map(processes.lives, family)) and
           time.monotonic() - start < patience_seconds):
      self.process.poll()
      time.sleep(0.1)
    seconds = time.monotonic() - start
    left = [process for process in family if processes.lives(process)]
    ports_left = len(ports & {c.laddr.port for c in psutil.net_connections('tcp')
                              if c.laddr and c.status == psutil.CONN_LISTEN})
    for process in left:
      process.kill()
    return seconds, len(left), ports_left

  def saved_steps(self) -> int:
    """Returns the learner's steps in the newest checkpoint."""
    path = checkpoints.latest(self.directory)
    return checkpoints.learner_steps(path) if path else 0


def kill(run: Run, name: str) -> None:
  """Kills a node of a run."""
  run.node(name).kill()


def _listening(family: Sequence[psutil.Process]) -> set[int]:
  pids = {process.pid for process in family}
  return {c.laddr.port for c in psutil.net_connections('tcp')
          if c.laddr and c.status == psutil.CONN_LISTEN and c.pid in pids}


Outcome = dict[str, object]


def _row(fault: str, seconds: float, lost: Optional[float], then: str,
         left: Sequence[object] = ('', '')) -> Outcome:
  cells = [fault, f'{seconds:.1f}', '' if lost is None else f'{lost:.1f}', then,
           *left]
  common.print_row(cells)
  return dict(zip(_TITLES, cells))


def in_one_run(max_timesteps: int) -> Iterator[Outcome]:
  """Kills every kind of node in a run, which has to reach its budget."""
  with Run('--max_timesteps', str(max_timesteps),
           '--evaluation_interval', '20000') as run:
    kills = [run.recovery(functools.partial(kill, run, 'actor/0'))
             for _ in range(_ACTOR_KILLS)]
    yield _row(
        f'actor killed, {_ACTOR_KILLS} times (the slowest)', *max(kills),
        f'median {statistics.median(seconds for seconds, _ in kills):.1f} s')
    for name in ('evaluator/0', 'learner/0', 'counter/0', 'replay/0'):
      yield _row(f'{name} killed',
                 *run.recovery(functools.partial(kill, run, name)), 'trains on')
    node = run.node('actor/0')

    def stand_still():
      node.suspend()
      time.sleep(_STANDS_STILL_SECONDS)
      node.resume()

    yield _row(f'actor stopped for {_STANDS_STILL_SECONDS:.0f} s',
               *run.recovery(stand_still), 'trains on')
    run.wait_for(lambda: run.rows()[-1]['timesteps'] >= max_timesteps - 5000,
                 'end of the budget', seconds=3600.)
    seconds, *left = run.end(lambda: None)
    reached = run.rows()[-1]['timesteps']
    yield _row('none: the budget is reached', seconds, None,
               f'exit code {run.process.wait()}, {reached:,.0f} timesteps '
               f'of {max_timesteps:,}', left)


def at_the_end(fault: str, how: Callable[[Run], None], *flags: str) -> Outcome:
  """Starts a run, and ends it with a fault."""
  with Run('--evaluation_interval', '0', *flags) as run:
    run.wait_until_steady()
    steps = run.rows()[-1]['learner_steps']
    seconds, *left = run.end(lambda: how(run))
    undone = max(0., steps - run.saved_steps())
    rate = steps / run.rows()[-1]['walltime_seconds']
    return _row(fault, seconds, undone / rate, f'exit code {run.process.wait()}',
                left)


def in_the_environment(fault: str, game: str, *flags: str) -> Outcome:
  """Lets an environment misbehave at each start, until the run gives up."""
  with Run('--evaluation_interval', '0', '--num_actors', '1', *flags,
           game=f'tests.misbehaving:{game}') as run:
    seconds, *left = run.end(lambda: None, patience_seconds=_PATIENCE_SECONDS)
    restarts = records.count_restarts(run.directory)
    return _row(fault, seconds, None,
                f'{restarts} restarts, then exit code {run.process.wait()}', left)


def without_a_reader() -> Outcome:
  """Closes the pipe that a run's output is read from."""
  with Run('--evaluation_interval', '0', stdout=subprocess.PIPE) as run:
    assert run.process.stdout is not None
    run.process.stdout.readline()
    seconds, lost = run.recovery(run.process.stdout.close)
    _, *left = run.end(run.process.terminate)
    return _row('output closed', seconds, lost,
                f'exit code {run.process.wait()} when told to stop', left)


def _all(max_timesteps: int) -> Iterator[Outcome]:
  """Measures one fault after the other, and prints its row."""
  yield from in_one_run(max_timesteps)
  for name in ('learner/0', 'counter/0', 'replay/0'):
    yield at_the_end(f'{name} killed, --no_restart',
                     functools.partial(kill, name=name), '--no_restart')
  yield at_the_end('launcher killed', lambda run: run.process.kill())
  yield at_the_end('terminal closed (SIGHUP)',
                   lambda run: run.process.send_signal(signal.SIGHUP))
  yield without_a_reader()
  yield in_the_environment('CartPole raises', 'Raises-v0')
  yield in_the_environment('CartPole calls os._exit', 'Exits-v0')
  yield in_the_environment('CartPole hangs', 'Hangs-v0', '--step_timeout', '5')


def main() -> None:
  parser = common.Parser('faults', __doc__)
  parser.add_argument('--max_timesteps', type=common.positive(int),
                      default=500_000, help='budget of the run with many faults')
  parser.add_json()
  flags = parser.parse_args()
  # Under nohup, runs would rightly ignore that their terminal is closed.
  signal.signal(signal.SIGHUP, signal.SIG_DFL)
  common.print_header(_TITLES)
  rows = []
  for row in _all(flags.max_timesteps):
    rows.append(row)
    common.write_json(flags.json, rows)


if __name__ == '__main__':
  common.run(main)
