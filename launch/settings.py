"""Makes configs from flags and files, and saves and loads `config.json`.

Settings come in layers, and later ones override earlier ones: the configs'
defaults, or the resumed run's settings; a preset; a `--config` file; flags.
"""

import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import typing
from typing import Annotated, Any, Literal, Mapping, Optional, Sequence

from pydantic import Field

from agents import games
from agents import validation
from agents.impala_ppo import config as agent_config
from launch import errors
from launch import files
from launch import flags
from launch import presets
from programs import config as run_config
from programs.runtime import doors
from programs.runtime import machine
from programs.runtime import records

CONFIG_FILE = records.CONFIG_FILE
# The folder of a run with its nodes' output.
LOGS = 'logs'
_PACKAGES = ('dm-acme', 'dm-launchpad', 'dm-reverb', 'tensorflow', 'dm-sonnet',
             'trfl', 'gymnasium', 'ale-py', 'numpy')
# Recorded in a `config.json` beside the settings.
_RECORDED = ('versions', 'commit', 'dirty', 'processor', 'cores')
# Holds run directories, each with only the policy's weights and a model card.
_PRETRAINED = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'pretrained')
_CHECKOUT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
# The values that a layer gives, by section and name.
Values = Mapping[str, Mapping[str, Any]]
# What older runs did before there was a setting for it.
_BEFORE_SETTINGS: Values = {'agent': {'value_loss': 'squared'}}


@dataclasses.dataclass
class Settings:
  """Every setting of a run.

  Attributes:
    environment: which game.
    agent: the algorithm.
    run: processes, budget and files.
  """
  environment: games.EnvironmentConfig
  agent: agent_config.ImpalaPPOConfig
  run: run_config.RunConfig


SECTIONS: dict[str, type] = typing.get_type_hints(Settings)


@dataclasses.dataclass
class TrainCommand:
  """What to do with the settings.

  Attributes:
    config: a YAML or JSON file of settings, in the sections of a run's
      config.json; flags override it. In a run's own config.json, the run_dir is
      ignored.
    preset: a set of settings for one purpose; --config and flags override it.
    list_presets: print the presets, with the measurements and settings of each, and
      exit.
    plain: print a line every few seconds, even on a terminal.
    quiet: print only warnings and errors.
    resume: continue from the newest checkpoint in --run_dir, with its settings;
      --preset, --config and flags override them.
    lp_launch_type: how nodes run: as processes on this machine, as threads, or as
      processes on the hosts of a Ray cluster.
    retries: how often to resume a failed run from its newest checkpoint.
    ray_address: the address of the Ray cluster, such as auto for the one that this
      machine is in; none starts Ray on this machine, for this run alone.
    ray_timeout: seconds to wait for room in the cluster, before anything starts.
    min_actors: actors that the cluster must have room for; the others come and
      go with its hosts. By default all of num_actors.
  """
  config: Optional[str] = None
  preset: Optional[presets.PresetName] = None
  list_presets: bool = False
  plain: bool = False
  quiet: bool = False
  resume: bool = False
  lp_launch_type: Literal['local_mp', 'local_mt', 'ray'] = 'local_mp'
  retries: Annotated[int, Field(ge=0, le=1_000_000)] = 0
  ray_address: Optional[str] = None
  ray_timeout: Annotated[float, Field(ge=0, le=31_536_000)] = 60.
  min_actors: Optional[Annotated[int, Field(ge=1, le=10**6)]] = None

  def __post_init__(self):
    validation.check(self)
    if self.lp_launch_type != 'ray':
      for name in ('ray_address', 'min_actors'):
        if getattr(self, name) is not None:
          raise ValueError(f'{name} is for a Ray cluster; give --lp_launch_type ray '
                           'too.')

  @property
  def on_cluster(self) -> bool:
    """Whether nodes may run on other machines."""
    return self.ray_address is not None


FLAGS = flags.Flags(
    'python -m launch.train', 'Trains the agent.',
    {'command': TrainCommand, **SECTIONS}, derived={'run_dir': 'runs/<game>'},
    common=(
        'config', 'preset', 'list_presets', 'resume', 'plain', 'game',
        'frame_size', 'loss', 'learning_rate', 'batch_size', 'samples_per_insert',
        'discount', 'max_abs_reward',
        'conv_channels', 'latent_size', 'run_dir', 'seed', 'num_actors',
        'envs_per_actor', 'num_gpus', 'max_timesteps', 'target_return'))


