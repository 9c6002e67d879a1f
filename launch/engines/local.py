"""Launchpad's local launchers: every node a process, or a thread."""

import contextlib
import os
import pathlib
import re
import signal
import sys

import launchpad as lp
import psutil


def run_program(program: lp.Program, launch_type: str) -> int:
  """Runs a program to its end; returns the exit code.

  Once any node ends, so does the program: unless it was told to, the node has
  failed, and the others would wait for it forever.
  """
  # Launchpad parses the command line for its own flags; ours are none of them.
  lp.flags.FLAGS(sys.argv[:1])
  # Nodes import this package from wherever it was imported here.
  root = str(pathlib.Path(__file__).resolve().parents[2])
  os.environ['PYTHONPATH'] = os.pathsep.join(
      filter(None, [root, os.environ.get('PYTHONPATH')]))
  manager = lp.launch(program, launch_type, terminal='current_terminal')
  lp.register_stop_handler(_kill_starting_nodes)
  try:
    manager.wait(return_on_first_completed=True)
    failed = not manager.stop_event().is_set()
  except Exception as e:  # pylint: disable=broad-except
    _say(f'a node failed: {e}')
    failed = True
  if failed:
    _say('a node failed, as printed above; stopping the others.')
    signal.raise_signal(signal.SIGTERM)
  manager.wait(raise_error=False)
  return int(failed)


def _say(error: str):
  try:
    print(f'train: error: {error}', file=sys.stderr, flush=True)
  except BrokenPipeError:
    # Nobody reads on, which is no reason to leave the nodes running.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.dup2(nowhere, sys.stderr.fileno())


def _kill_starting_nodes():
  """Ends the processes of nodes that cannot hear yet that they are to stop.

  Launchpad starts them with SIGTERM ignored, and they handle it only once they
  have imported everything. Until then they have nothing to lose.
  """
  this = psutil.Process()
  for process in this.children(recursive=True):
    with contextlib.suppress(OSError, psutil.Error):
      if process.exe() != this.exe():
        continue  # Passes a node's output on, and ends with it.
      with open(f'/proc/{process.pid}/status') as f:
        ignored = re.search(r'SigIgn:\s*(\w+)', f.read())
      if ignored and int(ignored[1], 16) >> (signal.SIGTERM - 1) & 1:
        process.kill()
