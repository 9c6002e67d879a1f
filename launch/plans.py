"""The plan of a sweep: its flags, and the runs that they stand for."""

import dataclasses
import itertools
import os
import re
from typing import Annotated, Any, Mapping, Optional, Sequence

from pydantic import Field

from agents import validation
from launch import cells as cells_lib
from launch import errors
from launch import flags
from launch import presets
from launch import settings as settings_lib
from programs import config as run_config

_Text = Annotated[str, Field(min_length=1, max_length=1000)]


@dataclasses.dataclass
class SweepCommand:
  """What to sweep over; all other settings are as for launch.train.

  Attributes:
    out: the directory of the sweep. Given again with the same flags, the sweep
      resumes where it stopped; a grid with more seeds or values trains those.
    seeds: such as 0-2 or 0,1,5; each setting is trained with each seed.
    grid: values of settings, such as learning_rate=3e-4,7e-4 loss=ppo,vtrace; each
      combination is trained. Values that are lists are separated by semicolons.
    search: ranges of settings, such as learning_rate=1e-4..1e-2:log
      latent_size=64..512 loss=ppo,vtrace; Optuna draws settings from them, and
      prunes trials that do worse than most at the same timestep.
    trials: how many settings a search tries.
    config: a file of settings, as for launch.train.
    preset: a set of settings for one purpose, as for launch.train.
    ray_address: the address of a Ray cluster, such as auto for the one that this
      machine is in: the runs of a grid are trained there, side by side. Each takes
      as many of a host's CPUs as it has --num_actors.
  """
  out: run_config.Directory
  seeds: _Text = '0-2'
  grid: tuple[_Text, ...] = ()
  search: tuple[_Text, ...] = ()
  trials: Annotated[int, Field(ge=1, le=1_000_000)] = 20
  config: Optional[run_config.Directory] = None
  preset: Optional[presets.PresetName] = None
  ray_address: Optional[_Text] = None

  def __post_init__(self):
    validation.check(self)


# What a sweep has in place of a run's own.
_INSTEAD = {'seed': 'seeds', 'run_dir': 'out'}

FLAGS = flags.Flags(
    'python -m launch.sweep', 'Trains a grid of settings, or searches them.',
    {'command': SweepCommand, **settings_lib.SECTIONS},
    common=[*(field.name for field in dataclasses.fields(SweepCommand)), 'game',
            'max_timesteps', 'target_return'],
    hidden=_INSTEAD)


@dataclasses.dataclass
class Plan:
  """What a sweep is to do.

  Attributes:
    command: the flags of the sweep itself.
    flags: the flags of the training command that all cells share.
    seeds: the seeds to train each setting with.
    grid: the values of each setting of a grid, as texts.
  """
  command: SweepCommand
  flags: list[str]
  seeds: list[int]
  grid: Mapping[str, Sequence[str]]

  @property
  def varied(self) -> list[str]:
    """The settings in which runs differ, beside their seeds."""
    return [*self.grid, *(split(assignment)[0]
                          for assignment in self.command.search)]


def parse(argv: Sequence[str]) -> Plan:
  """Reads the flags of the command.

  Args:
    argv: the flags; `--help` prints the help and exits.

  Returns:
    The plan.

  Raises:
    ValueError: for a bad flag; the message is one line.
  """
  given = FLAGS.parse(argv)
  command = _command(given.pop('command'), given)
  grid = _grid(command.grid)
  in_file = {} if command.config is None else (
      settings_lib.read_config(command.config))
  if command.ray_address is not None and 'num_actors' not in {
      **in_file.get('run', {}), **given.get('run', {}), **grid}:
    raise ValueError("--num_actors is missing: give how many of a host's CPUs "
                     'each run is to take.')
  _check_each(given)
  shared = _shared_flags(command, given)
  for name, texts in grid.items():
    for text in texts:
      check_value(name, text)
  if not command.search:
    # Only the first combination: checking all may take a while, and is done before
    # any is trained.
    settings_lib.parse_train([*shared, *itertools.chain.from_iterable(
        _setting(name, texts[0]) for name, texts in grid.items())])
  return Plan(command, shared, _seeds(command.seeds), grid)


def _command(own: Mapping[str, Any], given: settings_lib.Values) -> SweepCommand:
  """Makes the command from its own flags, beside those for its runs."""
  if 'out' not in own:
    raise ValueError('--out is missing; give the directory of the sweep.')
  for name, instead in _INSTEAD.items():
    if name in given.get('run', {}):
      raise ValueError(f'a sweep has no --{name}; give --{instead}.')
  for name in ('grid', 'search'):
    if name in own and not own[name]:
      raise ValueError(f'--{name} is empty; give settings, such as '
                       'learning_rate=3e-4,7e-4.')
  command = SweepCommand(**own)
  command.out = os.path.abspath(os.path.expanduser(command.out))
  if command.config is not None:
    command.config = os.path.abspath(os.path.expanduser(command.config))
  if command.grid and command.search:
    raise ValueError('give either --grid or --search.')
  if command.ray_address is not None and command.search:
    raise ValueError('--search tries one setting after the other, without '
                     '--ray_address.')
  return command


