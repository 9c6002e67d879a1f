"""Makes environments from the names of ALE games and Gymnasium ids."""

import contextlib
import dataclasses
import difflib
import importlib
import json
import re
from typing import Annotated, Any, Iterator, Optional, Sequence
import warnings

from acme import specs
import ale_py
from ale_py import roms
from ale_py import vector_env
import gymnasium
import numpy as np
from pydantic import Field

from agents import environments
from agents import validation

ATARI_FRAME_STACK = 4
# Arguments of ale-py that --env_arg must not set: other parts rely on them.
_NOT_GIVEN = frozenset({'num_envs', 'batch_size', 'stack_num', 'autoreset_mode'})


@dataclasses.dataclass
class EnvironmentConfig:
  """Which environments to make; a factory that can be sent to a process.

  Attributes:
    game: an ALE game name, or a Gymnasium id with discrete actions.
    frame_size: height and width of an Atari frame, in pixels.
    repeat_action_probability: stickiness of Atari actions.
    on_bad_number: what to do about a reward or an observation that is not
      finite: 'stop' ends the run and says which it was; 'skip' cuts the episode
      before it, and counts it under `bad_numbers` in the progress.
    env_wrapper: a function module:name that takes each copy of the game and
      returns the environment to play instead, such as a Gymnasium wrapper; an Atari
      game is then a plain ALE environment, and the function does the preprocessing.
    env_arg: arguments of the game, such as frameskip=2 full_action_space=true;
      values that are not JSON are taken as text.
  """
  game: str = 'pong'
  frame_size: Annotated[int, Field(ge=16, le=1024)] = 42
  repeat_action_probability: Annotated[float, Field(ge=0, le=1)] = 0.0
  on_bad_number: environments.OnBadNumber = 'stop'
  env_wrapper: Optional[Annotated[str, Field(min_length=1, max_length=1000)]] = None
  env_arg: tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...] = ()

  def __post_init__(self):
    validation.check(self)

  def make(self, num_envs: int, seed: int) -> environments.VectorEnvironment:
    """Makes copies of the game.

    An Atari episode is a full game of up to 108,000 emulator frames that starts
    with up to 30 no-ops. Frame skip is 4 with max-pooling, frames are grey and
    stacked by 4, the action set is minimal, and there is no fire on reset. With
    `env_wrapper`, Atari is as Gymnasium makes it.

    Args:
      num_envs: number of environments.
      seed: seeds all environments, each differently.

    Returns:
      The vector environment.

    Raises:
      ValueError: if the game is unknown or cannot be made, its action space is
        not discrete, its observations are neither pixels nor a vector, or the
        count is bad; in one line.
    """
    if num_envs < 1:
      raise ValueError(f'num_envs must be a positive integer, not {num_envs}.')
    _check_rom(self.game)
    make = _make_atari if self.is_preprocessed_atari else _make_from_gymnasium
    env = make(self, num_envs)
    _check_spaces(self.game, env)
    return environments.VectorEnvironment(env, seed, self.game, self.on_bad_number)

  def try_out(self, seed: int) -> specs.EnvironmentSpec:
    """Makes an environment and takes its first step.

    Whatever the game prints meanwhile is printed.

    Args:
      seed: seeds the environment.

    Returns:
      Its spec.

    Raises:
      ValueError: if it cannot be made or played, in one line.
    """
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Actors will show them.
      environment = self.make(1, seed)
      with _cannot_be('played', self.game):
        environment.reset()
        environment.step(np.zeros(1, np.int32))
    environment.close()
    spec = specs.make_environment_spec(environment)
    if environment.frames_first and self.frame_stack == 1:
      height, width, channels = spec.observations.shape
      print(f'{self.game}: observations of shape {[channels, height, width]} are '
            f'read as {channels} channels of {height}x{width} pixels.', flush=True)
    return spec

  @property
  def frame_stack(self) -> int:
    """How many trailing channels of the game's observations are frames."""
    return ATARI_FRAME_STACK if self.is_preprocessed_atari else 1

  @property
  def is_preprocessed_atari(self) -> bool:
    """Whether it is an Atari game with this project's own preprocessing."""
    return self.env_wrapper is None and atari_rom(self.game) is not None


