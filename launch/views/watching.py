"""Which screen a person sees a run on."""

import os
import sys

from launch.views import printing


def make(run: str, max_timesteps: int, plain: bool, quiet: bool) -> printing.Quiet:
  """Makes the screen that fits standard output.

  Args:
    run: what is being run, in a few words.
    max_timesteps: when the run ends.
    plain: whether lines are printed even on a terminal.
    quiet: whether only warnings are.
  """
  if quiet:
    return printing.Quiet()
  if plain or not sys.stdout.isatty() or os.environ.get('TERM') == 'dumb':
    return printing.Plain()
  from launch.views import display  # Takes a moment.
  return display.Live(run, max_timesteps)
