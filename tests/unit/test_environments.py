"""Vector environments: their time steps, of Atari and of Gymnasium's."""

import dm_env
import gymnasium
import numpy as np
import pytest

from agents import environments
from agents import games

FIRST, MID, LAST = (int(t) for t in dm_env.StepType)
SIZE = 42
TABLE = 87  # The grey of most of Pong.


class Recorder(gymnasium.Env):
  """Observes how many steps were taken and by which action the last was."""

  observation_space = gymnasium.spaces.Box(-1., 100., (2,), np.float64)
  action_space = gymnasium.spaces.Discrete(3, start=5)

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._steps = 0
    return np.array([0., -1.]), {}

  def step(self, action):
    self._steps += 1
    return np.array([self._steps, action], np.float64), 2.5, False, False, {}


@pytest.fixture
def recorder():
  """A game that never terminates and is truncated after three steps."""
  env_id = 'Recorder-v0'
  gymnasium.register(env_id, entry_point=Recorder, max_episode_steps=3)
  yield env_id
  del gymnasium.registry[env_id]


def pong(num_envs=2, seed=0, **kwargs):
  return games.EnvironmentConfig(
      'pong', frame_size=SIZE, **kwargs).make(num_envs, seed)


def play(action, num_envs=4, num_steps=40, **kwargs):
  """Observations [time, env, ...] of doing the same all the time."""
  environment = pong(num_envs, **kwargs)
  steps = [environment.reset()]
  for _ in range(num_steps):
    steps.append(environment.step(np.full(num_envs, action, np.int32)))
  return np.stack([step.observation for step in steps])


def assert_fields(timestep, num_envs):
  assert timestep.step_type.dtype == np.int32
  assert timestep.reward.dtype == timestep.discount.dtype == np.float32
  for field in timestep:
    assert field.shape[0] == num_envs


def test_pong_specs_and_time_steps():
  environment = pong(3)
  observation = environment.observation_spec()
  assert observation.shape == (SIZE, SIZE, games.ATARI_FRAME_STACK)
  assert observation.dtype == np.uint8
  # The minimal action set: all eighteen would slow exploration down.
  assert environment.action_spec().num_values == 6
  assert environment.action_spec().dtype == np.int32
  assert environment.reward_spec().dtype == np.float32
  first = environment.reset()
  timestep = environment.step(np.zeros(3, np.int32))
  for step, step_type in ((first, FIRST), (timestep, MID)):
    assert_fields(step, 3)
    assert step.observation.shape == (3, *observation.shape)
    assert step.observation.dtype == np.uint8
    assert (step.step_type == step_type).all()
  assert (first.reward == 0).all() and (first.discount == 0).all()
  assert (timestep.discount == 1).all()


def test_newest_frame_is_last_and_the_stack_begins_with_zeros():
  observations = play(0, num_steps=6)
  assert observations[0, ..., :-1].max() == 0
  assert (np.median(observations[0, ..., -1], axis=(1, 2)) == TABLE).all()
  np.testing.assert_array_equal(observations[1:, ..., :-1],
                                observations[:-1, ..., 1:])
  assert observations[2, ..., 0].max() == 0
  np.testing.assert_array_equal(observations[3, ..., 0], observations[0, ..., -1])


@pytest.mark.slow
def test_seeds_decide_the_no_op_starts():
  observations = play(0, seed=0)
  np.testing.assert_array_equal(observations, play(0, seed=0))
  assert (observations != play(0, seed=1)).any()
  # Environments of one seed differ, too: at least two of these four do.
  assert len(np.unique(observations[-1].reshape(4, -1), axis=0)) > 1


def test_another_reset_starts_other_episodes():
  environment = pong(4)
  ends = []
  for _ in range(2):
    environment.reset()
    for _ in range(40):
      timestep = environment.step(np.zeros(4, np.int32))
    ends.append(timestep.observation)
  assert (ends[0] != ends[1]).any()


@pytest.mark.slow
def test_sticky_actions_repeat_the_last_one():
  up, down = 2, 3
  moved = play(up, num_envs=2)
  assert (moved != play(down, num_envs=2)).any()
  # With certainty, the no-op that an episode begins with goes on forever.
  np.testing.assert_array_equal(
      play(up, num_envs=1, repeat_action_probability=1.),
      play(down, num_envs=1, repeat_action_probability=1.))
  sticky, again = (play(up, num_envs=2, repeat_action_probability=0.25)
                   for _ in range(2))
  assert (sticky != moved).any()
  np.testing.assert_array_equal(sticky, again)


def test_rewards_are_raw():
  environment = games.EnvironmentConfig('ms_pacman').make(4, 0)
  environment.reset()
  rng = np.random.default_rng(0)
  rewards = np.concatenate([
      environment.step(rng.integers(0, 9, 4).astype(np.int32)).reward
      for _ in range(100)])
  assert rewards.max() >= 10


