"""Vector environments: Atari, Gymnasium's, and their errors."""

import dm_env
import gymnasium
import numpy as np
import pytest

from agents import environments

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
  return environments.make_environment(
      'pong', num_envs, seed, frame_size=SIZE, **kwargs)


def play(action, num_envs=4, num_steps=40, **kwargs):
  """Observations [time, env, ...] of doing the same all the time."""
  environment = pong(num_envs, **kwargs)
  steps = [environment.reset()]
  for _ in range(num_steps):
    steps.append(environment.step(np.full(num_envs, action, np.int32)))
  return np.stack([step.observation for step in steps])


def error_of(*args, **kwargs):
  with pytest.raises(ValueError) as error:
    environments.make_environment(*args, **kwargs)
  assert '\n' not in str(error.value)
  return str(error.value)


def assert_fields(timestep, num_envs):
  assert timestep.step_type.dtype == np.int32
  assert timestep.reward.dtype == timestep.discount.dtype == np.float32
  for field in timestep:
    assert field.shape[0] == num_envs


def test_pong_specs_and_time_steps():
  environment = pong(3)
  observation = environment.observation_spec()
  assert observation.shape == (SIZE, SIZE, environments.ATARI_FRAME_STACK)
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
  environment = environments.make_environment('ms_pacman', 4, 0, frame_size=SIZE)
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
  environment = environments.make_environment('CartPole-v1', num_envs, 0)
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
  environment = environments.make_environment(recorder, 2, 0)
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
      environments.make_environment(recorder, 1, 0))
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


@pytest.mark.parametrize('game, rom', [
    ('pong', 'pong'), ('Pong', 'pong'), ('ALE/Pong-v5', 'pong'),
    ('PongNoFrameskip-v4', 'pong'), ('PongDeterministic-v4', 'pong'),
    ('ms_pacman', 'ms_pacman'), ('MsPacman', 'ms_pacman'),
    ('ALE/MsPacman-v5', 'ms_pacman'), ('CartPole-v1', None), ('pongg', None),
    ('ALE/Pong-v99', None), ('PongNoFrameskip-v1', None),
])
def test_names_of_atari_games(game, rom):
  assert environments.atari_rom(game) == rom


def test_unknown_game_lists_close_matches():
  message = error_of('pongg', 1, 0)
  assert "'pongg'" in message and 'close matches: pong,' in message
  assert 'CartPole-v1' in error_of('CartPole', 1, 0)
  # Where nothing is close, it tells what a game may be.
  assert 'CartPole-v1' in error_of('zzzzzzzzzz', 1, 0)
  assert 'ALE/Pong-v5' in error_of('ALE/Pong-v99', 1, 0)


@pytest.mark.parametrize('game, told', [
    ('no_such_module:Pong-v0', "No module named 'no_such_module'"),
    ('tests.no_such_module:Pong-v0', "No module named 'tests.no_such_module'"),
    ('.:x', "its module '.' cannot be imported"),
    ('a..b:x', "its module 'a..b' cannot be imported"),
])
def test_modules_that_cannot_be_imported_are_named(game, told):
  message = error_of(game, 1, 0)
  assert told in message and repr(game) in message