def parse_train(argv: Sequence[str]) -> tuple[TrainCommand, Settings]:
  """Reads the flags of the training command, and the files that they name.

  Args:
    argv: the flags; `--help` prints the help and exits.

  Returns:
    The command, and the settings.

  Raises:
    ValueError: for a bad flag or file; the message is one line.
  """
  given = FLAGS.parse(argv)
  command = TrainCommand(**given.pop('command'))
  layers: list[Values] = [given]
  if command.list_presets:
    print(presets.listed())
    sys.exit(0)
  if command.config is not None:
    layers.insert(0, read_config(command.config))
  if command.preset is not None:
    layers.insert(0, presets.PRESETS[command.preset].values)
  if command.resume:
    run_dir = _run_dir(_merged(layers))
    # It may have been moved since its settings were written.
    layers = [dataclasses.asdict(load(run_dir)), *layers,
              {'run': {'run_dir': run_dir}}]
  if command.on_cluster:
    if not any('num_actors' in layer.get('run', {}) for layer in layers):
      raise ValueError("--num_actors is missing: give how many of the cluster's "
                       'CPUs are to act.')
    layers.insert(0, {'run': {'listen': doors.CLUSTER}})
  settings = from_layers(layers)
  _check_fit(command, settings.run)
  return command, settings


def _check_fit(command: TrainCommand, run: run_config.RunConfig) -> None:
  """Raises ValueError (one line) for settings that do not fit the command."""
  if not command.on_cluster:
    if run.listen == doors.CLUSTER:
      raise ValueError(f"listen '{doors.CLUSTER}' is for --ray_address; give "
                       f"'{doors.LOOPBACK}', '{doors.ALL}' or an IP address of this "
                       'machine.')
  elif run.listen not in (doors.CLUSTER, doors.ALL):
    raise ValueError(
        f"listen '{run.listen}' is for one machine; with --ray_address, let it be "
        f"'{doors.CLUSTER}', the default there, or '{doors.ALL}'.")
  elif run.isolate:
    raise ValueError('isolate keeps a run on one machine, which --ray_address does '
                     'not; leave out one of them, or give --no_isolate.')
  least = command.min_actors
  if least is not None and not run.num_replay_shards <= least <= run.num_actors:
    raise ValueError(
        f'min_actors ({least}) must be from num_replay_shards '
        f'({run.num_replay_shards}) to num_actors ({run.num_actors}).')


def from_train_flags(argv: Sequence[str]) -> Settings:
  """Returns the training command's settings; exits on a bad flag."""
  with errors.in_one_line():
    return parse_train(argv)[1]


def from_layers(layers: Sequence[Values]) -> Settings:
  """Makes settings from the values that each layer gives.

  Args:
    layers: the values of each layer; later ones override earlier ones.

  Returns:
    The settings, with defaults where no layer gives a value.

  Raises:
    ValueError: for a bad value; the message is one line.
  """
  values = _merged(layers)
  environment = games.EnvironmentConfig(**values['environment'])
  agent = agent_config.ImpalaPPOConfig(
      **{**values['agent'], 'frame_stack': environment.frame_stack})
  run = run_config.RunConfig(**{**values['run'], 'run_dir': _run_dir(values)})
  _check_room(agent, run)
  return Settings(environment, agent, run)


def _check_room(agent: agent_config.ImpalaPPOConfig,
                run: run_config.RunConfig) -> None:
  """Raises ValueError (one line) if the replay would deadlock actors and learner.

  With fifo, only as many items as the replay holds are let in before any is
  sampled, and a batch gets its online part first.
  """
  room = math.ceil(agent.online_batch_size / run.envs_per_actor) + 1
  if (agent.replay_sampler == 'fifo' and agent.uses_replay and
      agent.replay_capacity < room):
    raise ValueError(
        f'replay_sampler fifo needs a replay_capacity of at least {room} here, one '
        'item more than the online part of a batch takes, not '
        f'{agent.replay_capacity}.')


def _merged(layers: Sequence[Values]) -> dict[str, dict[str, Any]]:
  values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
  for layer in layers:
    for section in layer:
      values[section].update(layer[section])
  return values


def _run_dir(values: Values) -> str:
  """Returns a run's directory, as a path valid wherever its processes start."""
  game = values['environment'].get('game', games.EnvironmentConfig.game)
  given = values['run'].get('run_dir', os.path.join(
      'runs', re.sub(r'\W+', '_', str(game)).lower()))
  run_dir = validation.checked(
      'run_dir', validation.fields(run_config.RunConfig)['run_dir'], given)
  path = os.path.abspath(os.path.expanduser(run_dir))
  if '[' in path or '\\' in path:
    raise ValueError(f'run_dir must have no [ and no \\ in its path, or TensorFlow '
                     f'could not read its checkpoints; it is {path}.')
  return path


