"""Looks into the replay of a run: `python -m launch.inspect --run_dir D`."""

# ruff: noqa: E402
import signal
import sys

if __name__ == '__main__':
  # Ctrl-C ends it silently; there is nothing to save.
  signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import dataclasses
import json
import os
import time
from typing import Annotated, Optional, Sequence

from pydantic import Field

from agents import validation
from launch import errors
from launch import flags
from programs import config as run_config


@dataclasses.dataclass
class InspectCommand:
  """What to look at.

  Attributes:
    run_dir: the directory of a training run in progress.
    address: HOST:PORT of a Reverb server, instead of those named in the run's
      directory.
    watch: whether to look repeatedly, until Ctrl-C.
    seconds: time between two looks, from which rates are computed.
    json: whether to print the figures as JSON for scripts, one line a look.
    sample: how many trajectories of the replay, picked at random, to draw into
      the directory --out.
    out: the directory for a picture of each trajectory, with what the newest
      checkpoint makes of it, and histograms of the ages and priorities of all.
    gif: whether to draw trajectories as GIFs, a timestep at a time.
  """
  run_dir: Optional[run_config.Directory] = None
  address: Optional[Annotated[str, Field(min_length=1, max_length=1000)]] = None
  watch: bool = False
  seconds: Annotated[float, Field(gt=0, le=3600)] = 1.
  json: bool = False
  sample: Optional[Annotated[int, Field(ge=1, le=10_000)]] = None
  out: Optional[run_config.Directory] = None
  gif: bool = False

  def __post_init__(self):
    validation.check(self)
    if self.run_dir is None and self.address is None:
      raise ValueError('give the --run_dir of a run, or the --address of a Reverb '
                       'server.')
    if (self.sample is None) != (self.out is None):
      raise ValueError('--sample N and --out DIR belong together.')
    if self.sample is not None and self.run_dir is None:
      raise ValueError("--sample needs the run's settings, so its --run_dir.")
    if self.sample is None and self.gif:
      raise ValueError('--gif is for --sample N --out DIR.')
    if self.sample is not None and (self.watch or self.json):
      raise ValueError('--sample draws pictures; give --watch or --json in another '
                       'command.')


FLAGS = flags.Flags(
    'python -m launch.inspect', 'Looks into the replay of a run.',
    {'command': InspectCommand})


def parse(argv: Sequence[str]) -> InspectCommand:
  """Reads the flags of the command.

  Args:
    argv: the flags; `--help` prints the help and exits.

  Returns:
    The command.

  Raises:
    ValueError: for a bad flag; the message is one line.
  """
  command = InspectCommand(**FLAGS.parse(argv)['command'])
  for name in ('run_dir', 'out'):
    path = getattr(command, name)
    if path is not None:
      setattr(command, name, os.path.expanduser(path))
  return command


if __name__ == '__main__':
  # Neither --help nor a bad flag waits for the imports below.
  with errors.in_one_line():
    parse(sys.argv[1:])

import reverb
import rich
from rich import live

from launch.views import tables
from programs.runtime import servers


def _clients(command: InspectCommand) -> list[reverb.Client]:
  if command.address is not None:
    addresses: Sequence[str] = [command.address]
  else:
    assert command.run_dir is not None
    addresses = servers.read(command.run_dir).replay
  return [tables.connect(address) for address in addresses]


def _look(command: InspectCommand, clients: Sequence[reverb.Client]) -> None:
  """Shows the tables once, or until the servers end."""
  before = [tables.read(client) for client in clients]
  with contextlib.ExitStack() as stack:
    show: Optional[live.Live] = None
    while True:
      time.sleep(command.seconds)
      after = [tables.read(client) for client in clients]
      found = [table for readings in zip(before, after)
               for table in tables.figures(*readings)]
      shown = tables.shown(found, is_watched=command.watch)
      if command.json:
        print(json.dumps(found), flush=True)
      elif not command.watch or not sys.stdout.isatty():
        rich.print(shown)
      elif show is None:
        show = stack.enter_context(live.Live(shown, auto_refresh=False))
      else:
        show.update(shown, refresh=True)
      if not command.watch:
        return
      before = after


def _draw(command: InspectCommand, clients: Sequence[reverb.Client]) -> None:
  """Draws trajectories of the replay, and histograms, into files."""
  # Not needed to look at tables.
  import imageio.v2 as imageio

  from launch.views import sheets
  from launch.views import trajectories

  assert command.run_dir is not None and command.out is not None
  assert command.sample is not None
  held = trajectories.held(command.run_dir, clients)
  os.makedirs(command.out, exist_ok=True)
  drawn = held.draw(command.sample)
  for i, trajectory in enumerate(drawn):
    path = os.path.join(command.out, f'trajectory_{i + 1:0{len(str(len(drawn)))}}')
    if command.gif:
      sheets.write_gif(f'{path}.gif', trajectory, held.action_names,
                       held.frame_stack)
    else:
      imageio.imwrite(f'{path}.png', sheets.contact_sheet(
          trajectory, held.action_names, held.frame_stack))
  imageio.imwrite(os.path.join(command.out, 'histograms.png'), sheets.histograms(
      held.ages(), held.priorities(), held.title))
  print(f'Drew {len(drawn)} of the trajectories in {held.title} into {command.out}; '
        f'histograms.png there has the ages and priorities of all. '
        f'{held.reconstructed_by[0].upper()}{held.reconstructed_by[1:]}.')


def main(argv: Optional[Sequence[str]] = None) -> int:
  """Prints the tables, or draws trajectories; returns the exit code."""
  with errors.in_one_line():
    command = parse(sys.argv[1:] if argv is None else argv)
    clients = _clients(command)
    if command.sample is not None:
      _draw(command, clients)
    else:
      # On Ctrl-C, the terminal's cursor is shown again before this ends.
      signal.signal(signal.SIGINT, signal.default_int_handler)
      with contextlib.suppress(KeyboardInterrupt):
        _look(command, clients)
  return 0


if __name__ == '__main__':
  sys.exit(main())