def test_a_module_that_fails_while_it_is_imported(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  for name, text, told in (
      ('needs_other', 'import some_other_module', "'some_other_module'"),
      ('no_python', '1 1', 'SyntaxError'), ('leaves', 'raise SystemExit', '')):
    (tmp_path / f'{name}.py').write_text(text)
    message = error_of(f'{name}:X-v0', 1, 0)
    assert f"its module '{name}' cannot be imported" in message
    assert told in message


@pytest.mark.parametrize('game', ['combat', 'joust', 'MazeCraze', 'warlords'])
def test_games_for_two_are_refused(game, capfd):
  assert 'one player' in error_of(game, 1, 0)
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('game, told', [
    ('BadConstructor', 'cannot be made: RuntimeError: no display found'),
    ('BadReset', 'cannot be played: RuntimeError: no map'),
    ('BadStep', 'cannot be played: '),
])
def test_games_that_fail_at_once_are_named(game, told):
  game = f'tests.misbehaving:{game}-v0'
  with pytest.raises(ValueError) as error:
    environments.EnvironmentConfig(game).try_out(0)
  message = str(error.value)
  assert told in message and repr(game) in message and '\n' not in message


def test_infos_that_do_not_batch_are_nobodys_business():
  environment = environments.make_environment('tests.misbehaving:OddInfos-v0', 4, 0)
  environment.reset()
  for _ in range(50):
    environment.step(np.zeros(4, np.int32))


@pytest.mark.parametrize('game, channel_is_lit', [
    ('ChannelsFirst', [0, 1, 0, 0, 0]), ('ChannelsLast', None)])
def test_channels_come_last(game, channel_is_lit, capsys):
  config = environments.EnvironmentConfig(f'tests.misbehaving:{game}-v0')
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
  environment = environments.make_environment(game, 2, 0, frame_size=SIZE)
  environment.reset()
  with pytest.raises(ValueError, match=r'\[2\] integers from 0 to '):
    environment.step(np.array(action))
  environment.step(np.array([0, 1]))


def test_spaces_that_do_not_fit():
  assert 'Discrete' in error_of('Pendulum-v1', 1, 0)
  assert 'observations' in error_of('FrozenLake-v1', 1, 0)
  assert 'with elements' in error_of('tests.misbehaving:Empty-v0', 1, 0)


@pytest.mark.parametrize('setting, value', [
    ('num_envs', 0), ('num_threads', 0), ('frame_size', 15),
    ('repeat_action_probability', -0.1), ('repeat_action_probability', 1.1),
])
def test_bad_settings(setting, value):
  arguments = {'num_envs': 1, 'seed': 0, setting: value}
  assert setting in error_of('pong', **arguments)


def test_environment_config():
  config = environments.EnvironmentConfig('Pong', frame_size=36)
  assert config.frame_stack == environments.ATARI_FRAME_STACK
  environment = config.make(2, 0)
  assert environment.num_envs == 2
  assert environment.observation_spec().shape == (36, 36, config.frame_stack)
  assert environments.EnvironmentConfig('CartPole-v1').frame_stack == 1


# Wrappers and arguments.


def test_arguments_reach_the_game():
  # With it, CartPole's rewards are 0 until the pole falls.
  for arguments, reward in (((), 1.), (('sutton_barto_reward=true',), 0.)):
    environment = environments.EnvironmentConfig(
        'CartPole-v1', env_arg=arguments).make(2, 0)
    environment.reset()
    timestep = environment.step(np.zeros(2, np.int32))
    assert timestep.reward.tolist() == [reward, reward]
  config = environments.EnvironmentConfig(
      'pong', env_arg=('full_action_space=true',))
  assert config.try_out(0).actions.num_values == 18 and config.frame_stack == 4


def test_a_wrapper_is_around_each_copy():
  environment = environments.EnvironmentConfig(
      'CartPole-v1', env_wrapper='tests.wrapped:short').make(2, 0)
  environment.reset()
  steps = [environment.step(np.zeros(2, np.int32)) for _ in range(4)]
  assert [step.step_type.tolist() for step in steps] == [
      [1, 1], [1, 1], [2, 2], [0, 0]]
  assert steps[2].discount.tolist() == [1., 1.]  # It was truncated.


def test_atari_with_a_wrapper_is_what_the_wrapper_makes_of_it():
  config = environments.EnvironmentConfig(
      'pong', env_wrapper='tests.wrapped:cropped', env_arg=('frameskip=2',))
  spec = config.try_out(0)
  assert spec.observations.shape == (40, 40, 3) and config.frame_stack == 1
  assert spec.actions.num_values == 6
  game = gymnasium.make('ALE/Pong-v5', frameskip=2, repeat_action_probability=0.)
  environment = config.make(1, 0)
  seed = int((np.random.SeedSequence(0).generate_state(1) & 0x7fffffff)[0])
  screen, _ = game.reset(seed=seed)
  seen = environment.reset().observation[0]
  for _ in range(30):
    np.testing.assert_array_equal(seen, screen[34:194:4, ::4])
    screen = game.step(2)[0]
    seen = environment.step(np.array([2], np.int32)).observation[0]


@pytest.mark.parametrize('settings, told', [
    ({'env_arg': ('nonsense=1',)}, "unexpected keyword argument 'nonsense'"),
    ({'env_arg': ('nonsense',)}, 'env_arg must be such as name=value'),
    ({'env_wrapper': 'tests.wrapped'}, 'must be such as module:function'),
    ({'env_wrapper': 'tests.wrapped:missing'}, "no attribute 'missing'"),
    ({'env_wrapper': 'tests.nowhere:f'}, "No module named 'tests.nowhere'"),
    ({'env_wrapper': 'tests.wrapped:NO_FUNCTION'}, 'not callable'),
])
@pytest.mark.parametrize('game', ['CartPole-v1', 'pong'])
def test_bad_wrappers_and_arguments_are_told_in_one_line(game, settings, told):
  with pytest.raises(ValueError) as error:
    environments.EnvironmentConfig(game, **settings).try_out(0)
  assert told in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('argument, told', [
    ('frameskip=0', 'Invalid frameskip of 0'), ('img_height=tall', "game 'pong'"),
    ('continuous=true', 'needs a Discrete action space'),
    ('stack_num=2', 'env_arg stack_num'), ('batch_size=1', 'env_arg batch_size'),
    ('autoreset_mode=SameStep', 'env_arg autoreset_mode')])
def test_what_arguments_of_atari_cannot_be_is_told_in_one_line(argument, told):
  with pytest.raises(ValueError) as error:
    environments.EnvironmentConfig('pong', env_arg=(argument,)).try_out(0)
  assert told in str(error.value) and '\n' not in str(error.value)
