"""A process that imports everything once, and forks nodes from then on.

TensorFlow, Reverb and Launchpad take seconds to import, in every node. Here one
process does so, while the launcher is still preparing. It runs no threads and uses
no TensorFlow, so what is forked of it is as good as a process of its own.

Nodes are the launcher's own children nevertheless, which waits for them and
outlives the server: who forks them ends at once, and Linux gives orphans to the
nearest ancestor that asks for them.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from typing import Iterator, Mapping, Optional, Sequence

from launch.engines import child
from programs.runtime import parents

# From <linux/prctl.h>.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_MAX_BYTES = 2**16
_MAX_DESCRIPTORS = 16
_POLL_SECONDS = 0.001


class Forked:
  """A process that was forked, with what `child.Child` has of it."""

  def __init__(self, pid: int, output: int):
    self._pid = pid
    self._output = output
    self._code: Optional[int] = None

  def lines(self) -> Iterator[str]:
    """Yields what it prints, until nobody can print there any more."""
    with open(self._output, 'rb') as output:
      for raw in output:
        yield raw.decode(errors='replace').rstrip()

  def code(self) -> Optional[int]:
    """Returns the return code once it has ended, as `subprocess` gives it."""
    if self._code is None:
      pid, status = os.waitpid(self._pid, os.WNOHANG)
      if pid:
        self._code = os.waitstatus_to_exitcode(status)
    return self._code

  def signal(self, number: int) -> None:
    if self.code() is None:
      os.kill(self._pid, number)


class ForkServer:
  """Starts Python scripts in processes that have imported modules already."""

  def __init__(self, modules: Sequence[str] = ('programs.impala_ppo',)):
    """Makes a server, which begins to import.

    Args:
      modules: what to import; nothing of it may start a thread.
    """
    self._modules = modules
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    self._start()

  def _start(self) -> None:
    self._channel, theirs = socket.socketpair(socket.AF_UNIX,
                                              socket.SOCK_SEQPACKET)
    with theirs:
      self._process = subprocess.Popen(
          [sys.executable, '-m', 'launch.engines.fork_server',
           str(theirs.fileno()), *self._modules],
          stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
          env={**os.environ, **parents.of_children(),
               'PYTHONPATH': child.import_path(), 'PYTHONUNBUFFERED': '1'})

  def fork(self, command: Sequence[str], env: Mapping[str, str],
           keep_open: Sequence[int] = ()) -> tuple[int, int]:
    """Starts a process, in a process group of its own.

    Args:
      command: a Python interpreter, which is this one, a script, its arguments.
      env: joins this process's environment, as it was when the server was made.
      keep_open: file descriptors that it inherits.

    Returns:
      The process id, and the file descriptor of its output and errors.

    Raises:
      RuntimeError: if the server has ended twice, having said why.
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
      if answer:
        return int(answer), output
      os.close(output)
      self.close()  # Somebody has killed it.
      self._start()
    raise RuntimeError('the process that starts nodes has ended.')

  def close(self) -> None:
    """Ends the server; what it has forked goes on."""
    self._channel.close()
    self._process.kill()
    self._process.wait()


def _prctl(option: int, value: int) -> None:
  ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _serve(channel: socket.socket) -> list[str]:
  """Forks for as long as the launcher lives.

  Returns:
    In each process that was forked, the script to run and its arguments.

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
    Its process id, once it is nobody's child here; and 0 in it.
  """
  reader, writer = os.pipe()
  between = os.fork()
  if not between:
    between = os.getpid()
    pid = os.fork()
    if pid:
      os.write(writer, str(pid).encode())
      os._exit(0)
    while os.getppid() == between:
      time.sleep(_POLL_SECONDS)
    os.close(reader)
    os.close(writer)
    return 0
  os.close(writer)
  pid = int(os.read(reader, _MAX_BYTES))
  os.close(reader)
  os.waitpid(between, 0)
  return pid


def _settle(env: Mapping[str, str], output: int) -> None:
  """Makes this process what a new one would be."""
  os.setpgrp()
  os.dup2(output, 1)
  os.dup2(output, 2)
  os.close(output)
  os.environ.update(env)
  # Or all would draw the same numbers, where somebody draws of NumPy's own.
  importlib.import_module('numpy').random.seed()


def main() -> None:
  channel, *modules = sys.argv[1:]
  # Ctrl-C in a terminal is for the launcher, whose end is this one's too.
  os.setpgrp()
  _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  for module in modules:
    importlib.import_module(module)
  gc.freeze()  # Pages of these modules stay shared.
  sys.argv = _serve(socket.socket(fileno=int(channel)))
  runpy.run_path(sys.argv[0], run_name='__main__')


if __name__ == '__main__':
  main()