def atari_rom(game: str) -> Optional[str]:
  """Returns the ROM of an ALE game name or Gymnasium id, or None.

  'pong', 'Pong', 'ALE/Pong-v5' and 'PongNoFrameskip-v4' are all 'pong'.
  """
  game = game.removeprefix('ale_py:')
  registered = gymnasium.registry.get(game)
  if registered and not str(registered.entry_point).startswith('ale_py'):
    return None  # Blackjack-v1 is no Atari game, though blackjack is one.
  name = re.sub(r'(NoFrameskip|Deterministic)?-v[045]$', '',
                re.sub('^ALE/', '', game))
  # No name tells where underscores go: UpNDown is up_n_down, MsPacman ms_pacman.
  by_letters = {rom.replace('_', ''): rom for rom in roms.get_all_rom_ids()}
  return by_letters.get(name.replace('_', '').lower())


def _ale_id(rom: str) -> str:
  """Returns the Gymnasium id of an ALE game."""
  return next(name for name in gymnasium.registry
              if name.startswith('ALE/') and atari_rom(name) == rom)


def _check_rom(game: str) -> None:
  rom = atari_rom(game)
  if rom is not None:
    path = roms.get_rom_path(rom)
    if path is None or ale_py.ALEInterface.isSupportedROM(path) is None:
      raise ValueError(f'game {game!r} cannot be made: ALE plays games for one '
                       'player, which this is not.')


def _make_atari(config: EnvironmentConfig,
                num_envs: int) -> gymnasium.vector.VectorEnv:
  rom = atari_rom(config.game)
  assert rom is not None
  given = _atari_arguments(config.env_arg)
  for name in sorted(_NOT_GIVEN & given.keys()):
    raise ValueError(f'env_arg {name} cannot be given for Atari, where it is the '
                     "agent's own.")
  options = {
      'num_threads': 1, 'img_height': config.frame_size,
      'img_width': config.frame_size, 'stack_num': ATARI_FRAME_STACK,
      'noop_max': 30,
      'repeat_action_probability': config.repeat_action_probability,
      'reward_clipping': False, 'use_fire_reset': False}
  with _cannot_be('made', config.game):
    return vector_env.AtariVectorEnv(rom, num_envs, **{**options, **given})


def _make_from_gymnasium(config: EnvironmentConfig,
                         num_envs: int) -> gymnasium.vector.VectorEnv:
  game = gymnasium_game(config)
  with _cannot_be('made', config.game):
    return gymnasium.make_vec(
        game.spec, num_envs, vectorization_mode='sync',
        vector_kwargs={'autoreset_mode': gymnasium.vector.AutoresetMode.NEXT_STEP},
        wrappers=[*game.wrappers, _WithoutInfo], **game.arguments)


@contextlib.contextmanager
def _cannot_be(done: str, game: str) -> Iterator[None]:
  """Turns exceptions that games raise into ValueErrors of one line."""
  try:
    yield
  except Exception as e:
    raise ValueError(
        f'game {game!r} cannot be {done}: {_in_one_line(e)}') from None


def _check_spaces(game: str, env: gymnasium.vector.VectorEnv) -> None:
  if not isinstance(env.single_action_space, gymnasium.spaces.Discrete):
    raise ValueError(f'game {game!r} has actions {env.single_action_space}; this '
                     'agent needs a Discrete action space.')
  space = env.single_observation_space
  if (not isinstance(space, gymnasium.spaces.Box) or
      len(space.shape) not in (1, 3) or 0 in space.shape):
    raise ValueError(
        f'game {game!r} has observations {validation.shown(space)}; this agent '
        'needs a Box of pixels [height, width, channels] or a vector, with '
        'elements.')


