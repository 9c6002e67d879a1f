"""The process of a node: its set-up, its parent, its end, its restarts."""

import atexit
import contextlib
import dataclasses
import os
import signal
import socket
import sys
import threading
import time
from typing import Callable, Optional

import psutil

from programs.runtime import parents

# Set by engines: the name of the node, such as actor/0; how often it was started
# before; and the time at which it ended last.
NODE_VARIABLE = 'IMPALA_PPO_NODE'
RESTARTS_VARIABLE = 'IMPALA_PPO_RESTARTS'
ENDED_AT_VARIABLE = 'IMPALA_PPO_ENDED_AT'
# A node that ends with this code ends the run: its error would only recur. Its
# last line begins with the text below, followed by the reason.
ENDS_RUN = 76
ENDS_RUN_BECAUSE = 'this ends the run: '
_WATCH_SECONDS = 1.
# How long a node has to end by itself once its launcher has gone.
_ORPHAN_SECONDS = 8.


@dataclasses.dataclass(frozen=True)
class Process:
  """Identifies a process, such as the one that launched a program.

  Attributes:
    host: where it is.
    pid: its id there, which another process may get after its end.
    started: its start, in clock ticks since that of the host. The time of day
      would not do: somebody may set the clock.
  """
  host: str
  pid: int
  started: int

  def is_this(self) -> bool:
    return self == this_process()

  def is_gone(self) -> bool:
    """Tells whether it has ended; always False for other hosts' processes."""
    if self.host != socket.gethostname():
      return False
    try:
      return started(self.pid) != self.started or not lives(
          psutil.Process(self.pid))
    except (OSError, psutil.NoSuchProcess):
      return True


def started(pid: int) -> int:
  """Returns a process's `Process.started`; raises OSError if it does not exist."""
  with open(f'/proc/{pid}/stat', errors='replace') as f:
    # The name, in brackets, may hold anything; the state follows it [proc(5)].
    return int(f.read().rpartition(')')[2].split()[19])


def lives(process: psutil.Process) -> bool:
  """Tells whether a process runs and is not a zombie."""
  try:
    return process.status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False


def find_node(launcher: psutil.Process, node: str) -> Optional[psutil.Process]:
  """Returns the process of a node, such as actor/0, or None if there is none.

  Each node gives its process this name.
  """
  for process in launcher.children():
    with contextlib.suppress(psutil.Error):
      if process.name() == node:
        return process
  return None


def this_process() -> Process:
  return Process(socket.gethostname(), os.getpid(), started(os.getpid()))


def set_up_node(launcher: Process) -> None:
  """Sets this process up for a node, unless nodes are threads of the launcher.

  The process then ends soon after its parent, however that ended, with what it has
  started, and exits without Python's clean-up. Its parent is the engine that started
  it, or else the launcher.
  """
  if launcher.is_this():
    return
  if NODE_VARIABLE in os.environ:
    with open('/proc/self/comm', 'w') as f:
      f.write(os.environ[NODE_VARIABLE])  # For `top`, and for `find_node`.
  has_gone = parents.has_gone if parents.is_known() else launcher.is_gone
  _end_at_once(has_gone)

  def watch():
    while not has_gone():
      time.sleep(_WATCH_SECONDS)
    # Nobody reads the output any more; writing it must not fail the last save.
    nobody = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
      os.dup2(nobody, output)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_ORPHAN_SECONDS)
    _end_group()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _end_group() -> None:
  """Ends this process and all that it has started, if it leads their group."""
  if os.getpgrp() == os.getpid():
    os.killpg(0, signal.SIGKILL)


def _end_at_once(has_gone: Callable[[], bool]) -> None:
  """Makes the process exit without Python's clean-up.

  Taking down a data pipeline whose servers have gone never ends, and holds the
  interpreter's lock meanwhile.

  Args:
    has_gone: whether there is no parent any more that would end what this process
      has started.
  """
  failures: list[type] = []
  before = sys.excepthook

  def note(kind, *args):
    failures.append(kind)
    before(kind, *args)

  def end():
    sys.stdout.flush()
    sys.stderr.flush()
    if has_gone():
      _end_group()
    os._exit(1 if failures else 0)

  sys.excepthook = note
  atexit.register(end)


def has_own_process() -> bool:
  """Tells whether the node that calls this has a process of its own."""
  # Under the threaded launchers, every node is a thread of one process.
  return threading.current_thread() is threading.main_thread()


def end_run(why: str, launcher: Process) -> None:
  """Ends this node's process for good, and so the run.

  If nodes are threads, it returns: the first one to end ends the run.

  Args:
    why: one line, for the person who runs it.
    launcher: of the program.
  """
  print(f'{ENDS_RUN_BECAUSE}{why}', file=sys.stderr, flush=True)
  if not launcher.is_this():
    os._exit(ENDS_RUN)


def use_one_core(niceness: int) -> None:
  """Keeps an acting process off the learner's GPUs and cores."""
  import tensorflow as tf  # Not at the top: commands start without it.
  os.nice(niceness)
  use_no_gpus()
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)


def use_no_gpus() -> None:
  """Leaves GPUs and their memory to the learner; call it before any use of them."""
  import tensorflow as tf
  tf.config.set_visible_devices([], 'GPU')


def is_supervised() -> bool:
  """Tells whether one of our engines started this process and reads its output."""
  return NODE_VARIABLE in os.environ


def restarts() -> int:
  """Returns how often this node was started before in the same run."""
  return int(os.environ.get(RESTARTS_VARIABLE, '0'))


def say_if_back(node: str, lost: str) -> None:
  """Prints a line if this node was restarted, saying what was lost."""
  if restarts():
    away = time.time() - float(os.environ[ENDED_AT_VARIABLE])
    print(f'{node}: back after {away:.1f} s; lost: {lost}.', flush=True)
