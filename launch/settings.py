"""From flags and files to configs, and to `config.json` and back.

Settings come in layers, and what a later one gives overrides the earlier:
the configs' defaults, or the resumed run's settings; a `--config` file; flags.
"""

import collections
import contextlib
import dataclasses
import difflib
import functools
import importlib.metadata
import io
import itertools
import json
import os
import re
import subprocess
import sys
import types
import typing
from typing import (
  Annotated,
  Any,
  Iterable,
  Iterator,
  Literal,
  Mapping,
  NoReturn,
  Optional,
  Sequence,
  TypedDict,
)

from pydantic import Field
import tyro
from tyro import constructors
import yaml

from agents import environments
from agents import validation
from agents.impala_ppo import config as agent_config
from programs import config as run_config
from programs.runtime import machine

CONFIG_FILE = 'config.json'
_PACKAGES = ('dm-acme', 'dm-launchpad', 'dm-reverb', 'tensorflow', 'dm-sonnet',
             'trfl', 'gymnasium', 'ale-py', 'numpy')
# Stand in a `config.json` beside the settings.
_RECORDED = ('versions', 'commit', 'dirty', 'processor', 'cores')
# Follows from the game.
_NO_FLAG = ('frame_stack',)
_CHECKOUT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

# The values that a layer gives, by section and name.
Values = Mapping[str, Mapping[str, Any]]


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


_SECTIONS: dict[str, type] = typing.get_type_hints(Settings)


@dataclasses.dataclass
class TrainCommand:
  """What to do with the settings.

  Attributes:
    config: a YAML or JSON file of settings, in sections as a run's config.json
      has them; flags override it. Of a run's own config.json, the run_dir is
      left out.
    resume: go on from the newest checkpoint in --run_dir, with its settings;
      --config and flags override them.
    lp_launch_type: one process for each node, or one thread.
  """
  config: Optional[str] = None
  resume: bool = False
  lp_launch_type: Literal['local_mp', 'local_mt'] = 'local_mp'

  def __post_init__(self):
    validation.check(self)


def parse_train(argv: Sequence[str]) -> tuple[TrainCommand, Settings]:
  """Reads the flags of the training command, and the files that they name.

  Args:
    argv: the flags; `--help` among them is an exit.

  Returns:
    The command, and the settings.

  Raises:
    ValueError: for a bad flag or file, in one line.
  """
  flags = parse_flags('python -m launch.train', 'Trains the agent.',
                      {'command': TrainCommand, **_SECTIONS}, argv,
                      {'run_dir': 'runs/<game>'})
  command = TrainCommand(**flags.pop('command'))
  layers = [flags]
  if command.config is not None:
    layers.insert(0, read_config(command.config))
  if command.resume:
    run_dir = _run_dir(_merged(layers))
    # It may have been moved since its settings were written.
    layers = [dataclasses.asdict(load(run_dir)), *layers,
              {'run': {'run_dir': run_dir}}]
  return command, from_layers(layers)


@dataclasses.dataclass
class EvaluateCommand:
  """What to evaluate.

  Attributes:
    run_dir: the directory of a training run.
    episodes: how many episodes to play.
    seed: seeds the environments.
    max_episode_steps: timesteps after which an episode is cut; by default as in
      the run.
  """
  run_dir: run_config.Directory
  episodes: Annotated[int, Field(ge=1, le=1_000_000)] = 30
  seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 1
  max_episode_steps: Optional[run_config.Steps] = None

  def __post_init__(self):
    validation.check(self)


def parse_evaluate(argv: Sequence[str]) -> EvaluateCommand:
  """Reads the flags of the evaluation command.

  Args:
    argv: the flags; `--help` among them is an exit.

  Returns:
    The command.

  Raises:
    ValueError: for a bad flag, in one line.
  """
  flags = parse_flags(
      'python -m launch.evaluate', "Evaluates a run's newest checkpoint.",
      {'command': EvaluateCommand}, argv)['command']
  if 'run_dir' not in flags:
    raise ValueError('--run_dir is missing; give the directory of a run.')
  command = EvaluateCommand(**flags)
  command.run_dir = os.path.expanduser(command.run_dir)
  return command


def from_train_flags(argv: Sequence[str]) -> Settings:
  """Returns the training command's settings; a bad flag is an exit."""
  with errors_in_one_line():
    return parse_train(argv)[1]


def from_layers(layers: Sequence[Values]) -> Settings:
  """Makes settings from the values that each layer gives.

  Args:
    layers: what a later one gives overrides the earlier ones.

  Returns:
    The settings, with defaults where no layer gives a value.

  Raises:
    ValueError: for a bad value, in one line.
  """
  values = _merged(layers)
  environment = environments.EnvironmentConfig(**values['environment'])
  agent = agent_config.ImpalaPPOConfig(
      **{**values['agent'], 'frame_stack': environment.frame_stack})
  run = run_config.RunConfig(**{**values['run'], 'run_dir': _run_dir(values)})
  return Settings(environment, agent, run)


