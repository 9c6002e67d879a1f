"""Vector environments: Atari through ale-py, everything else through Gymnasium.

Both are presented as one `dm_env`-like environment whose `TimeStep` fields
carry a leading axis of environments.
"""

import dataclasses
import difflib
import importlib
import itertools
import json
import math
import re
from typing import Annotated, Any, Literal, Optional, Protocol, Sequence
import warnings

from acme import specs
import ale_py
from ale_py import roms
from ale_py import vector_env
import dm_env
import gymnasium
import numpy as np
from pydantic import Field

from agents import validation

ATARI_FRAME_STACK = 4
# Arguments of ale-py's that this project's own parts rely on.
_NOT_GIVEN = frozenset({'num_envs', 'batch_size', 'stack_num', 'autoreset_mode'})

_FIRST = int(dm_env.StepType.FIRST)
_MID = int(dm_env.StepType.MID)
_LAST = int(dm_env.StepType.LAST)
# How often an episode is begun again whose first observation is bad.
_MAX_RESETS = 10

OnBadNumber = Literal['stop', 'skip']


class BadNumberError(Exception):
  """An environment gave a number that is not finite; says which, in one line."""


def is_experience(next_timestep: dm_env.TimeStep) -> np.ndarray:
  """Tells steps of the game [E] bool from resets, by what they led to."""
  return next_timestep.step_type != _FIRST


def _is_finite(array: np.ndarray) -> bool:
  """Tells whether all numbers are finite; squares that overflow count as not.

  One call and no temporary: half the time of `np.isfinite` and `all`.
  """
  flat = array.reshape(-1)
  return math.isfinite(flat.dot(flat))


def bad_copies(timestep: dm_env.TimeStep) -> np.ndarray:
  """Tells which environments [E] bool gave a number that is not finite."""
  axes = tuple(range(1, timestep.observation.ndim))
  return ~(np.isfinite(timestep.reward) &
           np.isfinite(timestep.observation).all(axis=axes))


def describe_bad_number(timestep: dm_env.TimeStep, copy: int) -> str:
  """Says which number of an environment is not finite: 'reward is nan'."""
  if not np.isfinite(timestep.reward[copy]):
    return f'reward is {timestep.reward[copy]}'
  observation = timestep.observation[copy]
  index = tuple(np.argwhere(~np.isfinite(observation))[0])
  return (f'observation[{", ".join(map(str, index))}] is {observation[index]}')


class Playable(Protocol):
  """E environments that are reset and stepped as one, as `VectorEnvironment` is."""
  num_envs: int

  def reset(self) -> dm_env.TimeStep:
    ...

  def step(self, action: np.ndarray) -> dm_env.TimeStep:
    ...

  def close(self) -> None:
    ...


