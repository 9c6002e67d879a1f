"""An engine for this machine: every node is a process, or a thread.

Processes are started by the commands that Launchpad makes from a program, and
supervised here: Launchpad's own launcher ends everything with the first node,
and passes output through a shell that holds it back.
"""

import contextlib
import os
import signal
import sys
from typing import Any, Iterator, Mapping, Optional, Sequence

import launchpad as lp
from launchpad import context

from launch.engines import child
from launch.engines import fork_server
from launch.engines import supervision
from launch.views import printing
from programs.runtime import processes


def run_program(program: lp.Program, launch_type: str,
                run_dir: Optional[str] = None, restarts: bool = True,
                keep_open: Sequence[int] = (),
                server: Optional[fork_server.ForkServer] = None,
                screen: Optional[printing.Screen] = None) -> int:
  """Runs a program to its end; returns the exit code.

  Args:
    program: what to run.
    launch_type: `local_mp` for a process for each node, `local_mt` for a thread.
    run_dir: gets `logs`, with a file of each process's output, and
      `restarts.csv`; None for neither.
    restarts: whether to restart processes that end by themselves. Threads are
      never restarted: one that fails ends the program.
    keep_open: file descriptors that processes inherit, such as that of a lock
      that has to last as long as any of them.
    server: forks the processes; by default a new one.
    screen: as for `supervision.Supervisor`; threads print by themselves.

  Returns:
    As `supervision.Supervisor.run` does.
  """
  # Launchpad parses the command line for its own flags; ours are none of them.
  lp.flags.FLAGS(sys.argv[:1])
  if launch_type == 'local_mt':
    return _run_threads(program)
  with contextlib.closing(server or fork_server.ForkServer()) as server:
    nodes = [_Node(command, keep_open, server) for command in _commands(program)]
    try:
      return supervision.Supervisor(nodes, run_dir, restarts, screen).run()
    except RuntimeError as e:
      # No process can be started; those already started end once this one has gone.
      supervision.say(f'error: {e}', sys.stderr)
      return processes.ENDS_RUN


def _run_threads(program: lp.Program) -> int:
  manager = lp.launch(program, 'local_mt')
  # The manager forgets nodes that end while it stops, and what they raise.
  learners = list(manager._active_workers[supervision.LEARNER])
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # Launchpad ignores it.
    signal.signal(signal.SIGHUP, _end_without_terminal)
  try:
    manager.wait(return_on_first_completed=True)
    failed = not manager.stop_event().is_set()
  except Exception as e:
    supervision.say(f'error: a node failed: {e}', sys.stderr)
    failed = True
  if failed:
    supervision.say(
        'error: a node failed, as printed above; stopping the others. Nodes that '
        'are threads cannot be restarted.', sys.stderr)
    signal.raise_signal(signal.SIGTERM)
  manager.wait(raise_error=False)
  for learner in learners:
    error = learner.future.exception()
    if not failed and isinstance(error, Exception):
      supervision.say(f'error: the learner failed, so its last steps may not be in '
                      f'the newest checkpoint: {error}', sys.stderr)
      return processes.ENDS_RUN  # It was told to end, so there is no retry.
  return int(failed)


def _end_without_terminal(*_: Any) -> None:
  """Ends the program as SIGTERM does; Launchpad prints on what has gone."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  for output in (1, 2):
    if os.isatty(output):
      os.dup2(nowhere, output)
  signal.raise_signal(signal.SIGTERM)


class _Process(fork_server.Forked):
  """The process of a node on this machine."""

  def poll(self) -> Optional[supervision.End]:
    """Returns how it ended, or None while it runs."""
    code = self.code()
    return None if code is None else supervision.End(
        code, supervision.describe_exit(code))


class _Unstarted:
  """The process of a node that the system did not allow to start."""

  def __init__(self, error: OSError):
    self._end = supervision.End(1, f'cannot be started ({error.strerror})')

  def lines(self) -> Iterator[str]:
    return iter(())

  def poll(self) -> supervision.End:
    return self._end

  def signal(self, number: int) -> None:
    del number  # Nobody is there.


class _Node(supervision.Node):
  """A node of this machine."""

  def __init__(self, command: Any, keep_open: Sequence[int],
               server: fork_server.ForkServer):
    super().__init__(command.title)
    self._command = [*command.command_as_list, *child.NODE_FLAGS]
    self._env = command.env_overrides
    self._keep_open = keep_open
    self._server = server

  def begin(self, variables: Mapping[str, str]) -> supervision.Process:
    try:
      return _Process(*self._server.fork(
          self._command, {**self._env, **variables}, self._keep_open))
    except OSError as e:  # Such as where the number of processes is limited.
      return _Unstarted(e)


def _commands(program: lp.Program) -> list:
  """Binds the addresses of all nodes; returns the command to start each node."""
  launcher = os.getpid()

  def stop_program(mark_as_completed: bool = False) -> None:
    del mark_as_completed
    os.kill(launcher, signal.SIGUSR1)

  for nodes in program.groups.values():
    for node in nodes:
      node.launch_context.initialize(
          context.LaunchType.LOCAL_MULTI_PROCESSING, None, stop_program)
  for label, nodes in program.groups.items():
    for node in nodes:
      for handle in node.input_handles:
        handle.connect(node, label)
  for node in program.get_all_nodes():
    node.bind_addresses()
  return [
      command for label, nodes in program.groups.items() if nodes
      for command in nodes[0].to_executables(
          nodes, label, nodes[0].launch_context)]
