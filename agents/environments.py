"""Vector environments: E copies of a game, reset and stepped as one.

They resemble `dm_env` environments, but the fields of a `TimeStep` have a leading
axis of environments.
"""

import itertools
import math
from typing import Any, Literal, Protocol, Sequence

from acme import specs
from ale_py import vector_env
import dm_env
import gymnasium
import numpy as np

from agents import validation

_FIRST = int(dm_env.StepType.FIRST)
_MID = int(dm_env.StepType.MID)
_LAST = int(dm_env.StepType.LAST)
# How often an episode with a bad first observation is restarted.
_MAX_RESETS = 10

OnBadNumber = Literal['stop', 'skip']


class BadNumberError(Exception):
  """An environment gave a number that is not finite; one line says which."""


def is_experience(next_timestep: dm_env.TimeStep) -> np.ndarray:
  """Returns which steps, [E] bool, are not resets, given what they led to."""
  return next_timestep.step_type != _FIRST


def _is_finite(array: np.ndarray) -> bool:
  """Returns whether all numbers are finite; False if their squares overflow.

  One call without a temporary takes half the time of `np.isfinite` and `all`.
  """
  flat = array.reshape(-1)
  return math.isfinite(flat.dot(flat))


def bad_copies(timestep: dm_env.TimeStep) -> np.ndarray:
  """Returns which environments, [E] bool, gave a number that is not finite."""
  axes = tuple(range(1, timestep.observation.ndim))
  return ~(np.isfinite(timestep.reward) &
           np.isfinite(timestep.observation).all(axis=axes))


def describe_bad_number(timestep: dm_env.TimeStep, copy: int) -> str:
  """Returns which number of an environment is not finite: 'reward is nan'."""
  if not np.isfinite(timestep.reward[copy]):
    return f'reward is {timestep.reward[copy]}'
  observation = timestep.observation[copy]
  index = tuple(np.argwhere(~np.isfinite(observation))[0])
  return (f'observation[{", ".join(map(str, index))}] is {observation[index]}')


class Playable(Protocol):
  """E environments that are reset and stepped as one, like `VectorEnvironment`."""
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

  After a LAST step, an environment ignores its next action and returns the
  FIRST step of a new episode, with reward and discount 0: that transition is
  not experience. The discount of a LAST step is 0 if the episode terminated
  and 1 if it was truncated.

  Rewards and observations are finite. If an environment gives another number,
  that is an error, or its episode is cut there: the step is dropped, and the
  FIRST step of a new episode takes its place. The cut episode bootstraps from
  its last observation, as if it had been truncated.

  Attributes:
    num_envs: E.
    frames_first: whether the vector environment's observations are [frames, height,
      width], or channels in place of frames. They are returned as [height, width,
      frames].
  """

  def __init__(self, env: gymnasium.vector.VectorEnv, seed: int,
               game: str = 'the environment',
               on_bad_number: OnBadNumber = 'stop'):
    """Wraps a vector environment.

    Args:
      env: a vector environment with discrete actions.
      seed: seeds all environments, each differently.
      game: its name in errors.
      on_bad_number: what to do about a reward or an observation that is not
        finite: 'stop' raises an error, 'skip' cuts the episode.
    """
    self._env = env
    self._game = game
    self._on_bad_number = on_bad_number
    self.num_envs = env.num_envs
    # 31 bits, because ale-py keeps seeds in a C int.
    self._seeds = (np.random.SeedSequence(seed).generate_state(env.num_envs)
                   & 0x7fffffff).astype(np.int64)
    self._step_type = np.full(env.num_envs, _LAST, np.int32)
    # The step, counted over all episodes, at which each current episode began.
    self._num_steps = 0
    self._began = np.zeros(env.num_envs, np.int64)
    space = env.single_observation_space
    self.frames_first = _is_channels_first(space.shape or ())
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
    # The next reset starts different episodes.
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
      ValueError: for actions of the wrong shape or outside the action space;
        ale-py would wait forever.
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
    """Returns the step without bad numbers, and remembers its step type."""
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
    """Begins new episodes in the environments where `is_cut`, [E] bool, is true."""
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
  """Presents a vector environment of size 1 as a plain dm_env environment."""

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


def _is_channels_first(shape: Sequence[int]) -> bool:
  """Returns whether a shape is [channels, height, width].

  The usual order has channels last. Channels are assumed to be few.
  """
  return len(shape) == 3 and shape[0] < min(shape[1:])
