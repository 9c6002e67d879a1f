"""What a person sees of a run, line by line: rows of progress, and warnings.

Engines tell a screen of their nodes and pass on what those print; so every engine
has the same screens.
"""

import contextlib
import json
import os
import sys
import time
from typing import Any, Iterator, Mapping, TextIO

from programs.runtime import records

_WARNING = 'warning: '
# How often it is said what nodes wait for that are starting.
_STARTING_SECONDS = 5.


def print_line(line: str, file: TextIO) -> None:
  """Prints a line, if anybody reads on."""
  try:
    print(line, file=file, flush=True)
  except OSError:
    # That is no reason to stop: the logs are there.
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


class Quiet:
  """Shows warnings and errors only, and takes note of nothing else."""

  @contextlib.contextmanager
  def shown(self) -> Iterator[None]:
    """Is there while the context is."""
    yield

  def say(self, line: str) -> None:
    """Shows what the launcher says."""

  def fail(self, line: str) -> None:
    """Shows why the launcher gives up, or what is wrong."""
    print_line(line, sys.stderr)

  def begun(self, node: str, restarts: int) -> None:
    """Takes note that a node was started, the first time or anew."""

  def ended(self, node: str) -> None:
    """Takes note that a node has ended."""

  def stopping(self) -> None:
    """Takes note that all nodes are told to end."""

  def output(self, node: str, line: str) -> None:
    """Takes a line that a node has printed; what is not shown is in its log."""
    if records.is_for_launcher(node, line):
      told = json.loads(line.partition(': ')[2])
      self.row(told) if line.startswith(records.ROW) else self.starting(told)
    elif line.startswith(_WARNING):
      self.fail(line)
    elif line.startswith((f'{node}: ', f'{node.partition("/")[0]}: ')):
      is_warning = line.partition(': ')[2].startswith(_WARNING)
      self.fail(line) if is_warning else self.of_node(node, line)

  def row(self, row: Mapping[str, Any]) -> None:
    """Takes a row of progress."""

  def starting(self, waits_for: Mapping[str, str]) -> None:
    """Takes what each node waits for that is starting."""

  def of_node(self, node: str, line: str) -> None:
    """Takes what a node says of itself."""


class Plain(Quiet):
  """Prints a line for each row, as is fit for files."""

  def __init__(self):
    self._terminal = records.TerminalLogger()
    self._next_starting = time.monotonic() + _STARTING_SECONDS

  def say(self, line: str) -> None:
    print_line(line, sys.stdout)

  def row(self, row: Mapping[str, Any]) -> None:
    try:
      self._terminal.write(row)
    except OSError:
      self.say('')  # Nobody reads on.

  def starting(self, waits_for: Mapping[str, str]) -> None:
    if time.monotonic() >= self._next_starting:
      self._next_starting = time.monotonic() + _STARTING_SECONDS
      self.say(f'waiting for {records.what_is_missing(waits_for)}')

  def of_node(self, node: str, line: str) -> None:
    self.say(line)
