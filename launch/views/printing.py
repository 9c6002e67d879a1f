"""Prints a run's rows of progress and its warnings, line by line.

Engines report their nodes to a screen and pass on what the nodes print, so all
engines share the same screens.
"""

import contextlib
import errno
import json
import os
import sys
import time
from typing import Any, Iterator, Mapping, TextIO

from programs.runtime import records

_WARNING = 'warning: '
_READER_HAS_GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)
# How often to print what starting nodes wait for.
_STARTING_SECONDS = 5.


def print_line(line: str, file: TextIO) -> None:
  """Prints a line, unless its reader has gone."""
  try:
    print(line, file=file, flush=True)
  except OSError as e:
    # No reason to stop: there are still the logs. A full disk may have room later.
    if e.errno in _READER_HAS_GONE:
      os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


class Screen:
  """What engines report to. This one shows only warnings and errors."""

  @contextlib.contextmanager
  def shown(self) -> Iterator[None]:
    """Stays on screen while the context lasts."""
    yield

  @contextlib.contextmanager
  def hidden(self) -> Iterator[None]:
    """Leaves the screen to others while the context lasts."""
    yield

  def say(self, line: str) -> None:
    """Shows a message from the launcher."""

  def fail(self, line: str) -> None:
    """Shows why the launcher gives up, or what is wrong."""
    print_line(line, sys.stderr)

  def begun(self, node: str, restarts: int) -> None:
    """Notes that a node was started or restarted."""

  def ended(self, node: str) -> None:
    """Notes that a node has ended."""

  def stopping(self) -> None:
    """Notes that all nodes are told to end."""

  def output(self, node: str, line: str) -> None:
    """Handles a line that a node printed; lines not shown are in its log."""
    if records.is_for_launcher(node, line):
      content = json.loads(line.partition(': ')[2])
      self.row(content) if line.startswith(records.ROW) else self.starting(content)
    elif line.startswith(_WARNING):
      self.fail(line)
    elif line.startswith((f'{node}: ', f'{node.partition("/")[0]}: ')):
      is_warning = line.partition(': ')[2].startswith(_WARNING)
      self.fail(line) if is_warning else self.of_node(node, line)

  def row(self, row: Mapping[str, Any]) -> None:
    """Handles a row of progress."""

  def starting(self, waits_for: Mapping[str, str]) -> None:
    """Handles what each starting node waits for."""

  def of_node(self, node: str, line: str) -> None:
    """Handles a node's message about itself."""


class Plain(Screen):
  """Prints a line for each row, suitable for files."""

  def __init__(self):
    self._terminal = records.TerminalLogger()
    self._next_starting = time.monotonic() + _STARTING_SECONDS

  def say(self, line: str) -> None:
    print_line(line, sys.stdout)

  def row(self, row: Mapping[str, Any]) -> None:
    try:
      self._terminal.write(row)
    except OSError:
      self.say('')  # The reader has gone.

  def starting(self, waits_for: Mapping[str, str]) -> None:
    if time.monotonic() >= self._next_starting:
      self._next_starting = time.monotonic() + _STARTING_SECONDS
      self.say(f'waiting for {records.what_is_missing(waits_for)}')

  def of_node(self, node: str, line: str) -> None:
    self.say(line)