class VectorEnvironment(dm_env.Environment):
  """A next-step autoreset Gymnasium vector environment as batched time steps.

  With E environments, a `TimeStep` has `step_type` [E] int32, `reward` [E]
  float32 (raw), `discount` [E] float32 and `observation` [E, ...]. Specs
  describe a single environment.

  An environment whose step is LAST ignores its next action and answers with
  the FIRST step of a new episode, reward and discount 0: that transition is
  no experience. The discount of a LAST step is 0 where the episode terminated
  and 1 where it was truncated.

  Rewards and observations are finite. An environment that gives another number
  is an error, or has its episode cut there: the step is not shown, and a FIRST
  step of a new episode follows in its place. What was before it bootstraps
  from its last observation, as if it had been truncated.
  """

  def __init__(self, env: gymnasium.vector.VectorEnv, seed: int,
               frames_first: bool, game: str = 'the environment',
               on_bad_number: OnBadNumber = 'stop'):
    """Wraps a vector environment.

    Args:
      env: a vector environment with discrete actions.
      seed: seeds every environment with a seed of its own.
      frames_first: whether observations are [frames, height, width], to be
        presented as [height, width, frames]; or channels in place of frames.
      game: names it in errors.
      on_bad_number: what to do about a reward or an observation that is not
        finite: 'stop' raises an error, 'skip' cuts the episode.
    """
    self._env = env
    self.frames_first = frames_first
    self._game = game
    self._on_bad_number = on_bad_number
    self.num_envs = env.num_envs
    # 31 bits, because ale-py keeps seeds in a C int.
    self._seeds = (np.random.SeedSequence(seed).generate_state(env.num_envs)
                   & 0x7fffffff).astype(np.int64)
    self._step_type = np.full(env.num_envs, _LAST, np.int32)
    # The step, of all, with which each environment's episode began.
    self._num_steps = 0
    self._began = np.zeros(env.num_envs, np.int64)
    space = env.single_observation_space
    self._dtype = np.uint8 if space.dtype == np.uint8 else np.float32
    action_space = env.single_action_space
    assert isinstance(action_space, gymnasium.spaces.Discrete)
    self._first_action = int(action_space.start)
    self._num_actions = int(action_space.n)

  def reset(self) -> dm_env.TimeStep:
    """Begins an episode in every environment.

    Raises:
      BadNumberError: for an observation that is not finite.
    """
    seeds: Any = self._seeds
    if not isinstance(self._env, vector_env.AtariVectorEnv):
      seeds = seeds.tolist()
    observation, _ = self._env.reset(seed=seeds)
    # Another reset starts other episodes.
    self._seeds = (self._seeds + self.num_envs) & 0x7fffffff
    self._began[:] = self._num_steps
    zeros = np.zeros(self.num_envs, np.float32)
    return self._checked(dm_env.TimeStep(
        np.full(self.num_envs, _FIRST, np.int32), zeros, zeros,
        self._observation(observation)))

  def step(self, action: np.ndarray) -> dm_env.TimeStep:
    """Steps every environment.

    Args:
      action: [E] int32.

    Returns:
      The batched time step.

    Raises:
      ValueError: for actions of another shape, or that there are not; ale-py
        would wait for ever.
      BadNumberError: for a reward or an observation that is not finite.
    """
    action = np.asarray(action)
    if (action.shape != (self.num_envs,) or action.dtype.kind not in 'iu' or
        action.min() < 0 or action.max() >= self._num_actions):
      raise ValueError(f'actions must be [{self.num_envs}] integers from 0 to '
                       f'{self._num_actions - 1}, not {validation.shown(action)}.')
    was_last = self._step_type == _LAST
    observation, reward, terminated, truncated, _ = self._env.step(
        action + self._first_action)
    self._num_steps += 1
    self._began[was_last] = self._num_steps
    return self._checked(dm_env.TimeStep(
        step_type=np.where(
            was_last, _FIRST,
            np.where(terminated | truncated, _LAST, _MID)).astype(np.int32),
        reward=np.where(was_last, 0, reward).astype(np.float32),
        discount=np.where(was_last | terminated, 0, 1).astype(np.float32),
        observation=self._observation(observation)))

  def _checked(self, timestep: dm_env.TimeStep) -> dm_env.TimeStep:
    """Returns a time step of finite numbers, and remembers its step type."""
    if not _is_finite(timestep.reward) or (
        self._dtype != np.uint8 and not _is_finite(timestep.observation)):
      timestep = self._without_bad_numbers(timestep)
    self._step_type = timestep.step_type
    return timestep

  def _without_bad_numbers(self, timestep: dm_env.TimeStep) -> dm_env.TimeStep:
    for resets in itertools.count():
      is_bad = bad_copies(timestep)
      if not is_bad.any():
        break
      copy = int(np.argmax(is_bad))
      where = (f'{self._game}, copy {copy}, step '
               f'{self._num_steps - self._began[copy]} of its episode: '
               f'{describe_bad_number(timestep, copy)}')
      if self._on_bad_number == 'stop':
        raise BadNumberError(f'{where}; mend the environment, or train without '
                             'such episodes by --on_bad_number skip.')
      if resets == _MAX_RESETS:
        raise BadNumberError(f'{where}, even after {resets} resets; mend the '
                             'environment.')
      timestep = self._cut(timestep, is_bad)
    return timestep

  def _cut(self, timestep: dm_env.TimeStep,
           is_cut: np.ndarray) -> dm_env.TimeStep:
    """Begins new episodes in some of the environments, [E] bool."""
    observation, _ = self._env.reset(options={'reset_mask': is_cut})
    observation = self._observation(observation)
    self._began[is_cut] = self._num_steps
    is_element_cut = is_cut.reshape(-1, *[1] * (observation.ndim - 1))
    return dm_env.TimeStep(
        step_type=np.where(is_cut, np.int32(_FIRST), timestep.step_type),
        reward=np.where(is_cut, np.float32(0), timestep.reward),
        discount=np.where(is_cut, np.float32(0), timestep.discount),
        observation=np.where(is_element_cut, observation, timestep.observation))

  def _observation(self, observation: np.ndarray) -> np.ndarray:
    if self.frames_first:
      observation = observation.transpose(0, 2, 3, 1)
    return observation.astype(self._dtype, copy=False)

  def observation_spec(self) -> specs.Array:
    shape = self._env.single_observation_space.shape
    assert shape is not None
    if self.frames_first:
      shape = shape[1:] + shape[:1]
    return specs.Array(shape, self._dtype, name='observation')

  def action_spec(self) -> specs.DiscreteArray:
    return specs.DiscreteArray(self._num_actions, dtype=np.int32, name='action')

  def reward_spec(self) -> specs.Array:
    return specs.Array((), np.float32, name='reward')

  def discount_spec(self) -> specs.BoundedArray:
    return specs.BoundedArray((), np.float32, 0., 1., name='discount')

  def close(self):
    self._env.close()