def read_config(path: str) -> dict[str, dict[str, Any]]:
  """Reads a file of settings, such as a run's `config.json`.

  Args:
    path: the path of a YAML file, or of a JSON file that ends with `.json`. Its
      sections are those of `Settings`; sections and settings may be left out.
      Whatever else a run's `config.json` records is ignored, and so is its
      run_dir: a new run must not go into the old one's directory.

  Returns:
    The values in the file, by section and name, each checked by itself.

  Raises:
    ValueError: if it is not a file of settings; the message is one line.
  """
  content = files.read(path)
  values = _checked_sections(path, content)
  if any(name in content for name in _RECORDED):
    values.get('run', {}).pop('run_dir', None)
  return values


def can_resume(run_dir: str) -> bool:
  """Tells whether a directory has a checkpoint, whole or not, without TensorFlow.

  Those that a resumption could not read, and has renamed, do not count.
  """
  return any(pathlib.Path(run_dir).glob('checkpoints/ckpt-*.index'))


def pretrained(name: str) -> str:
  """Returns the run directory of a policy that comes with the package.

  Args:
    name: the policy's name, such as 'pong'.

  Raises:
    ValueError: if there is none of that name; the message is one line.
  """
  names = sorted(os.listdir(_PRETRAINED)) if os.path.isdir(_PRETRAINED) else []
  if name not in names:
    raise ValueError(f'there is no pretrained {name!r}; there are '
                     f'{", ".join(names)}.')
  return os.path.join(_PRETRAINED, name)


def load(run_dir: str) -> Settings:
  """Reads the settings of a run.

  Args:
    run_dir: the run's directory.

  Returns:
    The settings as they were saved.

  Raises:
    ValueError: if it holds no run; the message is one line.
  """
  path = os.path.join(run_dir, CONFIG_FILE)
  if not os.path.exists(path):
    raise ValueError(f'{run_dir} holds no run: it has no {CONFIG_FILE}.')
  values = _checked_sections(path, files.read(path))
  configs = {}
  for section, config_class in SECTIONS.items():
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
  """Checks and returns a file's sections; raises ValueError (one line)."""
  if not isinstance(content, dict):
    raise ValueError(f'{path} must have the sections {", ".join(SECTIONS)}, '
                     f'not {validation.shown(content)}.')
  places = {name: f'{section}.{name}'
            for section, config_class in SECTIONS.items()
            for name in validation.fields(config_class)}
  values: dict[str, dict[str, Any]] = {}
  for section, given in content.items():
    if section in _RECORDED:
      continue
    if section not in SECTIONS:
      hint = errors.nearest(str(section), [*SECTIONS, *places])
      raise ValueError(
          f'{path}: unknown section {validation.shown(section)}; ' + (
              f'did you mean {places.get(hint, hint)}?' if hint else
              f'there are {", ".join(SECTIONS)}.'))
    if not isinstance(given, dict):
      raise ValueError(f'{path}: {section} must be settings by name, not '
                       f'{validation.shown(given)}.')
    known = validation.fields(SECTIONS[section])
    for name in given:
      if name not in known:
        hint = errors.nearest(str(name), [*known, *places])
        raise ValueError(
            f'{path}: unknown setting {validation.shown(name)} in {section}' + (
                f'; did you mean {places[hint]}?' if hint else '.'))
    values[section] = {
        name: validation.checked(f'{path}: {section}.{name}', known[name], value)
        for name, value in given.items()}
  return {section: {**unsaid(content, section), **given}
          for section, given in values.items()}


def unsaid(content: Mapping[str, Any], section: str) -> Mapping[str, Any]:
  """Returns the values of settings that did not exist yet when a run was saved.

  Args:
    content: the content of a file of settings.
    section: a section of `Settings`.

  Returns:
    Values by name; none if the file was not saved by a run.
  """
  return _BEFORE_SETTINGS.get(section, {}) if 'versions' in content else {}


def save(settings: Settings) -> None:
  """Writes `config.json`, with the settings and the result of `used_on`.

  All commands read it. The run's directory is created if necessary.
  """
  os.makedirs(settings.run.run_dir, exist_ok=True)
  content = {**dataclasses.asdict(settings), **used_on()}
  path = os.path.join(settings.run.run_dir, CONFIG_FILE)
  with open(f'{path}.new', 'w') as f:
    json.dump(content, f, indent=2)
    f.write('\n')
  os.replace(f'{path}.new', path)


def used_on() -> dict[str, Any]:
  """Returns the software and hardware that runs use here.

  These are the versions of libraries, the commit and whether it had been changed
  (None outside a git checkout), the processor and the number of cores.
  """
  commit, dirty = _commit()
  return {
      'versions': {'python': sys.version.split()[0]} | {
          package: importlib.metadata.version(package) for package in _PACKAGES},
      'commit': commit, 'dirty': dirty, 'processor': _processor(),
      'cores': machine.cores()}


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