def _shared_flags(command: SweepCommand, given: settings_lib.Values) -> list[str]:
  """Returns the flags of the training command that all runs share."""
  shared = []
  if command.config is not None:
    shared += ['--config', command.config]
  if command.preset is not None:
    shared += ['--preset', command.preset]
  for values in given.values():
    for name, value in values.items():
      shared += flags.as_argv(name, value)
  return shared


def make_cells(plan: Plan, settings: Mapping[str, str], name: str
               ) -> list[cells_lib.Cell]:
  """Returns the cells of one combination of settings, one for each seed."""
  return [
      cells_lib.Cell(
          os.path.join(plan.command.out, name, f'seed{seed}'),
          [*plan.flags, *itertools.chain.from_iterable(
              _setting(*setting) for setting in settings.items()),
           '--seed', str(seed)])
      for seed in plan.seeds]


def grid_cells(plan: Plan) -> list[cells_lib.Cell]:
  """Returns a grid's cells, seed by seed, so that all settings compare early."""
  combinations = [dict(zip(plan.grid, values))
                  for values in itertools.product(*plan.grid.values())]
  by_setting = [
      make_cells(plan, settings, ','.join(
          f'{name}={value}' for name, value in settings.items()) or 'all')
      for settings in combinations]
  return [cell for seed in zip(*by_setting) for cell in seed]


def _seeds(text: str) -> list[int]:
  """Returns the seeds that '0-2' or '0,1,5' stands for."""
  seeds: list[int] = []
  for part in text.split(','):
    found = re.fullmatch(r'(\d{1,18})(?:-(\d{1,18}))?', part)
    if not found or int(found[2] or found[1]) - int(found[1]) not in range(10_000):
      raise ValueError(f'seeds must be such as 0-2 or 0,1,5, not '
                       f'{validation.shown(text)}.')
    seeds += range(int(found[1]), int(found[2] or found[1]) + 1)
  return list(dict.fromkeys(seeds))


def fields() -> dict[str, Mapping[str, Any]]:
  """Returns the schema of each setting that can be swept over, by its name."""
  return {name: field.json_schema()
          for config_class in settings_lib.SECTIONS.values()
          for name, field in validation.fields(config_class).items()
          if name not in ('run_dir', 'seed', 'frame_stack')}


def split(assignment: str) -> tuple[str, str]:
  """Returns the name of a setting and what is assigned to it.

  Raises:
    ValueError: if it does not assign to a setting; the message is one line.
  """
  name, equals, text = assignment.partition('=')
  if not equals or not text:
    raise ValueError('give settings as NAME=VALUE,VALUE, not '
                     f'{validation.shown(assignment)}.')
  if name not in fields():
    hint = errors.nearest(name, fields())
    raise ValueError(f'there is no setting {validation.shown(name)}' + (
        f'; did you mean {hint}?' if hint else ' to sweep over.'))
  return name, text


def values_of(name: str, text: str) -> list[str]:
  """Returns a setting's values, split at commas or semicolons."""
  values = text.split(';' if 'items' in fields()[name] or ';' in text else ',')
  if '' in values or len(set(values)) < len(values):
    raise ValueError(f'the values of {name} must be different, and none empty, not '
                     f'{validation.shown(text)}.')
  return values


def _grid(assignments: Sequence[str]) -> dict[str, list[str]]:
  grid: dict[str, list[str]] = {}
  for assignment in assignments:
    name, text = split(assignment)
    if name in grid:
      raise ValueError(f'{name} is given twice; give all its values at once.')
    grid[name] = values_of(name, text)
  return grid


def check_value(name: str, text: str) -> None:
  """Checks a value by itself; raises ValueError with a one-line message.

  Whether it goes with other settings is checked where all are known.
  """
  _check_each(settings_lib.FLAGS.parse(_setting(name, text)))


def _check_each(given: settings_lib.Values) -> None:
  for section, values in given.items():
    for name, value in values.items():
      validation.checked(
          name, validation.fields(settings_lib.SECTIONS[section])[name], value)


def _setting(name: str, text: str) -> list[str]:
  """Returns the flags of a setting's value."""
  if fields()[name].get('type') != 'boolean':
    return [f'--{name}={text}']
  if text not in ('true', 'false'):
    raise ValueError(f'{name} must be true or false, not {validation.shown(text)}.')
  return [f'--{name}' if text == 'true' else f'--no_{name}']
