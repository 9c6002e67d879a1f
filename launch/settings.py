"""From flags to configs, and to `config.json` and back."""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import re
import sys
import typing
from typing import Any, Dict, NoReturn, Optional, Sequence

from agents import environments
from agents.impala_ppo import config as agent_config
from programs import config as run_config

CONFIG_FILE = 'config.json'
_PACKAGES = ('dm-acme', 'dm-launchpad', 'dm-reverb', 'tensorflow', 'dm-sonnet',
             'trfl', 'gymnasium', 'ale-py', 'numpy')


@dataclasses.dataclass
class Settings:
  """Every setting of a run.

  Attributes:
    environment: which game.
    agent: the algorithm.
    run: processes, budget and files.
  """
  environment: environments.EnvironmentConfig
  agent: agent_config.ImpalaPPOConfig
  run: run_config.RunConfig


_SECTIONS = {field.name: field.type for field in dataclasses.fields(Settings)}
# Follows from the game.
_NO_FLAG = ('frame_stack',)


class Parser(argparse.ArgumentParser):
  """A parser whose errors are one line."""

  def error(self, message: str) -> NoReturn:
    fail(message)


def fail(message: str) -> NoReturn:
  """Prints one line and exits with code 2."""
  program = os.path.splitext(os.path.basename(sys.argv[0]))[0]
  print(f'{program}: error: {message}', file=sys.stderr)
  sys.exit(2)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds a flag for each setting; those not given are absent when parsed."""
  for section, config_class in _SECTIONS.items():
    group = parser.add_argument_group(f'{section} settings')
    helps = dict(re.findall(r'^    (\w+): ((?:.|\n      )*)',
                            config_class.__doc__, re.MULTILINE))
    for field in dataclasses.fields(config_class):
      if field.name in _NO_FLAG:
        continue
      help_text = ' '.join(helps.get(field.name, '').split())
      kwargs: Dict[str, Any] = {'default': argparse.SUPPRESS}
      if field.default is not dataclasses.MISSING:
        help_text += f' Default: {field.default}.'
      if field.type is bool:
        kwargs['action'] = argparse.BooleanOptionalAction
      elif field.type in (int, float, str):
        kwargs['type'] = field.type
      elif field.type in (Optional[int], Optional[float]):
        kwargs['type'] = typing.get_args(field.type)[0]
      elif typing.get_origin(field.type) is typing.Literal:
        kwargs['choices'] = typing.get_args(field.type)
      else:
        kwargs['type'] = _integers
      group.add_argument(f'--{field.name}',
                         help=help_text.replace('%', '%%'), **kwargs)


def _integers(text: str) -> Sequence[int]:
  return tuple(int(part) for part in text.split(','))


_integers.__name__ = 'comma-separated integers'  # argparse quotes it in errors.


def from_flags(flags: Dict[str, Any],
               base: Optional[Settings] = None) -> Settings:
  """Makes settings from the flags that were given.

  Args:
    flags: parsed flags; others than settings are ignored.
    base: gives all other settings; by default they are the defaults.

  Returns:
    The settings.

  Raises:
    ValueError: for a bad value, in one line.
  """
  values: Dict[str, Dict[str, Any]] = {}
  for section, config_class in _SECTIONS.items():
    values[section] = (dataclasses.asdict(getattr(base, section)) if base
                       else {})
    values[section].update({
        field.name: flags[field.name]
        for field in dataclasses.fields(config_class) if field.name in flags})
  environment = environments.EnvironmentConfig(**values['environment'])
  values['agent']['frame_stack'] = environment.frame_stack
  if 'run_dir' not in values['run']:
    values['run']['run_dir'] = os.path.join(
        'runs', re.sub(r'\W+', '_', environment.game).lower())
  # Processes may start elsewhere.
  values['run']['run_dir'] = os.path.abspath(values['run']['run_dir'])
  return Settings(environment,
                  agent_config.ImpalaPPOConfig(**values['agent']),
                  run_config.RunConfig(**values['run']))


def from_train_flags(argv: Sequence[str]) -> Settings:
  """Makes settings from the training command's flags; a bad one is an exit."""
  parser = Parser(allow_abbrev=False)
  add_flags(parser)
  try:
    return from_flags(vars(parser.parse_args(argv)))
  except ValueError as e:
    fail(str(e))


def save(settings: Settings) -> None:
  """Writes `config.json`, with the versions of what was used."""
  content = dataclasses.asdict(settings)
  content['versions'] = {'python': sys.version.split()[0]} | {
      package: importlib.metadata.version(package) for package in _PACKAGES}
  path = os.path.join(settings.run.run_dir, CONFIG_FILE)
  with open(f'{path}.new', 'w') as f:
    json.dump(content, f, indent=2)
    f.write('\n')
  os.replace(f'{path}.new', path)


def load(run_dir: str) -> Settings:
  """Reads the settings of a run; raises ValueError in one line."""
  path = os.path.join(run_dir, CONFIG_FILE)
  try:
    with open(path) as f:
      content = json.load(f)
    sections = {name: config_class(**content[name])
                for name, config_class in _SECTIONS.items()}
  except FileNotFoundError:
    raise ValueError(f'{run_dir} holds no run: it has no {CONFIG_FILE}.') from None
  except (json.JSONDecodeError, KeyError, TypeError) as e:
    raise ValueError(f'{path} is not the config of a run: {e!r}.') from None
  return Settings(**sections)
