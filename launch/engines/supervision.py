"""Starts, restarts and stops nodes, in the same way for every engine.

An engine defines how to begin a node's process: here, or on another machine.
"""

import abc
import collections
import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from typing import (
  Callable,
  Iterator,
  Mapping,
  NamedTuple,
  Optional,
  Protocol,
  Sequence,
  TextIO,
)

from acme.utils import loggers

from launch import settings
from launch.engines import pausing
from launch.views import printing
from programs.runtime import locks
from programs.runtime import processes
from programs.runtime import records

_POLL_SECONDS = 0.1
_RESTART_SECONDS = 1.
# How long nodes may take to end: the learner saves its last checkpoint.
_GRACE_SECONDS = 12.
_KILLED_SECONDS = 1.
# A repeated request within this time is ignored: a closing terminal hangs up twice.
_ONCE_SECONDS = 1.
_FAILURES = 3
_FAILURE_WINDOW_SECONDS = 60.
_STARTS = 5
_START_SECONDS = 10.
# The group of the node that saves checkpoints.
LEARNER = 'learner'
# Signals by which a process ends itself.
_CRASHES = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE,
            signal.SIGILL)
# How long the run's directory may be away.
_GONE_SECONDS = 3.
# How many lines to show of a node that fails.
_LAST_LINES = 8


def describe_exit(code: int) -> str:
  """Describes how a process ended, by its return code as in `subprocess`."""
  if code < 0:
    return f'was killed by signal {-code} ({signal.strsignal(-code)})'
  return f'ended with exit code {code}'


@dataclasses.dataclass
class _History:
  starts: int = 0
  started_at: float = 0.
  early_ends: int = 0
  failures: collections.deque = dataclasses.field(
      default_factory=collections.deque)


class RestartPolicy:
  """Restarts nodes, except those that fail again and again.

  A node that fails by itself three times within a minute would go on failing, and
  one that ends five times in a row while starting has never worked. Otherwise,
  nodes that were killed are restarted without limit.
  """

  def __init__(self, restarts: bool = True,
               clock: Callable[[], float] = time.monotonic):
    """Makes a policy.

    Args:
      restarts: whether to restart anything.
      clock: returns seconds.
    """
    self._restarts = restarts
    self._clock = clock
    self._nodes: dict[str, _History] = {}

  def started(self, node: str) -> int:
    """Records a start; returns how many there were before."""
    history = self._nodes.setdefault(node, _History())
    history.started_at = self._clock()
    history.starts += 1
    return history.starts - 1

  def reason_to_give_up(self, node: str, code: int) -> Optional[str]:
    """Returns why not to restart the node, or None to restart it.

    Args:
      node: the one that ended by itself.
      code: its return code.
    """
    if not self._restarts:
      return 'nodes are not restarted'
    history, now = self._nodes[node], self._clock()
    is_early = now - history.started_at < _START_SECONDS
    history.early_ends = history.early_ends + 1 if is_early else 0
    if code >= 0 or -code in _CRASHES:
      history.failures.append(now)
    while history.failures and now - history.failures[0] > _FAILURE_WINDOW_SECONDS:
      history.failures.popleft()
    if len(history.failures) >= _FAILURES:
      return (f'it failed {_FAILURES} times within '
              f'{_FAILURE_WINDOW_SECONDS:.0f} seconds')
    if history.early_ends >= _STARTS:
      return f'it ended {_STARTS} times in a row while it was starting'
    return None


class End(NamedTuple):
  """How the process of a node has ended.

  Attributes:
    code: as in `subprocess`; for a lost process, as if it was killed.
    how: what to say after the node's name.
    is_final: whether nothing can replace the process, so that the run ends.
  """
  code: int
  how: str
  is_final: bool = False


class Process(Protocol):
  """The process of a node, wherever it is."""

  def lines(self) -> Iterator[str]:
    """Yields what it prints, waiting for each line."""

  def poll(self) -> Optional[End]:
    """Returns how it ended, or None while it runs; does not wait."""

  def signal(self, number: int) -> None:
    """Sends a signal; does not wait."""


