"""Ctrl-Z: pauses what a command has started for as long as the command itself.

A shell stops a command's own process group only, and what it starts has others.
"""

import os
import signal
from typing import Any, Callable, ContextManager


class Pause:
  """Takes Ctrl-Z, to pass it on once asked to."""

  def __init__(self):
    """Begins to take the signal, unless it is ignored."""
    self._is_due = False
    if signal.getsignal(signal.SIGTSTP) != signal.SIG_IGN:
      signal.signal(signal.SIGTSTP, self._ask)
      signal.signal(signal.SIGCONT, self._forget)

  def take_if_due(self, others_paused: Callable[[], ContextManager[None]]) -> None:
    """Stops this process if it was told to, until it is told to go on.

    Args:
      others_paused: keeps what this process has started from running.
    """
    if self._is_due:
      self._is_due = False
      with others_paused():
        os.kill(os.getpid(), signal.SIGSTOP)

  def _ask(self, *unused_args: Any) -> None:
    self._is_due = True

  def _forget(self, *unused_args: Any) -> None:
    self._is_due = False
