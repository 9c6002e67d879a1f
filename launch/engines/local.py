"""This machine as an engine: every node a process, or a thread.

Processes are started by the commands that Launchpad makes of a program, and
supervised here: Launchpad's own launcher ends everything with the first node,
and passes its output on through a shell that holds it back.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from typing import Optional, Sequence, TextIO

from acme.utils import loggers
import launchpad as lp
from launchpad import context

from launch import settings
from launch.engines import fork_server
from launch.engines import supervision
from programs.runtime import processes
from programs.runtime import records

_POLL_SECONDS = 0.1
_RESTART_SECONDS = 1.
# How long nodes may take to end: the learner saves its last checkpoint.
_GRACE_SECONDS = 12.
# Launchpad's countdown to killing a node is left to the supervisor.
_NODE_FLAGS = ('--lp_termination_notice_secs=-1',)


def run_program(program: lp.Program, launch_type: str,
                run_dir: Optional[str] = None, restarts: bool = True,
                keep_open: Sequence[int] = (),
                server: Optional[fork_server.ForkServer] = None) -> int:
  """Runs a program to its end; returns the exit code.

  Args:
    program: what to run.
    launch_type: `local_mp` for a process for each node, `local_mt` for a thread.
    run_dir: gets `logs`, a file of the output of each process, and
      `restarts.csv`; None for neither.
    restarts: whether processes that end by themselves are restarted. Threads
      are not: one that fails ends the program.
    keep_open: file descriptors that processes inherit, such as that of a lock
      which is to last as long as any of them.
    server: forks the processes; by default one that is made for it.

  Returns:
    0 if the program was done or told to stop, else 1.
  """
  # Launchpad parses the command line for its own flags; ours are none of them.
  lp.flags.FLAGS(sys.argv[:1])
  if launch_type == 'local_mt':
    return _run_threads(program)
  server = server or fork_server.ForkServer()
  try:
    return _Supervisor(program, run_dir, restarts, keep_open, server).run()
  finally:
    server.close()


def _run_threads(program: lp.Program) -> int:
  manager = lp.launch(program, 'local_mt')
  try:
    manager.wait(return_on_first_completed=True)
    failed = not manager.stop_event().is_set()
  except Exception as e:  # pylint: disable=broad-except
    _say(f'error: a node failed: {e}', sys.stderr)
    failed = True
  if failed:
    _say('error: a node failed, as printed above; stopping the others. Nodes that '
         'are threads cannot be restarted.', sys.stderr)
    signal.raise_signal(signal.SIGTERM)
  manager.wait(raise_error=False)
  return int(failed)


def _say(line: str, file: TextIO = sys.stdout) -> None:
  _print(f'train: {line}', file)


def _print(line: str, file: TextIO = sys.stdout) -> None:
  try:
    print(line, file=file, flush=True)
  except OSError:
    # Nobody reads on, which is no reason to stop: the logs are there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


class _Node:
  """The process of a node, and its output."""

  def __init__(self, title: str, command: list[str], env: dict[str, str],
               log_dir: Optional[str], keep_open: Sequence[int],
               server: fork_server.ForkServer):
    self.title = title
    self._server = server
    self._command = command
    self._env = env
    self._keep_open = keep_open
    self.log: Optional[str] = None
    if log_dir is not None:
      self.log = os.path.join(log_dir, title.replace('/', '_') + '.log')
    self.last_line = 'nothing'
    # Why it ends the run, if it says so.
    self.ends_run: Optional[str] = None
    self.ended_at = 0.

  def start(self, restarts: int) -> None:
    """Starts the process, the first time or anew."""
    # A process group of its own: Ctrl-C in a terminal is for the launcher. But no
    # session: between those Linux shares cores evenly, whatever their niceness.
    output, theirs = os.pipe()
    try:
      self._process = self._server.fork(
          self.title, self._command,
          {**self._env,
           processes.RESTARTS_VARIABLE: str(restarts),
           processes.ENDED_AT_VARIABLE: str(self.ended_at)},
          theirs, self._keep_open)
    finally:
      os.close(theirs)
    self.ended_at = 0.
    self._pump = threading.Thread(target=self._pass_on, args=(output,),
                                  daemon=True)
    self._pump.start()

  def poll(self) -> Optional[int]:
    """Returns the return code once the process has ended."""
    code = self._process.poll()
    if code is not None:
      self._pump.join(1.)  # Its last words.
    return code

  def signal(self, number: int) -> None:
    self._process.send_signal(number)

  def _pass_on(self, output: int) -> None:
    with open(output, 'rb') as lines:
      for raw in lines:
        self._take(raw.decode(errors='replace').rstrip())

  def _take(self, line: str) -> None:
    self.last_line = line or self.last_line
    if line.startswith(processes.ENDS_RUN_BECAUSE):
      # The supervisor's last line, and so not one of many.
      self.ends_run = line[len(processes.ENDS_RUN_BECAUSE):]
    else:
      _print(f'[{self.title}] {line}')
    if self.log is not None:
      # A full disk must not stop the node, which waits for its reader.
      with contextlib.suppress(OSError), open(self.log, 'a') as f:
        f.write(line + '\n')


class _Supervisor:
  """Starts the nodes, restarts those that end, and stops them all."""

  def __init__(self, program: lp.Program, run_dir: Optional[str],
               restarts: bool, keep_open: Sequence[int],
               server: fork_server.ForkServer):
    log_dir = None
    self._record: loggers.Logger = loggers.NoOpLogger()
    if run_dir is not None:
      log_dir = os.path.join(run_dir, settings.LOGS)
      os.makedirs(log_dir, exist_ok=True)
      self._record = records.csv_logger(run_dir, records.RESTARTS_FILE,
                                        records.RESTARTS_COLUMNS)
    self._nodes = [
        _Node(command.title, [*command.command_as_list, *_NODE_FLAGS],
              command.env_overrides, log_dir, keep_open, server)
        for command in _commands(program)]
    self._policy = supervision.RestartPolicy(restarts)
    self._why: Optional[str] = None

  def run(self) -> int:
    """Returns the exit code."""
    for number, why in ((signal.SIGUSR1, 'done'), (signal.SIGTERM, 'stopped'),
                        (signal.SIGHUP, 'stopped'), (signal.SIGINT, 'stopped')):
      if signal.getsignal(number) != signal.SIG_IGN:  # Or nohup means nothing.
        signal.signal(number, lambda *_, why=why: self._end(why))
    for node in self._nodes:
      node.start(self._policy.started(node.title))
    failure = None
    while self._why is None and failure is None:
      time.sleep(_POLL_SECONDS)
      failure = self._restart_ended()
    self._stop()
    if failure is None:
      _say(f'{self._why}; every node has ended.')
      return 0
    _say(failure, sys.stderr)
    return 1

  def _end(self, why: str) -> None:
    if self._why == 'stopped' and why == 'stopped':  # Asked twice.
      for node in self._nodes:
        node.signal(signal.SIGKILL)
    self._why = self._why or why

  def _restart_ended(self) -> Optional[str]:
    """Restarts nodes that have ended; returns why there is no going on."""
    for node in self._nodes:
      code = node.poll()
      if code is None:
        continue
      now = time.time()
      if code == processes.ENDS_RUN and node.ends_run:
        return f'error: {node.title}: {node.ends_run}'
      if not node.ended_at:
        node.ended_at = now
        how = supervision.describe_exit(code)
        reason = self._policy.reason_to_give_up(node.title, code)
        where = f'; its log is {node.log}' if node.log else ''
        if reason is not None:
          return (f'error: node {node.title} {how}, and {reason}{where}. It '
                  f'said last: {node.last_line}')
        _say(f'node {node.title} {how}; restarting it{where}.')
        self._record.write({'time': int(now), 'node': node.title, 'how': how})
      elif now - node.ended_at >= _RESTART_SECONDS:
        node.start(self._policy.started(node.title))
    return None

  def _stop(self) -> None:
    """Tells all nodes to end, and kills those that take too long."""
    deadline = time.monotonic() + _GRACE_SECONDS
    alive = [node for node in self._nodes if node.poll() is None]
    for node in alive:
      node.signal(signal.SIGTERM)
    while alive and time.monotonic() < deadline:
      time.sleep(_POLL_SECONDS)
      alive = [node for node in alive if node.poll() is None]
    for node in alive:
      _say(f'node {node.title} did not end in time; killing it.')
      node.signal(signal.SIGKILL)


def _commands(program: lp.Program) -> list:
  """Returns what to start, a command for each node, with addresses bound."""
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