class Node(abc.ABC):
  """A node of a program, its current process, and what that prints."""

  def __init__(self, title: str):
    """Makes a node that has yet to be started.

    Args:
      title: its group and number, such as actor/0.
    """
    self.title = title
    self.log: Optional[str] = None
    self.screen: printing.Screen = printing.Plain()
    self.last_lines: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
    # Why it ends the run, if it says so.
    self.ends_run: Optional[str] = None
    self.ended_at = 0.
    # By the monotonic clock.
    self.restarts_at = 0.
    self._process: Optional[Process] = None

  @property
  def last_line(self) -> str:
    return self.last_lines[-1] if self.last_lines else 'nothing'

  @property
  def where_its_log_is(self) -> str:
    """How a message about the node ends."""
    return f'; its log is {self.log}' if self.log else ''

  @abc.abstractmethod
  def begin(self, variables: Mapping[str, str]) -> Process:
    """Begins a process, with these variables added to its environment."""

  def start(self, restarts: int) -> None:
    """Starts or restarts the process."""
    process = self._process = self.begin({
        processes.NODE_VARIABLE: self.title,
        processes.RESTARTS_VARIABLE: str(restarts),
        processes.ENDED_AT_VARIABLE: str(self.ended_at)})
    self.ended_at = 0.
    self.last_lines.clear()
    self.screen.begun(self.title, restarts)
    self._pump = threading.Thread(target=self._pass_on, args=(process,), daemon=True)
    self._pump.start()

  def poll(self) -> Optional[End]:
    """Returns how the process ended, or None while it runs."""
    assert self._process is not None  # It was started.
    end = self._process.poll()
    if end is not None:
      self._pump.join(1.)  # Its last words.
    return end

  def signal(self, number: int) -> None:
    """Sends the process a signal, if it was started."""
    if self._process is not None:
      self._process.signal(number)

  def _pass_on(self, process: Process) -> None:
    for line in process.lines():
      # Keep reading whatever happens to a line, or the node blocks: the disk may be
      # full, or lines of two processes may be mixed up.
      with contextlib.suppress(Exception):
        self._take(line)

  def _take(self, line: str) -> None:
    if records.is_for_launcher(self.title, line):
      # Rows have a file of their own.
      self.screen.output(self.title, line)
      return
    if line:
      self.last_lines.append(line)
    if self.log is not None:
      with contextlib.suppress(OSError), open(self.log, 'a', encoding='utf-8') as f:
        f.write(line + '\n')
    if line.startswith(processes.ENDS_RUN_BECAUSE):
      # The supervisor prints this as its last line, so not here among many.
      self.ends_run = line[len(processes.ENDS_RUN_BECAUSE):]
    else:
      self.screen.output(self.title, line)


