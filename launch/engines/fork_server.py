"""A process that has imported everything, and forks nodes from then on.

TensorFlow, Reverb and Launchpad take seconds to import, in every node. Here one
process imports them, or is a fork of one that has. It runs no threads of ours and
does not use TensorFlow, so its forks are as good as new processes.

Nodes are still children of the launcher, which waits for them and outlives the
server: the process that forks a node ends at once, and Linux gives orphans to the
nearest ancestor that asks for them.
"""

import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import runpy
import signal
import socket
import sys
import time
from typing import Iterator, Mapping, NoReturn, Optional, Sequence

from launch.engines import child
from programs.runtime import parents

# From <linux/prctl.h>.
_PR_SET_CHILD_SUBREAPER = 36
_MAX_BYTES = 2**16
_MAX_DESCRIPTORS = 16
_POLL_SECONDS = 0.001


class Forked:
  """A forked process, with part of the interface of `child.Child`."""

  def __init__(self, pid: int, output: int):
    self._pid = pid
    self._output = output
    self._code: Optional[int] = None

  def lines(self) -> Iterator[str]:
    """Yields what it prints, until every writer has closed the output."""
    with open(self._output, 'rb') as output:
      for raw in output:
        yield raw.decode(errors='replace').rstrip()

  def code(self) -> Optional[int]:
    """Returns the return code as in `subprocess`, or None while it runs."""
    if self._code is not None:
      self._reap_orphans()
      return self._code
    child.end_group_of_ended(self._pid)
    pid, status = os.waitpid(self._pid, os.WNOHANG)
    if pid:
      self._code = os.waitstatus_to_exitcode(status)
    return self._code

  def _reap_orphans(self) -> None:
    """Reaps what has ended of its group, which it has left to this process."""
    with contextlib.suppress(ChildProcessError):
      while os.waitpid(-self._pid, os.WNOHANG)[0]:
        pass

  def signal(self, number: int) -> None:
    if self.code() is None:
      os.kill(self._pid, number)


class ForkServer:
  """Starts Python scripts in processes that have already imported modules."""

  def __init__(self, modules: Sequence[str] = ('programs.impala_ppo',),
               is_fork: bool = False):
    """Starts a server.

    Args:
      modules: what a server imports that is a new process; none of them may start
        a thread.
      is_fork: whether the first server is a fork of this process, with all that it
        has imported; one that replaces it is a new process. In a forked node this
        call never returns: the node runs its script here, and exits. So call it
        from the main module, outside any `try`.
    """
    self._modules = modules
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    self._start(is_fork)

  def _start(self, is_fork: bool = False) -> None:
    self._channel, theirs = socket.socketpair(socket.AF_UNIX,
                                              socket.SOCK_SEQPACKET)
    env = {**parents.of_children(), 'PYTHONPATH': child.import_path(),
           'PYTHONUNBUFFERED': '1'}
    with theirs:
      if not is_fork:
        theirs.set_inheritable(True)
        self._pid = os.posix_spawn(
            sys.executable, [sys.executable, '-m', 'launch.engines.fork_server',
                             str(theirs.fileno()), *self._modules],
            {**os.environ, **env},
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)])
        return
      sys.stdout.flush()  # Or each of them would print what is waiting there.
      self._pid = os.fork()
      if not self._pid:
        self._channel.close()
        _leave_command(env)
        _run(theirs)

  def fork(self, command: Sequence[str], env: Mapping[str, str],
           keep_open: Sequence[int] = ()) -> tuple[int, int]:
    """Starts a process, in a process group of its own.

    Args:
      command: this Python interpreter, a script and its arguments.
      env: added to this process's environment as of when the server was made.
      keep_open: file descriptors that it inherits.

    Returns:
      The process id, and the file descriptor of its output and errors.

    Raises:
      OSError: if the system does not allow another process now.
      RuntimeError: if the server has ended twice; it has printed why.
    """
    request = json.dumps([list(command), dict(env)]).encode()
    for _ in range(2):
      output, theirs = os.pipe()
      try:
        socket.send_fds(self._channel, [request], [theirs, *keep_open])
        answer = self._channel.recv(_MAX_BYTES)
      except ConnectionError:
        answer = b''
      finally:
        os.close(theirs)
      if answer and int(answer) > 0:
        return int(answer), output
      os.close(output)
      if answer:
        raise OSError(-int(answer), os.strerror(-int(answer)))
      self.close()  # Somebody has killed it.
      self._start()
    raise RuntimeError('the process that starts nodes has ended.')

  def close(self) -> None:
    """Ends the server; the processes that it forked go on."""
    self._channel.close()
    if self._pid:
      os.kill(self._pid, signal.SIGKILL)
      os.waitpid(self._pid, 0)
      self._pid = 0