class _WithoutInfo(gymnasium.Wrapper):
  """Drops infos: nothing reads them, and some do not batch over copies."""

  def reset(self, **kwargs: Any) -> Any:
    return self.env.reset(**kwargs)[0], {}

  def step(self, action: Any) -> Any:
    return *self.env.step(action)[:4], {}


@dataclasses.dataclass(frozen=True)
class GymnasiumGame:
  """What Gymnasium needs to make a game.

  Attributes:
    spec: the game's spec.
    arguments: the game's arguments.
    wrappers: functions from environment to environment, the innermost first.
  """
  spec: gymnasium.envs.registration.EnvSpec
  arguments: dict[str, Any]
  wrappers: Sequence[Any]


def gymnasium_game(config: EnvironmentConfig) -> GymnasiumGame:
  """Returns what Gymnasium needs to make a game; raises one-line ValueErrors."""
  rom = atari_rom(config.game)
  if rom is None:
    spec, arguments = gymnasium_spec(config.game), _arguments(config.env_arg)
  else:
    spec = gymnasium.spec(_ale_id(rom))
    arguments = {'repeat_action_probability': config.repeat_action_probability,
                 **_atari_arguments(config.env_arg)}
  wrappers = ([] if config.env_wrapper is None
              else [_imported('env_wrapper', config.env_wrapper)])
  return GymnasiumGame(spec, arguments, wrappers)


def gymnasium_spec(game: str) -> gymnasium.envs.registration.EnvSpec:
  """Returns the registered spec of a Gymnasium id ('module:id' imports first)."""
  module, _, env_id = game.rpartition(':')
  if module:
    try:
      importlib.import_module(module)
    except (Exception, SystemExit) as e:
      raise ValueError(f'game {game!r}: its module {module!r} cannot be imported: '
                       f'{_in_one_line(e)}') from None
  try:
    return gymnasium.spec(env_id)
  except gymnasium.error.Error:
    known = sorted(set(roms.get_all_rom_ids()) | set(gymnasium.registry))
    by_lower = {name.lower(): name for name in known}
    close = [by_lower[name] for name in difflib.get_close_matches(
        game.lower(), by_lower, n=5, cutoff=0.5)]
    hint = f'close matches: {", ".join(close)}' if close else (
        'give an ALE game such as pong, or a Gymnasium id such as CartPole-v1')
    raise ValueError(f'unknown game {game!r}; {hint}.') from None


def _arguments(assignments: Sequence[str]) -> dict[str, Any]:
  """Parses 'name=value' texts into a dict; raises one-line ValueErrors."""
  values: dict[str, Any] = {}
  for assignment in assignments:
    name, equals, text = assignment.partition('=')
    if not equals or not name.isidentifier():
      raise ValueError('env_arg must be such as name=value, not '
                       f'{validation.shown(assignment)}.')
    try:
      values[name] = json.loads(text)
    except ValueError:
      values[name] = text
  return values


def _atari_arguments(assignments: Sequence[str]) -> dict[str, Any]:
  """Parses arguments for Atari; raises one-line ValueErrors."""
  values = _arguments(assignments)
  if 'repeat_action_probability' in values:  # Records tell that of the setting.
    raise ValueError('env_arg repeat_action_probability cannot be given for Atari; '
                     'give --repeat_action_probability.')
  if values.get('life_loss_info'):
    raise ValueError('env_arg life_loss_info ends episodes without a reset, which '
                     'this agent cannot take; give episodic_life=true.')
  return values


def _imported(what: str, name: str) -> Any:
  """Imports an object given as 'module:name'; raises one-line ValueErrors."""
  module, colon, attribute = name.partition(':')
  if not colon:
    raise ValueError(f'{what} must be such as module:function, not '
                     f'{validation.shown(name)}.')
  try:
    return getattr(importlib.import_module(module), attribute)
  except (Exception, SystemExit) as e:
    raise ValueError(f'{what} {name!r} cannot be imported: '
                     f'{_in_one_line(e)}') from None


def _in_one_line(error: BaseException) -> str:
  return f'{error.__class__.__name__}: {" ".join(str(error).split())}'