class SingleEnvironment(dm_env.Environment):
  """A vector environment of one as a plain dm_env environment."""

  def __init__(self, environment: VectorEnvironment):
    if environment.num_envs != 1:
      raise ValueError(f'one environment is needed, not {environment.num_envs}.')
    self._environment = environment
    self._is_last = False

  def reset(self) -> dm_env.TimeStep:
    # After an episode's end, the next step of a vector environment resets it.
    timestep = self._first_of(
        self._environment.step(np.zeros(1, np.int32)) if self._is_last
        else self._environment.reset())
    return dm_env.restart(timestep.observation)

  def step(self, action: int) -> dm_env.TimeStep:
    if self._is_last:
      return self.reset()
    return self._first_of(self._environment.step(np.array([action], np.int32)))

  def _first_of(self, timestep: dm_env.TimeStep) -> dm_env.TimeStep:
    timestep = dm_env.TimeStep(*(field[0] for field in timestep))
    self._is_last = bool(timestep.last())
    return timestep

  def observation_spec(self) -> specs.Array:
    return self._environment.observation_spec()

  def action_spec(self) -> specs.DiscreteArray:
    return self._environment.action_spec()

  def reward_spec(self) -> specs.Array:
    return self._environment.reward_spec()

  def discount_spec(self) -> specs.BoundedArray:
    return self._environment.discount_spec()

  def close(self):
    self._environment.close()


def atari_rom(game: str) -> Optional[str]:
  """Returns the ROM of an ALE game name or Gymnasium id, or None.

  'pong', 'Pong', 'ALE/Pong-v5' and 'PongNoFrameskip-v4' are all 'pong'.
  """
  registered = gymnasium.registry.get(game)
  if registered and not str(registered.entry_point).startswith('ale_py'):
    return None  # Blackjack-v1 is no Atari game, though blackjack is one.
  name = re.sub(r'(NoFrameskip|Deterministic)?-v[045]$', '',
                re.sub('^ALE/', '', game))
  snake = re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name).lower()
  known = roms.get_all_rom_ids()
  for candidate in (name, snake):
    if candidate in known:
      return candidate
  return None


def _ale_id(rom: str) -> str:
  """Returns the Gymnasium id of an ALE game."""
  return next(name for name in gymnasium.registry
              if name.startswith('ALE/') and atari_rom(name) == rom)


def _arguments(assignments: Sequence[str]) -> dict[str, Any]:
  """Returns what 'name=value' texts assign; raises ValueError in one line."""
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


def _imported(what: str, name: str) -> Any:
  """Returns what 'module:name' stands for; raises ValueError in one line."""
  module, colon, attribute = name.partition(':')
  if not colon:
    raise ValueError(f'{what} must be such as module:function, not '
                     f'{validation.shown(name)}.')
  try:
    return getattr(importlib.import_module(module), attribute)
  except (Exception, SystemExit) as e:  # pylint: disable=broad-except
    raise ValueError(f'{what} {name!r} cannot be imported: '
                     f'{_in_one_line(e)}') from None


