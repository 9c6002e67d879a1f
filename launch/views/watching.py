"""Chooses the screen that shows a run."""

import os
import sys

from launch.views import printing


def make(run: str, max_timesteps: int, plain: bool, quiet: bool) -> printing.Screen:
  """Makes the screen that fits standard output.

  Args:
    run: what is being run, in a few words.
    max_timesteps: when the run ends.
    plain: whether to print lines even on a terminal.
    quiet: whether to print only warnings.
  """
  if quiet:
    return printing.Screen()
  if (plain or not sys.stdout.isatty() or os.environ.get('TERM') == 'dumb' or
      not _can_draw(sys.stdout.encoding)):
    return printing.Plain()
  from launch.views import display  # Slow to import.
  return display.Live(run, max_timesteps)


def _can_draw(encoding: str) -> bool:
  """Tells whether an encoding has what the display is drawn with."""
  try:
    '→●─▁'.encode(encoding)
  except UnicodeEncodeError:
    return False
  return True