class Supervisor:
  """Starts the nodes, restarts those that end, and stops them all."""

  def __init__(self, nodes: Sequence[Node], run_dir: Optional[str] = None,
               restarts: bool = True,
               screen: Optional[printing.Screen] = None):
    """Makes a supervisor.

    Args:
      nodes: of the program.
      run_dir: gets `logs`, with a file of each node's output, and
        `restarts.csv`; None for neither.
      restarts: whether to restart nodes that end by themselves.
      screen: shows all this; by default as plain lines.
    """
    self._screen = screen or printing.Plain()
    self._nodes = nodes
    for node in nodes:
      node.screen = self._screen
    self._record: loggers.Logger = loggers.NoOpLogger()
    self._directory: Optional[locks.Directory] = None
    self._seen_at = time.monotonic()
    if run_dir is not None:
      log_dir = os.path.join(run_dir, settings.LOGS)
      os.makedirs(log_dir, exist_ok=True)
      for node in nodes:
        node.log = os.path.join(log_dir, node.title.replace('/', '_') + '.log')
      self._record = records.csv_logger(run_dir, records.RESTARTS_FILE,
                                        records.RESTARTS_COLUMNS)
      self._directory = locks.Directory(run_dir)
    self._policy = RestartPolicy(restarts)
    self._why: Optional[str] = None
    self._asked_at = 0.
    self._is_asked_again = False

  def run(self) -> int:
    """Runs the program to its end.

    The program is done when this process receives SIGUSR1.

    Returns:
      0 if the program was done or told to stop, `processes.ENDS_RUN` if another
      attempt would only end the same way, else 1.
    """
    for number, why in ((signal.SIGUSR1, 'done'), (signal.SIGTERM, 'stopped'),
                        (signal.SIGHUP, 'stopped'), (signal.SIGINT, 'stopped')):
      if signal.getsignal(number) != signal.SIG_IGN:  # Or nohup has no effect.
        signal.signal(number, lambda *_, why=why: self._end(why))
    pause = pausing.Pause()
    with self._screen.shown():
      for node in self._nodes:
        node.start(self._policy.started(node.title))
      failure = None
      while self._why is None and failure is None:
        time.sleep(_POLL_SECONDS)
        pause.take_if_due(self._paused)
        failure = self._restart_ended() or self._lost_directory()
      self._screen.stopping()
      self._stop()
    lost = self._what_was_lost()
    if failure is None and lost is not None:
      failure = 1, lost
    if failure is None:
      self._screen.say(f'train: {self._why}; every node has ended.')
      return 0
    code, why = failure
    self._screen.fail(f'train: error: {why}')
    # A run that was told to stop meanwhile makes no further attempt.
    return processes.ENDS_RUN if self._why == 'stopped' else code

  def _end(self, why: str) -> None:
    now = time.monotonic()
    if self._why is None:
      self._why, self._asked_at = why, now
    elif self._why == why == 'stopped' and now - self._asked_at > _ONCE_SECONDS:
      self._is_asked_again = True

  @contextlib.contextmanager
  def _paused(self) -> Iterator[None]:
    with self._screen.hidden():
      for node in self._nodes:
        node.signal(signal.SIGSTOP)
      yield
      for node in self._nodes:
        node.signal(signal.SIGCONT)

  def _restart_ended(self) -> Optional[tuple[int, str]]:
    """Restarts ended nodes; returns exit code and reason if the run cannot go on."""
    for node in self._nodes:
      end = node.poll()
      if end is None:
        continue
      if end.code == processes.ENDS_RUN and node.ends_run:
        return processes.ENDS_RUN, f'{node.title}: {node.ends_run}'
      if not node.ended_at:
        node.ended_at = time.time()
        node.restarts_at = time.monotonic() + _RESTART_SECONDS
        self._screen.ended(node.title)
        if end.code > 0:
          for line in node.last_lines:
            self._screen.fail(f'[{node.title}] {line}')
        where = node.where_its_log_is
        reason = self._policy.reason_to_give_up(node.title, end.code)
        if end.is_final:
          return 1, f'node {node.title} {end.how}{where}'
        if reason is not None:
          return 1, (f'node {node.title} {end.how}, and {reason}{where}. It said '
                     f'last: {node.last_line}')
        self._screen.fail(
            f'train: node {node.title} {end.how}; restarting it{where}.')
        self._record.write(
            {'time': int(node.ended_at), 'node': node.title, 'how': end.how})
      elif time.monotonic() >= node.restarts_at:
        node.start(self._policy.started(node.title))
    return None

  def _lost_directory(self) -> Optional[tuple[int, str]]:
    """Returns exit code and reason if the run's directory has gone for good."""
    if self._directory is None or not self._directory.has_gone():
      self._seen_at = time.monotonic()
      return None
    is_replaced = os.path.exists(self._directory.path)
    if not is_replaced and time.monotonic() - self._seen_at < _GONE_SECONDS:
      return None
    # What may be there now is another run's, so a retry could not go on.
    return processes.ENDS_RUN, (
        f'{self._directory.path} was removed or moved, so nothing can be saved')

  def _stop(self) -> None:
    """Tells all nodes to end, and kills those that take too long.

    If told to stop again, it kills all that are left.
    """
    deadline = time.monotonic() + _GRACE_SECONDS
    alive = [node for node in self._nodes if node.poll() is None]
    for node in alive:
      node.signal(signal.SIGTERM)
    while alive and time.monotonic() < deadline and not self._is_asked_again:
      time.sleep(_POLL_SECONDS)
      alive = [node for node in alive if node.poll() is None]
    # Kill all before printing, which waits if nobody reads.
    for node in alive:
      node.signal(signal.SIGKILL)
    for node in alive:
      self._screen.fail(f'train: node {node.title} did not end in time; killing it.')
    deadline = time.monotonic() + _KILLED_SECONDS
    while time.monotonic() < deadline and any(node.poll() is None for node in alive):
      time.sleep(_POLL_SECONDS)

  def _what_was_lost(self) -> Optional[str]:
    """Returns why the learner may not have saved its last step, or None."""
    if self._is_asked_again:
      return None  # Who asks again does not wait for that.
    for node in self._nodes:
      if node.title.partition('/')[0] == LEARNER:
        end = node.poll()
        # One that SIGTERM itself has ended had no handler yet, and nothing to save.
        if end is None or end.code not in (0, -signal.SIGTERM):
          how = 'did not end in time' if end is None else end.how
          return (f'node {node.title} {how}, so its last steps may not be in the '
                  f'newest checkpoint{node.where_its_log_is}')
    return None


def say(line: str, file: TextIO = sys.stdout) -> None:
  """Prints a line from the launcher."""
  printing.print_line(f'train: {line}', file)