def _serve(channel: socket.socket) -> list[str]:
  """Forks processes for as long as the launcher lives.

  Returns:
    In each forked process, the script to run and its arguments.

  Raises:
    SystemExit: once the launcher has gone.
  """
  while True:
    request, descriptors, *_ = socket.recv_fds(channel, _MAX_BYTES,
                                               _MAX_DESCRIPTORS)
    if not request:
      sys.exit()
    command, env = json.loads(request)
    pid = _fork_orphan()
    if not pid:
      channel.close()
      _settle(env, descriptors[0])
      return command[1:]
    for descriptor in descriptors:
      os.close(descriptor)
    channel.send(str(pid).encode())


def _fork_orphan() -> int:
  """Forks a process that is not this one's child.

  Returns:
    Its process id, once its parent has ended; 0 in the new process itself; if the
    system does not allow it, the error's number, negative.
  """
  reader, writer = os.pipe()
  between = _try_fork()
  if not between:
    between = os.getpid()
    pid = _try_fork()
    if pid:
      os.write(writer, str(pid).encode())
      os._exit(0)
    while os.getppid() == between:
      time.sleep(_POLL_SECONDS)
    os.close(reader)
    os.close(writer)
    return 0
  os.close(writer)
  pid = between if between < 0 else int(os.read(reader, _MAX_BYTES))
  os.close(reader)
  if between > 0:
    os.waitpid(between, 0)
  return pid


def _try_fork() -> int:
  """Returns what `os.fork` does, or an error's number, negative."""
  try:
    return os.fork()
  except OSError as e:
    assert e.errno is not None
    return -e.errno


def _settle(env: Mapping[str, str], output: int) -> None:
  """Makes this process like a new one."""
  os.setpgrp()
  os.dup2(output, 1)
  os.dup2(output, 2)
  os.close(output)
  signal.signal(signal.SIGINT, signal.default_int_handler)
  os.environ.update(env)
  # Or all would draw the same numbers from NumPy's global generator.
  importlib.import_module('numpy').random.seed()


def _leave_command(env: Mapping[str, str]) -> None:
  """Makes a fork of a command like a new Python process."""
  _follow_launcher()
  with open(os.devnull) as nothing:
    os.dup2(nothing.fileno(), 0)
  os.environ.update(env)
  # This one holds nothing back, as PYTHONUNBUFFERED says.
  sys.stdout = io.TextIOWrapper(
      io.FileIO(1, 'w', closefd=False), encoding=sys.stdout.encoding,
      errors=sys.stdout.errors, write_through=True)


def _follow_launcher() -> None:
  """Lets this process end with the launcher, and Ctrl-C be for that alone."""
  os.setpgrp()
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  child.end_with_parent(signal.SIGKILL)


def _run(channel: socket.socket) -> NoReturn:
  """Serves; in each process forked, runs its script."""
  gc.freeze()  # Pages of what is imported stay shared.
  sys.argv = _serve(channel)
  runpy.run_path(sys.argv[0], run_name='__main__')
  sys.exit()


def main() -> None:
  channel, *modules = sys.argv[1:]
  _follow_launcher()
  for module in modules:
    importlib.import_module(module)
  _run(socket.socket(fileno=int(channel)))


if __name__ == '__main__':
  main()