@pytest.mark.slow
def test_pong_autoreset():
  num_envs = 4
  environment = pong(num_envs)
  rng = np.random.default_rng(0)
  before = environment.reset()
  returns, finished = np.zeros(num_envs), []
  for _ in range(2000):
    timestep = environment.step(rng.integers(0, 6, num_envs).astype(np.int32))
    assert_fields(timestep, num_envs)
    returns += timestep.reward
    for i in range(num_envs):
      if before.step_type[i] == LAST:
        assert timestep.step_type[i] == FIRST
        assert timestep.reward[i] == 0 and timestep.discount[i] == 0
        assert timestep.observation[i, ..., :-1].max() == 0
        assert np.median(timestep.observation[i, ..., -1]) == TABLE
        finished.append(returns[i])
        returns[i] = 0
      elif timestep.step_type[i] == LAST:
        assert timestep.discount[i] == 0
        # What the episode ended on, not yet the next one's start.
        np.testing.assert_array_equal(timestep.observation[i, ..., :-1],
                                      before.observation[i, ..., 1:])
      else:
        assert timestep.step_type[i] == MID and timestep.discount[i] == 1
    before = timestep
    if len(finished) >= num_envs:
      break
  assert len(finished) >= num_envs
  # A game goes to 21 points for one side.
  assert all(max(-r, r) <= 21 for r in finished) and min(finished) < -15


def test_termination_has_discount_zero():
  num_envs = 3
  environment = games.EnvironmentConfig('CartPole-v1').make(num_envs, 0)
  assert environment.observation_spec().shape == (4,)
  assert environment.observation_spec().dtype == np.float32
  assert environment.action_spec().num_values == 2
  first = environment.reset()
  assert len(np.unique(first.observation[:, 0])) == num_envs
  steps = [first]
  # Always pushing right topples every pole within a dozen steps.
  for _ in range(40):
    steps.append(environment.step(np.ones(num_envs, np.int32)))
  for step in steps:
    assert_fields(step, num_envs)
    assert step.observation.dtype == np.float32
    assert (step.discount[step.step_type == LAST] == 0).all()
    assert (step.discount[step.step_type == MID] == 1).all()
    assert (step.reward == (step.step_type != FIRST)).all()
  lasts = sum((step.step_type == LAST).sum() for step in steps)
  resets = sum((step.step_type == FIRST).sum() for step in steps[1:])
  assert lasts >= resets >= 2 * num_envs


def test_truncation_has_discount_one(recorder):
  environment = games.EnvironmentConfig(recorder).make(2, 0)
  steps = [environment.reset()]
  for _ in range(5):
    steps.append(environment.step(np.array([0, 2], np.int32)))
  step_types, rewards, discounts, observations = (
      np.stack(field) for field in zip(*steps))
  both = np.ones(2)
  np.testing.assert_array_equal(
      step_types, np.outer([FIRST, MID, MID, LAST, FIRST, MID], both))
  np.testing.assert_array_equal(
      rewards, np.outer([0, 2.5, 2.5, 2.5, 0, 2.5], both))
  np.testing.assert_array_equal(discounts, np.outer([0, 1, 1, 1, 0, 1], both))
  np.testing.assert_array_equal(
      observations[..., 0], np.outer([0, 1, 2, 3, 0, 1], both))
  # Agents count actions from 0, whatever the environment calls them; the one
  # that only resets is dropped.
  np.testing.assert_array_equal(
      observations[..., 1],
      [[-1, -1], [5, 7], [5, 7], [5, 7], [-1, -1], [5, 7]])


def test_single_environment_resets_once_an_episode(recorder):
  environment = environments.SingleEnvironment(
      games.EnvironmentConfig(recorder).make(1, 0))
  for _ in range(2):
    first = environment.reset()
    assert first.first() and first.observation[0] == 0
    for steps in (1, 2, 3):
      timestep = environment.step(1)
      np.testing.assert_array_equal(timestep.observation, [steps, 6])
      assert timestep.reward == 2.5 and timestep.discount == 1
    assert timestep.last()
  # As of any dm_env environment, stepping on after the last step resets.
  assert environment.step(1).first()
  assert environment.step(1).mid()


def test_infos_that_do_not_batch_are_nobodys_business():
  environment = games.EnvironmentConfig('tests.misbehaving:OddInfos-v0').make(4, 0)
  environment.reset()
  for _ in range(50):
    environment.step(np.zeros(4, np.int32))


@pytest.mark.parametrize('game, channel_is_lit', [
    ('ChannelsFirst', [0, 1, 0, 0, 0]), ('ChannelsLast', None)])
def test_channels_come_last(game, channel_is_lit, capsys):
  config = games.EnvironmentConfig(f'tests.misbehaving:{game}-v0')
  assert config.try_out(0).observations.shape == (20, 30, 5)
  told = capsys.readouterr().out
  environment = config.make(2, 0)
  for timestep in (environment.reset(), environment.step(np.zeros(2, np.int32))):
    assert timestep.observation.shape == (2, 20, 30, 5)
    assert timestep.observation.dtype == np.uint8
    if channel_is_lit:
      assert (timestep.observation == 255 * np.array(channel_is_lit)).all()
  assert ('[5, 20, 30] are read as 5 channels of 20x30 pixels' in told) == bool(
      channel_is_lit)


@pytest.mark.parametrize('game', ['pong', 'CartPole-v1'])
@pytest.mark.parametrize('action', [
    [0, 100], [-1, 0], [2**31 - 1, 0], [0], [0, 0, 0], [[0, 0]], [0., 1.], 0])
def test_actions_that_there_are_not(game, action):
  environment = games.EnvironmentConfig(game).make(2, 0)
  environment.reset()
  with pytest.raises(ValueError, match=r'\[2\] integers from 0 to '):
    environment.step(np.array(action))
  environment.step(np.array([0, 1]))