@dataclasses.dataclass(frozen=True)
class GymnasiumGame:
  """What Gymnasium makes a game of.

  Attributes:
    spec: of the game.
    arguments: of the game.
    wrappers: functions from environment to environment, the innermost first.
  """
  spec: gymnasium.envs.registration.EnvSpec
  arguments: dict[str, Any]
  wrappers: Sequence[Any]


def gymnasium_game(config: 'EnvironmentConfig') -> GymnasiumGame:
  """Returns what Gymnasium makes a game of; raises ValueError in one line."""
  arguments = _arguments(config.env_arg)
  rom = atari_rom(config.game)
  if rom is None:
    spec = gymnasium_spec(config.game)
  else:
    spec = gymnasium.spec(_ale_id(rom))
    arguments = {'repeat_action_probability': config.repeat_action_probability,
                 **arguments}
  wrappers = ([] if config.env_wrapper is None
              else [_imported('env_wrapper', config.env_wrapper)])
  return GymnasiumGame(spec, arguments, wrappers)


def gymnasium_spec(game: str) -> gymnasium.envs.registration.EnvSpec:
  """Returns the registered spec of a Gymnasium id ('module:id' imports first)."""
  module, _, env_id = game.rpartition(':')
  if module:
    try:
      importlib.import_module(module)
    except (Exception, SystemExit) as e:  # pylint: disable=broad-except
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


def _in_one_line(error: BaseException) -> str:
  return f'{error.__class__.__name__}: {" ".join(str(error).split())}'


class _WithoutInfo(gymnasium.Wrapper):
  """Drops infos, which nobody reads; of several copies, some do not batch."""

  def reset(self, **kwargs: Any) -> Any:
    return self.env.reset(**kwargs)[0], {}

  def step(self, action: Any) -> Any:
    return *self.env.step(action)[:4], {}


def make_environment(
    game: str,
    num_envs: int,
    seed: int,
    *,
    frame_size: int = 84,
    repeat_action_probability: float = 0.0,
    num_threads: int = 1,
    on_bad_number: OnBadNumber = 'stop',
    wrapper: Optional[str] = None,
    arguments: Sequence[str] = (),
) -> VectorEnvironment:
  """Makes `num_envs` copies of a game.

  Atari is a full-game episode of up to 108,000 emulator frames, begun with up
  to 30 no-ops, frame skip 4 with max-pooling, grey, 4 frames stacked, the
  minimal action set and no fire on reset.

  Args:
    game: an ALE game name, or a Gymnasium id with discrete actions.
    num_envs: number of environments.
    seed: seeds them all, each differently.
    frame_size: height and width of an Atari frame, in pixels.
    repeat_action_probability: stickiness of Atari actions.
    num_threads: threads that step Atari environments.
    on_bad_number: see `VectorEnvironment`.
    wrapper: 'module:function', called with each copy of the game as Gymnasium
      makes it; what it returns is played in its place. An Atari game then is a
      plain ALE environment, and all preprocessing is the wrapper's.
    arguments: 'name=value' of the game's, the value in JSON or else a text.

  Returns:
    The vector environment.

  Raises:
    ValueError: for an unknown game or one that cannot be made, a non-discrete
      action space, observations that are neither pixels nor a vector, or a bad
      count.
  """
  for name, value in (('num_envs', num_envs), ('num_threads', num_threads)):
    if value < 1:
      raise ValueError(f'{name} must be a positive integer, not {value}.')
  if frame_size < 16:
    raise ValueError(f'frame_size must be at least 16, not {frame_size}.')
  if not 0 <= repeat_action_probability <= 1:
    raise ValueError('repeat_action_probability must be in [0, 1], not '
                     f'{repeat_action_probability}.')
  rom = atari_rom(game)
  if rom is not None:
    path = roms.get_rom_path(rom)
    if path is None or ale_py.ALEInterface.isSupportedROM(path) is None:
      raise ValueError(f'game {game!r} cannot be made: ALE plays games for one '
                       'player, which this is not.')
  if rom is not None and wrapper is None:
    options = {
        'num_threads': num_threads, 'img_height': frame_size,
        'img_width': frame_size, 'stack_num': ATARI_FRAME_STACK, 'noop_max': 30,
        'repeat_action_probability': repeat_action_probability,
        'reward_clipping': False, 'use_fire_reset': False}
    given = _arguments(arguments)
    for name in sorted(_NOT_GIVEN & given.keys()):
      raise ValueError(f'env_arg {name} cannot be given for Atari, where it is the '
                       "agent's own.")
    try:
      atari = vector_env.AtariVectorEnv(rom, num_envs, **{**options, **given})
    except Exception as e:  # pylint: disable=broad-except
      raise ValueError(
          f'game {game!r} cannot be made: {_in_one_line(e)}') from None
    _check_discrete(game, atari.single_action_space)
    return VectorEnvironment(atari, seed, frames_first=True, game=game,
                             on_bad_number=on_bad_number)

  made = gymnasium_game(EnvironmentConfig(
      game, repeat_action_probability=repeat_action_probability,
      env_wrapper=wrapper, env_arg=tuple(arguments)))
  try:
    env = gymnasium.make_vec(
        made.spec, num_envs, vectorization_mode='sync',
        vector_kwargs={'autoreset_mode': gymnasium.vector.AutoresetMode.NEXT_STEP},
        wrappers=[*made.wrappers, _WithoutInfo], **made.arguments)
  except Exception as e:  # pylint: disable=broad-except
    raise ValueError(
        f'game {game!r} cannot be made: {_in_one_line(e)}') from None
  _check_discrete(game, env.single_action_space)
  space = env.single_observation_space
  if (not isinstance(space, gymnasium.spaces.Box) or
      len(space.shape) not in (1, 3) or 0 in space.shape):
    raise ValueError(
        f'game {game!r} has observations {validation.shown(space)}; this agent '
        'needs a Box of pixels [height, width, channels] or a vector, with '
        'elements.')
  return VectorEnvironment(env, seed, is_channels_first(space.shape), game,
                           on_bad_number)