def _merged(layers: Sequence[Values]) -> dict[str, dict[str, Any]]:
  values: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
  for layer in layers:
    for section in layer:
      values[section].update(layer[section])
  return values


def _run_dir(values: Values) -> str:
  """Returns where a run goes, wherever its processes start."""
  game = values['environment'].get('game', environments.EnvironmentConfig.game)
  given = values['run'].get('run_dir', os.path.join(
      'runs', re.sub(r'\W+', '_', str(game)).lower()))
  run_dir = validation.checked(
      'run_dir', validation.fields(run_config.RunConfig)['run_dir'], given)
  return os.path.abspath(os.path.expanduser(run_dir))


def parse_flags(
    prog: str, description: str, sections: Mapping[str, type],
    argv: Sequence[str], derived: Mapping[str, str] = types.MappingProxyType({}),
) -> dict[str, dict[str, Any]]:
  """Parses flags, one for each field of some dataclasses.

  Args:
    prog: the command, for `--help`.
    description: what it does, for `--help`.
    sections: dataclasses, each a group of flags, by name.
    argv: the flags; `--help` among them is an exit.
    derived: what fields without a default are when their flag is not given,
      for `--help`.

  Returns:
    The values of the flags that were given, by section and name, not checked.

  Raises:
    ValueError: for an unknown flag or a missing value, in one line.
  """
  groups = {name: _flags_of(config_class, derived)
            for name, config_class in sections.items()}
  errors = io.StringIO()
  try:
    with contextlib.redirect_stderr(errors):
      values, unknown = tyro.cli(
          _optional_keys('Flags', groups), prog=prog, description=description,
          args=argv, use_underscores=True, return_unknown_args=True,
          config=[tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff])
  except SystemExit as e:
    if not e.code:
      raise
    raise ValueError(_unboxed(errors.getvalue())) from None
  if unknown:
    raise ValueError(_unknown_flag(unknown[0], groups.values()))
  return values


def _flags_of(config_class: type, derived: Mapping[str, str]) -> Any:
  """Returns what tyro makes flags of: a dict type whose keys may be absent."""
  doc = config_class.__doc__ or ''
  helps = dict(re.findall(r'^    (\w+): ((?:.|\n      )*)', doc, re.MULTILINE))
  defaults = {**derived, **_defaults(config_class)}
  flags: dict[str, Any] = {}
  for name, field in validation.fields(config_class).items():
    if name in _NO_FLAG:
      continue
    schema = field.json_schema()
    told = tyro.conf.arg(
        help=' '.join(helps.get(name, '').split()),
        help_behavior_hint=(f'(default: {defaults[name]})' if name in defaults
                            else '(required)'))
    if schema.get('type') == 'boolean':
      flags[name] = Annotated[bool, told]  # Two flags: --name and --no_name.
    else:
      flags[name] = Annotated[str, told, constructors.PrimitiveConstructorSpec(
          nargs=1, metavar=_placeholder(schema),
          instance_from_str=functools.partial(_meaning, schema),
          is_instance=lambda _: True, str_from_instance=lambda text: [text])]
  group = _optional_keys(config_class.__name__, flags)
  group.__doc__ = doc.partition('\n')[0]
  return group


def _optional_keys(name: str, types_of_keys: dict[str, Any]) -> Any:
  """Returns a type of dict, any key of which may be absent."""
  return TypedDict(name, types_of_keys, total=False)  # type: ignore


def _defaults(config_class: type) -> dict[str, str]:
  """Returns the defaults of a config's fields, as flags would have them."""
  texts = {}
  for field in dataclasses.fields(config_class):
    value = (field.default if field.default_factory is dataclasses.MISSING
             else field.default_factory())
    if isinstance(value, tuple):
      texts[field.name] = ','.join(map(str, value))
    elif value is not dataclasses.MISSING:
      texts[field.name] = (value if isinstance(value, str)
                           else validation.shown(value))
  return texts


def _placeholder(schema: Mapping[str, Any]) -> str:
  """Returns the form of the texts that `_meaning` understands."""
  if 'anyOf' in schema:
    return '|'.join(map(_placeholder, schema['anyOf']))
  if 'items' in schema:
    return f'{_placeholder(schema["items"])},...'
  if 'enum' in schema:
    return f'{{{",".join(schema["enum"])}}}'
  return {'integer': 'INT', 'number': 'FLOAT', 'null': 'none'}.get(
      schema['type'], 'TEXT')


