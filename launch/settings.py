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
  Dict,
  Iterable,
  Iterator,
  List,
  Literal,
  Mapping,
  NoReturn,
  Optional,
  Sequence,
  Tuple,
  TypedDict,
)

import tyro
from tyro import constructors
import yaml

from agents import environments
from agents import validation
from agents.impala_ppo import config as agent_config
from programs import config as run_config

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


_SECTIONS: Dict[str, type] = typing.get_type_hints(Settings)


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


def parse_train(argv: Sequence[str]) -> Tuple[TrainCommand, Settings]:
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
  """
  run_dir: str
  episodes: Annotated[int, validation.Range(1, 1_000_000)] = 30
  seed: Annotated[int, validation.Range(0, 2**63 - 1)] = 1

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
  return EvaluateCommand(**flags)


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
  # Processes may start elsewhere.
  run.run_dir = os.path.abspath(run.run_dir)
  return Settings(environment, agent, run)


def _merged(layers: Sequence[Values]) -> Dict[str, Dict[str, Any]]:
  values: Dict[str, Dict[str, Any]] = {section: {} for section in _SECTIONS}
  for layer in layers:
    for section in layer:
      values[section].update(layer[section])
  return values


def _run_dir(values: Values) -> str:
  game = values['environment'].get('game', environments.EnvironmentConfig.game)
  return values['run'].get('run_dir', os.path.join(
      'runs', re.sub(r'\W+', '_', game).lower()))


def parse_flags(
    prog: str, description: str, sections: Mapping[str, type],
    argv: Sequence[str], derived: Mapping[str, str] = types.MappingProxyType({}),
) -> Dict[str, Dict[str, Any]]:
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
  defaults = {**derived, **{
      name: _as_text(value)
      for name, value in validation.defaults(config_class).items()}}
  flags: Dict[str, Any] = {}
  for name, annotation in validation.annotations(config_class).items():
    if name in _NO_FLAG:
      continue
    told = tyro.conf.arg(
        help=' '.join(helps.get(name, '').split()),
        help_behavior_hint=(f'(default: {defaults[name]})' if name in defaults
                            else '(required)'))
    if annotation is bool:
      flags[name] = Annotated[bool, told]  # Two flags: --name and --no_name.
    else:
      flags[name] = Annotated[str, told, constructors.PrimitiveConstructorSpec(
          nargs=1, metavar=validation.placeholder(annotation),
          instance_from_str=functools.partial(_from_text, annotation),
          is_instance=lambda _: True, str_from_instance=lambda text: [text])]
  group = _optional_keys(config_class.__name__, flags)
  group.__doc__ = doc.partition('\n')[0]
  return group


def _optional_keys(name: str, types_of_keys: Dict[str, Any]) -> Any:
  """Returns a type of dict, any key of which may be absent."""
  return TypedDict(name, types_of_keys, total=False)  # type: ignore


def _from_text(annotation: Any, texts: List[str]) -> Any:
  return validation.parsed(annotation, texts[0])


def _as_text(value: Any) -> str:
  if isinstance(value, tuple):
    return ','.join(map(str, value))
  return validation.shown(value) if not isinstance(value, str) else value


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


def read_config(path: str) -> Dict[str, Dict[str, Any]]:
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
    for name in validation.annotations(config_class):
      if name not in {**validation.defaults(config_class), **values[section]}:
        raise ValueError(
            f'{path} is not the config of a run: its {section} has no {name}.')
    try:
      configs[section] = config_class(**values[section])
    except ValueError as e:
      raise ValueError(f'{path}: {e}') from None
  return Settings(**configs)


def _checked_sections(path: str, content: Any) -> Dict[str, Dict[str, Any]]:
  """Returns the sections of a file; raises ValueError in one line."""
  if not isinstance(content, dict):
    raise ValueError(f'{path} must have the sections {", ".join(_SECTIONS)}, '
                     f'not {validation.shown(content)}.')
  places = {name: f'{section}.{name}'
            for section, config_class in _SECTIONS.items()
            for name in validation.annotations(config_class)}
  values: Dict[str, Dict[str, Any]] = {}
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
    known = validation.annotations(_SECTIONS[section])
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
    with open(path, encoding='utf-8-sig') as f:
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


def _once_each(pairs: Iterable[Tuple[str, Any]]) -> Dict[str, Any]:
  pairs = list(pairs)
  for name, count in collections.Counter(name for name, _ in pairs).items():
    if count > 1:
      raise ValueError(f'{validation.shown(name)} stands in it twice')
  return dict(pairs)


class _Loader(yaml.SafeLoader):
  """Reads values as JSON has them: 1e-4 is a number, and `no` is a text."""
  yaml_implicit_resolvers: Dict[str, Any] = {}

  def construct_mapping(self, node: yaml.MappingNode,
                        deep: bool = False) -> Dict[Any, Any]:
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
  content['cores'] = len(os.sched_getaffinity(0))
  path = os.path.join(settings.run.run_dir, CONFIG_FILE)
  with open(f'{path}.new', 'w') as f:
    json.dump(content, f, indent=2)
    f.write('\n')
  os.replace(f'{path}.new', path)


def _commit() -> Tuple[Optional[str], Optional[bool]]:
  """Returns the commit of this code, and whether tracked files differ from it."""
  def git(*args: str) -> List[str]:
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
