"""Environments that show their screens, against those that agents train in."""

from ale_py import vector_env
import gymnasium
import numpy as np
import pytest

from agents import games
from agents import screens


class Painted(gymnasium.Env):
  """Shows how many steps it has had, as a shade of blue; six are an episode."""

  metadata = {'render_modes': ['rgb_array'], 'render_fps': 20}
  observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
  action_space = gymnasium.spaces.Discrete(2)

  def __init__(self, render_mode=None):
    self.render_mode = render_mode

  def get_action_meanings(self):
    return ['Stay', 'GO']

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._steps = 0
    return np.zeros(3, np.float32), {}

  def step(self, action):
    self._steps += 1
    return (np.full(3, self._steps / 10, np.float32), 1., self._steps == 6, False,
            {})

  def render(self):
    return np.full((5, 7, 3), (0, 0, 10 * self._steps), np.uint8)


gymnasium.register('Painted-v0', entry_point=Painted)
PAINTED = games.EnvironmentConfig('tests.unit.test_screens:Painted-v0')


@pytest.mark.parametrize('rom, size', [
    ('pong', 42), ('breakout', 84), ('space_invaders', 105)])
def test_atari_is_what_agents_train_on_to_one_grey_level(rom, size, monkeypatch):
  monkeypatch.setattr(screens, '_MAX_NOOPS', 0)
  trained = vector_env.AtariVectorEnv(
      rom, 1, num_threads=1, img_height=size, img_width=size, stack_num=4,
      noop_max=0, reward_clipping=False, use_fire_reset=False)
  shown = screens.AtariScreens(rom, size, 0.)
  expected, _ = trained.reset(seed=np.array([3]))
  observation, _ = shown.reset(seed=3)
  assert len(shown.take()) == 1
  rng = np.random.default_rng(0)
  rewards = 0.
  for _ in range(150):
    assert observation.shape == expected[0].shape == (4, size, size)
    assert np.abs(observation.astype(int) - expected[0]).max() <= 1
    action = rng.integers(shown.action_space.n)
    expected, reward, ended, _, _ = trained.step(action[None])
    observation, total, is_over, _, _ = shown.step(action)
    assert (total, is_over) == (reward[0], ended[0])
    rewards += total
    frames = shown.take()
    assert is_over or [frame.shape for frame in frames] == 4 * [(210, 160, 3)]
    if is_over:
      break
  assert len({len(names) for names in (shown.action_names,
                                       range(shown.action_space.n))}) == 1


def test_atari_begins_with_any_number_of_noops_and_repeats_by_its_seed():
  config = games.EnvironmentConfig('pong', repeat_action_probability=0.5)

  def play(seed):
    environment, _ = screens.make(config, seed)
    steps = [environment.reset()]
    steps += [environment.step(np.array([i % 6])) for i in range(60)]
    assert all(not step.observation[..., :3].any() for step in steps[:1])
    return np.stack([step.observation for step in steps])

  first, again, other = play(1), play(1), play(2)
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()


def test_any_environment_shows_what_it_renders():
  environment, shown = screens.make(PAINTED, 0)
  assert shown.why_not is None and shown.rate == 20.
  assert shown.action_names == ['stay', 'go']
  environment.reset()
  for _ in range(7):  # The last one is a reset.
    environment.step(np.zeros(1, np.int32))
  blues = [frame[2, 3].tolist() for frame in shown.take()]
  assert blues == [[0, 0, 10 * i] for i in (0, 1, 2, 3, 4, 5, 6, 0)]
  assert shown.take() == []


@pytest.mark.parametrize('frameskip, rate', [((), 15.), (('frameskip=2',), 30.)])
def test_atari_with_a_wrapper_is_shown_at_the_emulators_speed(frameskip, rate):
  _, shown = screens.make(games.EnvironmentConfig(
      'pong', env_wrapper='tests.wrapped:cropped', env_arg=frameskip), 0)
  assert shown.why_not is None and shown.rate == rate


class Reversed(gymnasium.ActionWrapper):

  def action(self, action):
    return 1 - action


class Doubled(gymnasium.Wrapper):

  def __init__(self, env):
    super().__init__(env)
    self.action_space = gymnasium.spaces.Discrete(4)


@pytest.mark.parametrize('wrapper, names', [
    (lambda env: gymnasium.wrappers.TimeLimit(env, 5), ['stay', 'go']),
    (Reversed, ['action 0', 'action 1']),
    (Doubled, [f'action {i}' for i in range(4)])])
def test_actions_of_wrappers_have_no_names(wrapper, names):
  assert screens.Screens(wrapper(Painted()), 30., None).action_names == names


def test_what_cannot_be_rendered_says_why(monkeypatch):
  environment, shown = screens.make(
      games.EnvironmentConfig('tests.catch:Catch-v0'), 0)
  assert 'no render mode' in shown.why_not
  assert shown.action_names == ['action 0', 'action 1', 'action 2']
  environment.reset()
  environment.step(np.zeros(1, np.int32))
  assert shown.take() == [None, None]

  def render(self):
    raise gymnasium.error.DependencyNotInstalled('no\npaint')

  monkeypatch.setattr(Painted, 'render', render)
  _, shown = screens.make(PAINTED, 0)
  assert shown.why_not.endswith('cannot be rendered: no paint')
