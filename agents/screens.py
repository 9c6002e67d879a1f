"""An environment as people see it: in colour, and with every frame."""

from typing import Any, Iterator, Optional

import ale_py
import ale_py.env
import gymnasium
import numpy as np

from agents import environments
from agents import games

_ATARI_RATE = 60.
_USUAL_RATE = 30.
_FRAME_SKIP = 4
_MAX_NOOPS = 30
_MAX_FRAMES = 108_000


class Screens(gymnasium.Wrapper):
  """Keeps the frames that an environment shows.

  Attributes:
    rate: frames per second.
    why_not: why the environment shows nothing, in one line, or None.
    action_names: the name of each action.
  """

  def __init__(self, env: gymnasium.Env, rate: float, why_not: Optional[str]):
    """Wraps an environment.

    Args:
      env: its `render` returns [H, W, 3] uint8, unless `why_not` is given.
      rate: frames per second.
      why_not: why it cannot be rendered, or None.
    """
    super().__init__(env)
    self.rate = rate
    self.why_not = why_not
    self.action_names = _action_names(env)
    self._frames: list[Optional[np.ndarray]] = []

  def reset(self, **kwargs: Any) -> Any:
    observation, _ = self.env.reset(**kwargs)
    self._keep()
    return observation, {}

  def step(self, action: Any) -> Any:
    *result, _ = self.env.step(action)
    self._keep()
    return *result, {}

  def take(self) -> list[Optional[np.ndarray]]:
    """Returns the frames [H, W, 3] uint8 since the last call, in order.

    If the environment shows nothing, None stands for each frame.
    """
    frames, self._frames = self._frames, []
    return frames

  def _keep(self) -> None:
    frame: Any = None if self.why_not else self.env.render()
    self._frames.append(None if frame is None else np.asarray(frame, np.uint8))


class AtariScreens(Screens):
  """Atari with its screens; `AtariVectorEnv` gives neither colour nor all frames.

  Observations [4, size, size] uint8 are those of `AtariVectorEnv`, to within one
  grey level.
  """
  def __init__(self, rom: str, frame_size: int, repeat_action_probability: float):
    """Makes an environment.

    Args:
      rom: the game.
      frame_size: height and width of a frame, in pixels.
      repeat_action_probability: stickiness of actions.
    """
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # No banner.
    super().__init__(ale_py.env.AtariEnv(
        rom, obs_type='grayscale', frameskip=1, full_action_space=False,
        repeat_action_probability=repeat_action_probability,
        max_num_frames_per_episode=_MAX_FRAMES, render_mode='rgb_array'),
                     _ATARI_RATE, None)
    shape = self.env.observation_space.shape
    assert shape is not None
    self._rows, self._columns = (_area(size, frame_size) for size in shape)
    self._shape = games.ATARI_FRAME_STACK, frame_size, frame_size
    self.observation_space = gymnasium.spaces.Box(0, 255, self._shape, np.uint8)

  def reset(self, **kwargs: Any) -> Any:
    screen, _ = self.env.reset(**kwargs)
    for _ in range(self.env.unwrapped.np_random.integers(_MAX_NOOPS + 1)):
      screen, _, ended, cut, _ = self.env.step(0)
      if ended or cut:
        screen, _ = self.env.reset()
    self._stack = np.zeros(self._shape, np.uint8)
    self._keep()
    return self._stacked(screen), {}

  def step(self, action: int) -> Any:
    before = screen = np.zeros((), np.uint8)
    total = 0.
    for _ in range(_FRAME_SKIP):
      before = screen
      screen, reward, ended, cut, _ = self.env.step(action)
      self._keep()
      total += float(reward)
      if ended or cut:
        break
    return self._stacked(np.maximum(before, screen)), total, ended, cut, {}

  def _stacked(self, screen: np.ndarray) -> np.ndarray:
    frame = np.rint(self._rows @ screen.astype(float) @ self._columns.T)
    self._stack = np.concatenate([self._stack[1:], frame.astype(np.uint8)[None]])
    return self._stack