def _meaning(schema: Mapping[str, Any], texts: Sequence[str]) -> Any:
  """Returns what a flag's text means; one that means nothing stays as it is."""
  text, = texts
  if 'anyOf' in schema:
    schema, _ = schema['anyOf']
    if text.lower() == 'none':
      return None
  if 'items' in schema:
    return [_meaning(schema['items'], [part]) for part in text.split(',')]
  try:
    return {'integer': int, 'number': float}.get(schema['type'], str)(text)
  except ValueError:
    return text


def _unboxed(box: str) -> str:
  """Returns what tyro says in a box, without its title and its footer."""
  lines = [line.strip(' │╭╮╰╯─') for line in box.splitlines()]
  _, *rest = [line for line in lines if line.strip('-')]
  return ' '.join(itertools.takewhile(
      lambda line: not line.startswith('For full helptext'), rest))


def _unknown_flag(token: str, groups: Iterable[Any]) -> str:
  if not token.startswith('-'):
    return (f'unexpected {validation.shown(token)}; each value follows its flag, '
            'and a flag for yes or no takes none (--name or --no_name).')
  known = []
  for group in groups:
    for name, annotation in group.__annotations__.items():
      known.append(f'--{name}')
      if typing.get_args(annotation)[0] is bool:
        known.append(f'--no_{name}')
  flag = token.partition('=')[0]
  hint = _nearest(flag.replace('-', '_').replace('__', '--', 1), known)
  return f'unknown flag {validation.shown(flag)}; ' + (
      f'did you mean {hint}?' if hint else 'see --help.')


def _nearest(name: str, known: Iterable[str]) -> Optional[str]:
  """Returns the known name that was meant, if any comes near."""
  known = list(known)
  begun = [candidate for candidate in known if candidate.startswith(name)]
  close = difflib.get_close_matches(name, known, n=1)
  return next(iter(close + begun), None)


def read_config(path: str) -> dict[str, dict[str, Any]]:
  """Reads a file of settings, such as a run's `config.json`.

  Args:
    path: of a YAML file, or a JSON file that ends with `.json`. Its sections
      are those of `Settings`; sections and settings may be left out. What else
      a run's `config.json` records is left out, and its run_dir with it: a new
      run must not go into the old one's directory.

  Returns:
    The values that it gives, by section and name, each one checked by itself.

  Raises:
    ValueError: for what is no file of settings, in one line.
  """
  content = _read(path)
  values = _checked_sections(path, content)
  if any(name in content for name in _RECORDED):
    values.get('run', {}).pop('run_dir', None)
  return values


def load(run_dir: str) -> Settings:
  """Reads the settings of a run.

  Args:
    run_dir: its directory.

  Returns:
    The settings as they were saved.

  Raises:
    ValueError: where it holds no run, in one line.
  """
  path = os.path.join(run_dir, CONFIG_FILE)
  if not os.path.exists(path):
    raise ValueError(f'{run_dir} holds no run: it has no {CONFIG_FILE}.')
  values = _checked_sections(path, _read(path))
  configs = {}
  for section, config_class in _SECTIONS.items():
    if section not in values:
      raise ValueError(f'{path} is not the config of a run: it has no {section}.')
    try:
      configs[section] = config_class(**values[section])
    except ValueError as e:
      raise ValueError(f'{path}: {e}') from None
    except TypeError:
      raise ValueError(f'{path} is not the config of a run: its {section} has no '
                       'run_dir.') from None
  return Settings(**configs)


def _checked_sections(path: str, content: Any) -> dict[str, dict[str, Any]]:
  """Returns the sections of a file; raises ValueError in one line."""
  if not isinstance(content, dict):
    raise ValueError(f'{path} must have the sections {", ".join(_SECTIONS)}, '
                     f'not {validation.shown(content)}.')
  places = {name: f'{section}.{name}'
            for section, config_class in _SECTIONS.items()
            for name in validation.fields(config_class)}
  values: dict[str, dict[str, Any]] = {}
  for section, given in content.items():
    if section in _RECORDED:
      continue
    if section not in _SECTIONS:
      hint = _nearest(str(section), [*_SECTIONS, *places])
      raise ValueError(
          f'{path}: unknown section {validation.shown(section)}; ' + (
              f'did you mean {places.get(hint, hint)}?' if hint else
              f'there are {", ".join(_SECTIONS)}.'))
    if not isinstance(given, dict):
      raise ValueError(f'{path}: {section} must be settings by name, not '
                       f'{validation.shown(given)}.')
    known = validation.fields(_SECTIONS[section])
    for name in given:
      if name not in known:
        hint = _nearest(str(name), [*known, *places])
        raise ValueError(
            f'{path}: unknown setting {validation.shown(name)} in {section}' + (
                f'; did you mean {places[hint]}?' if hint else '.'))
    values[section] = {
        name: validation.checked(f'{path}: {section}.{name}', known[name], value)
        for name, value in given.items()}
  return values