def _check_discrete(game: str, space: gymnasium.Space) -> None:
  if not isinstance(space, gymnasium.spaces.Discrete):
    raise ValueError(f'game {game!r} has actions {space}; this agent needs a '
                     'Discrete action space.')


def is_channels_first(shape: Sequence[int]) -> bool:
  """Tells [channels, height, width] from the usual order, channels being few."""
  return len(shape) == 3 and shape[0] < min(shape[1:])


@dataclasses.dataclass
class EnvironmentConfig:
  """Which environments to make; a factory that can be sent to a process.

  Attributes:
    game: an ALE game name, or a Gymnasium id with discrete actions.
    frame_size: height and width of an Atari frame, in pixels.
    repeat_action_probability: stickiness of Atari actions.
    on_bad_number: what to do about a reward or an observation that is not
      finite: 'stop' ends the run, saying which it was; 'skip' cuts the episode
      before it, and counts it as one of `bad_numbers` in the progress.
    env_wrapper: a function module:name that is given each copy of the game and
      returns what to play in its place, such as a Gymnasium wrapper; an Atari game
      then is a plain ALE environment, and preprocessing is the function's.
    env_arg: arguments of the game, such as difficulty=1 mode=2, with values in
      JSON or else as texts.
  """
  game: str = 'pong'
  frame_size: Annotated[int, Field(ge=16, le=1024)] = 42
  repeat_action_probability: Annotated[float, Field(ge=0, le=1)] = 0.0
  on_bad_number: OnBadNumber = 'stop'
  env_wrapper: Optional[Annotated[str, Field(min_length=1, max_length=1000)]] = None
  env_arg: tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...] = ()

  def __post_init__(self):
    validation.check(self)

  def make(self, num_envs: int, seed: int) -> VectorEnvironment:
    """Calls `make_environment` with these settings."""
    return make_environment(
        self.game, num_envs, seed, frame_size=self.frame_size,
        repeat_action_probability=self.repeat_action_probability,
        on_bad_number=self.on_bad_number, wrapper=self.env_wrapper,
        arguments=self.env_arg)

  def try_out(self, seed: int) -> specs.EnvironmentSpec:
    """Makes an environment, and takes its first step.

    Args:
      seed: of the environment.

    Returns:
      What it looks like.

    Raises:
      ValueError: where it cannot be made or played, in one line.
    """
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Actors will show them.
      environment = self.make(1, seed)
      try:
        environment.reset()
        environment.step(np.zeros(1, np.int32))
      except Exception as e:  # pylint: disable=broad-except
        raise ValueError(f'game {self.game!r} cannot be played: '
                         f'{_in_one_line(e)}') from None
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