def _area(size: int, new_size: int) -> np.ndarray:
  """Returns a matrix [new_size, size] that averages over areas along an axis."""
  edges = np.arange(new_size + 1)[:, None] * size / new_size
  pixels = np.arange(size)
  overlap = np.clip(np.minimum(edges[1:], pixels + 1) -
                    np.maximum(edges[:-1], pixels), 0, None)
  return overlap / overlap.sum(axis=1, keepdims=True)


def _action_names(env: gymnasium.Env) -> list[str]:
  space = env.action_space
  assert isinstance(space, gymnasium.spaces.Discrete)
  meanings = getattr(env.unwrapped, 'get_action_meanings', None)
  # A wrapper may have other actions than those that have these names.
  if meanings is not None and space is env.unwrapped.action_space and not any(
      isinstance(wrapper, gymnasium.ActionWrapper) for wrapper in _wrappers(env)):
    return [str(name).lower() for name in meanings()]
  return [f'action {space.start + i}' for i in range(space.n)]


def _wrappers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
  while isinstance(env, gymnasium.Wrapper):
    yield env
    env = env.env


def action_names(config: games.EnvironmentConfig) -> list[str]:
  """Returns the names of a game's actions, or their numbers."""
  if config.is_preprocessed_atari and config.env_arg:  # It may select others.
    return [f'action {i}' for i in range(config.try_out(0).actions.num_values)]
  environment, screens = make(config, 0)
  environment.close()
  return screens.action_names


def make(config: games.EnvironmentConfig,
         seed: int) -> tuple[environments.VectorEnvironment, Screens]:
  """Makes one environment that also shows its screens.

  Args:
    config: which game.
    seed: seeds the environment.

  Returns:
    The environment, with E = 1, as `config.make` makes it; and its screens.

  Raises:
    ValueError: if it cannot be made, in one line.
  """
  rom = games.atari_rom(config.game)
  if rom is not None and config.is_preprocessed_atari:
    if config.env_arg:
      raise ValueError('the screens of an Atari game that has --env_arg cannot be '
                       'shown.')
    screens: Screens = AtariScreens(rom, config.frame_size,
                                    config.repeat_action_probability)
  else:
    screens = _gymnasium_screens(config)
  vector = gymnasium.vector.SyncVectorEnv(
      [lambda: screens], autoreset_mode=gymnasium.vector.AutoresetMode.NEXT_STEP)
  return environments.VectorEnvironment(
      vector, seed, config.game, config.on_bad_number), screens


def _emulator_frames_a_step(env: gymnasium.Env) -> int:
  """Returns for how many of its frames Atari repeats an action; 0 for other games.

  ale-py declares a rate that assumes two, whatever the arguments and wrappers are.
  """
  ale = getattr(env.unwrapped, 'ale', None)
  if ale is None:
    return 0
  env.reset(seed=0)
  before = ale.getEpisodeFrameNumber()
  env.step(env.action_space.sample())
  return max(ale.getEpisodeFrameNumber() - before, 1)


def _gymnasium_screens(config: games.EnvironmentConfig) -> Screens:
  game = games.gymnasium_game(config)

  def make_env(**kwargs: Any) -> gymnasium.Env:
    env = gymnasium.make(game.spec, **{**game.arguments, **kwargs})
    for wrapper in game.wrappers:
      env = wrapper(env)
    return env

  env = make_env()
  frames = _emulator_frames_a_step(env)
  rate = _ATARI_RATE / frames if frames else float(
      env.metadata.get('render_fps') or _USUAL_RATE)
  if 'rgb_array' not in env.metadata.get('render_modes', ()):
    return Screens(env, rate, f'{config.game} has no render mode rgb_array')
  try:
    rendered = make_env(render_mode='rgb_array')
    rendered.reset(seed=0)
    rendered.render()
  except Exception as e:
    return Screens(env, rate, f'{config.game} cannot be rendered: '
                   f'{" ".join(str(e).split())}')
  env.close()
  return Screens(rendered, rate, None)
