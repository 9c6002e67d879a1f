"""A node's process on this machine; imports nothing slow."""

import contextlib
import ctypes
import os
import pathlib
import signal
import socket
import subprocess
import sys
from typing import Iterator, Mapping, Optional, Sequence

from programs.runtime import parents

# The folder that holds this package and our others.
ROOT = str(pathlib.Path(__file__).resolve().parents[2])
# Launchpad's countdown to killing a node is left to the supervisor.
NODE_FLAGS = ('--lp_termination_notice_secs=-1',)
_STOP_VARIABLE = 'IMPALA_PPO_STOP_FD'
# Ray sets it, which would limit TensorFlow to that many threads.
_LEFT_OUT = ('OMP_NUM_THREADS',)
# From <linux/prctl.h>; loaded here, as loading it after a fork is unsafe.
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl


def import_path() -> str:
  """Returns a PYTHONPATH with this package, wherever it was imported from."""
  return os.pathsep.join(filter(None, [ROOT, os.environ.get('PYTHONPATH')]))


def environment(variables: Mapping[str, str]) -> dict[str, str]:
  """Returns this process's environment for a child, with some variables added.

  The child can import what this process can. A `PYTHONPATH` among the variables
  comes after that.
  """
  path = os.pathsep.join(filter(None, [import_path(), variables.get('PYTHONPATH')]))
  return {**{name: value for name, value in os.environ.items()
             if name not in _LEFT_OUT}, **variables, 'PYTHONPATH': path}


def find_port(port: int) -> tuple[int, Optional[str]]:
  """Finds a port of this host that nobody listens on.

  Args:
    port: the wanted port; 0 for any.

  Returns:
    The port, and why it cannot be used, or None if it can.
  """
  with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind(('', port))
    except OSError as e:
      return port, (e.strerror or str(e)).lower()
    return probe.getsockname()[1], None


def end_with_parent(number: int) -> None:
  """Makes this process get a signal once its parent has ended."""
  _prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def end_group_of_ended(pid: int, options: int = os.WNOHANG) -> None:
  """Kills what a child that has ended leaves behind in its process group.

  That may be a simulator that an environment has started. The child is not reaped,
  so that its number cannot be that of another group yet.

  Args:
    pid: the child's process id, and that of its group.
    options: for `os.waitid`; 0 waits until the child has ended.
  """
  # Another thread may have reaped it, and has then done the same before.
  with contextlib.suppress(ChildProcessError, ProcessLookupError):
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | options) is not None:
      os.killpg(pid, signal.SIGKILL)


class Child:
  """A process that this one has started, and what it prints."""

  def __init__(self, command: Sequence[str], env: Mapping[str, str],
               keep_open: Sequence[int] = ()):
    """Starts the process.

    Args:
      command: what to run.
      env: its environment.
      keep_open: file descriptors that it inherits.
    """
    # A process group of its own, as Ctrl-C in a terminal is for the launcher. But no
    # session: Linux shares cores evenly between sessions, whatever their niceness.
    self._process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, preexec_fn=os.setpgrp, pass_fds=keep_open,
        env={**env, **parents.of_children(), 'PYTHONUNBUFFERED': '1'})

  def lines(self) -> Iterator[str]:
    """Yields what it prints, until every writer has closed the output."""
    for raw in self._process.stdout:  # type: ignore[union-attr]
      yield raw.decode(errors='replace').rstrip()

  def code(self) -> Optional[int]:
    """Returns the return code as in `subprocess`, or None while it runs."""
    if self._process.returncode is None:
      end_group_of_ended(self._process.pid)
    return self._process.poll()

  def wait(self) -> int:
    """Waits until it has ended; returns the return code."""
    if self._process.returncode is None:
      end_group_of_ended(self._process.pid, options=0)
    return self._process.wait()

  def signal(self, number: int) -> None:
    self._process.send_signal(number)


class StopPipe:
  """Lets a child ask to stop the program, wherever its launcher is."""

  def __init__(self):
    self._reader, self.writer = os.pipe()

  def env(self) -> dict[str, str]:
    """Returns variables for `ask_to_stop`; the child must also inherit `writer`."""
    return {_STOP_VARIABLE: str(self.writer)}

  def wait(self) -> bool:
    """Waits until the child asks or has ended; returns whether it asked."""
    os.close(self.writer)
    try:
      return bool(os.read(self._reader, 1))
    finally:
      os.close(self._reader)


def ask_to_stop(mark_as_completed: bool = False) -> None:
  """Asks to stop; `lp.stop` calls this in a child that has a `StopPipe`."""
  del mark_as_completed
  os.write(int(os.environ[_STOP_VARIABLE]), b'x')


def entry_command(job: str) -> list[str]:
  """Returns the command that runs a node.

  Args:
    job: path of a file with a pickled list of the node's function.
  """
  return [sys.executable, '-m', 'launchpad.nodes.python.process_entry',
          '--data_file', job, '--lp_task_id', '0', *NODE_FLAGS]