def _read(path: str) -> Any:
  """Returns what a JSON or YAML file holds; raises ValueError in one line."""
  try:
    with open(os.path.expanduser(path), encoding='utf-8-sig') as f:
      if path.endswith('.json'):
        return json.load(f, object_pairs_hook=_once_each)
      return yaml.load(f, _Loader)
  except OSError as e:
    problem = (e.strerror or str(e)).lower()
  except RecursionError:
    problem = 'it is nested too deeply'
  except UnicodeDecodeError:
    problem = 'it is not UTF-8 text'
  except yaml.MarkedYAMLError as e:
    line = f'line {e.problem_mark.line + 1}: ' if e.problem_mark else ''
    problem = f'{line}{e.problem}'
  except (ValueError, yaml.YAMLError) as e:
    problem = ' '.join(str(e).split())
  except (LookupError, AttributeError, TypeError, OverflowError):
    problem = 'a value does not fit its tag'  # Such as `!!bool maybe`.
  raise ValueError(f'{path} cannot be read: {problem}.')


def _once_each(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
  pairs = list(pairs)
  for name, count in collections.Counter(name for name, _ in pairs).items():
    if count > 1:
      raise ValueError(f'{validation.shown(name)} stands in it twice')
  return dict(pairs)


class _Loader(yaml.SafeLoader):
  """Reads values as JSON has them: 1e-4 is a number, and `no` is a text."""
  yaml_implicit_resolvers: dict[str, Any] = {}

  def construct_mapping(self, node: yaml.MappingNode,
                        deep: bool = False) -> dict[Any, Any]:
    mapping = super().construct_mapping(node, deep)
    _once_each((key.value, None) for key, _ in node.value)
    return mapping


for _tag, _pattern, _first in (
    ('null', r'null|~|', ['n', '~', '']),
    ('bool', r'true|false', ['t', 'f']),
    ('int', r'-?(0|[1-9]\d*)', [*'-0123456789']),
    ('float', r'-?(0|[1-9]\d*)(\.\d*)?([eE][-+]?\d+)?|-?\.inf|\.nan',
     [*'-.0123456789']),
):
  _Loader.add_implicit_resolver(
      f'tag:yaml.org,2002:{_tag}', re.compile(f'(?:{_pattern})$'), _first)


def save(settings: Settings) -> None:
  """Writes `config.json`, with what the settings were used on.

  That is the versions of libraries, the commit and whether it had been changed
  (null outside a git checkout), the processor and the number of cores.
  """
  content = dataclasses.asdict(settings)
  content['versions'] = {'python': sys.version.split()[0]} | {
      package: importlib.metadata.version(package) for package in _PACKAGES}
  content['commit'], content['dirty'] = _commit()
  content['processor'] = _processor()
  content['cores'] = machine.cores()
  path = os.path.join(settings.run.run_dir, CONFIG_FILE)
  with open(f'{path}.new', 'w') as f:
    json.dump(content, f, indent=2)
    f.write('\n')
  os.replace(f'{path}.new', path)


def _commit() -> tuple[Optional[str], Optional[bool]]:
  """Returns the commit of this code, and whether tracked files differ from it."""
  def git(*args: str) -> list[str]:
    return subprocess.run(
        ['git', '--no-optional-locks', '-C', _CHECKOUT, *args], check=True,
        timeout=10, capture_output=True, text=True).stdout.splitlines()
  try:
    root, commit = git('rev-parse', '--show-toplevel', 'HEAD')
    if os.path.realpath(root) != _CHECKOUT:
      return None, None  # Installed into somebody else's checkout.
    return commit, bool(git('status', '--porcelain', '--untracked-files=no'))
  except (OSError, ValueError, subprocess.SubprocessError):
    return None, None


def _processor() -> Optional[str]:
  try:
    with open('/proc/cpuinfo') as f:
      found = re.search(r'^model name\s*:\s*(.*)', f.read(), re.MULTILINE)
  except OSError:
    return None
  return found and found[1]


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
  """Makes errors that a person can mend one line, and an exit with code 2."""
  try:
    yield
  except (ValueError, OSError) as e:
    fail(str(e))


def fail(message: str) -> NoReturn:
  """Prints one line and exits with code 2."""
  program = os.path.splitext(os.path.basename(sys.argv[0]))[0]
  message = ' '.join(message.splitlines())
  print(f'{program}: error: {message}', file=sys.stderr)
  sys.exit(2)
