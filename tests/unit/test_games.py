"""Games by name: which there are, their settings, and their errors."""

from ale_py import roms
import gymnasium
import numpy as np
import pytest

from agents import games


def error_of(game, num_envs=1, **settings):
  with pytest.raises(ValueError) as error:
    games.EnvironmentConfig(game, **settings).make(num_envs, 0)
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize('game, rom', [
    ('pong', 'pong'), ('Pong', 'pong'), ('ALE/Pong-v5', 'pong'),
    ('PongNoFrameskip-v4', 'pong'), ('PongDeterministic-v4', 'pong'),
    ('ms_pacman', 'ms_pacman'), ('MsPacman', 'ms_pacman'),
    ('ALE/MsPacman-v5', 'ms_pacman'), ('CartPole-v1', None), ('pongg', None),
    ('ALE/Pong-v99', None), ('PongNoFrameskip-v1', None), ('Blackjack-v1', None),
    ('UpNDown', 'up_n_down'), ('UpNDownNoFrameskip-v4', 'up_n_down'),
    ('TicTacToe3D', 'tic_tac_toe_3d'), ('ale_py:ALE/Pong-v5', 'pong'),
    ('elsewhere:ALE/Pong-v5', None),
])
def test_names_of_atari_games(game, rom):
  assert games.atari_rom(game) == rom


def test_every_atari_id_and_rom_is_known_by_its_name():
  ids = [spec for spec in gymnasium.registry.values()
         if str(spec.entry_point).startswith('ale_py')]
  assert len(ids) > 100
  for spec in ids:
    assert games.atari_rom(spec.id) == spec.kwargs['game'], spec.id
  for rom in roms.get_all_rom_ids():
    assert games.atari_rom(rom) == rom


@pytest.mark.parametrize('game', ['up_n_down', 'tic_tac_toe_3d'])
def test_games_of_odd_names_are_played_with_a_wrapper_too(game):
  config = games.EnvironmentConfig(game, env_wrapper='tests.wrapped:cropped')
  assert config.try_out(0).observations.shape[-1] == 3


def test_unknown_game_lists_close_matches():
  message = error_of('pongg')
  assert "'pongg'" in message and 'close matches: pong,' in message
  assert 'CartPole-v1' in error_of('CartPole')
  # Where nothing is close, it tells what a game may be.
  assert 'CartPole-v1' in error_of('zzzzzzzzzz')
  assert 'ALE/Pong-v5' in error_of('ALE/Pong-v99')


@pytest.mark.parametrize('game, told', [
    ('no_such_module:Pong-v0', "No module named 'no_such_module'"),
    ('tests.no_such_module:Pong-v0', "No module named 'tests.no_such_module'"),
    ('.:x', "its module '.' cannot be imported"),
    ('a..b:x', "its module 'a..b' cannot be imported"),
])
def test_modules_that_cannot_be_imported_are_named(game, told):
  message = error_of(game)
  assert told in message and repr(game) in message


def test_a_module_that_fails_while_it_is_imported(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  for name, text, told in (
      ('needs_other', 'import some_other_module', "'some_other_module'"),
      ('no_python', '1 1', 'SyntaxError'), ('leaves', 'raise SystemExit', '')):
    (tmp_path / f'{name}.py').write_text(text)
    message = error_of(f'{name}:X-v0')
    assert f"its module '{name}' cannot be imported" in message
    assert told in message


@pytest.mark.parametrize('game', ['combat', 'joust', 'MazeCraze', 'warlords'])
def test_games_for_two_are_refused(game, capfd):
  assert 'one player' in error_of(game)
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('game, told', [
    ('BadConstructor', 'cannot be made: RuntimeError: no display found'),
    ('BadReset', 'cannot be played: RuntimeError: no map'),
    ('BadStep', 'cannot be played: '),
])
def test_games_that_fail_at_once_are_named(game, told):
  game = f'tests.misbehaving:{game}-v0'
  with pytest.raises(ValueError) as error:
    games.EnvironmentConfig(game).try_out(0)
  message = str(error.value)
  assert told in message and repr(game) in message and '\n' not in message


def test_spaces_that_do_not_fit():
  assert 'Discrete' in error_of('Pendulum-v1')
  assert 'observations' in error_of('FrozenLake-v1')
  assert 'with elements' in error_of('tests.misbehaving:Empty-v0')


@pytest.mark.parametrize('setting, value', [
    ('num_envs', 0), ('frame_size', 15),
    ('repeat_action_probability', -0.1), ('repeat_action_probability', 1.1),
])
def test_bad_settings(setting, value):
  assert setting in error_of('pong', **{setting: value})


def test_environment_config():
  config = games.EnvironmentConfig('Pong', frame_size=36)
  assert config.frame_stack == games.ATARI_FRAME_STACK
  environment = config.make(2, 0)
  assert environment.num_envs == 2
  assert environment.observation_spec().shape == (36, 36, config.frame_stack)
  assert games.EnvironmentConfig('CartPole-v1').frame_stack == 1


# Wrappers and arguments.


def test_arguments_reach_the_game():
  # With it, CartPole's rewards are 0 until the pole falls.
  for arguments, reward in (((), 1.), (('sutton_barto_reward=true',), 0.)):
    environment = games.EnvironmentConfig(
        'CartPole-v1', env_arg=arguments).make(2, 0)
    environment.reset()
    timestep = environment.step(np.zeros(2, np.int32))
    assert timestep.reward.tolist() == [reward, reward]
  config = games.EnvironmentConfig(
      'pong', env_arg=('full_action_space=true',))
  assert config.try_out(0).actions.num_values == 18 and config.frame_stack == 4


def test_a_wrapper_is_around_each_copy():
  environment = games.EnvironmentConfig(
      'CartPole-v1', env_wrapper='tests.wrapped:short').make(2, 0)
  environment.reset()
  steps = [environment.step(np.zeros(2, np.int32)) for _ in range(4)]
  assert [step.step_type.tolist() for step in steps] == [
      [1, 1], [1, 1], [2, 2], [0, 0]]
  assert steps[2].discount.tolist() == [1., 1.]  # It was truncated.


def test_atari_with_a_wrapper_is_what_the_wrapper_makes_of_it():
  config = games.EnvironmentConfig(
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
    games.EnvironmentConfig(game, **settings).try_out(0)
  assert told in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('wrapper', [None, 'tests.wrapped:cropped'])
def test_stickiness_has_one_place_that_records_and_evaluations_go_by(wrapper):
  with pytest.raises(ValueError, match='give --repeat_action_probability'):
    games.EnvironmentConfig('pong', env_wrapper=wrapper, env_arg=(
        'repeat_action_probability=0.25',)).try_out(0)


@pytest.mark.parametrize('argument, told', [
    ('frameskip=0', 'Invalid frameskip of 0'), ('img_height=tall', "game 'pong'"),
    ('continuous=true', 'needs a Discrete action space'),
    ('grayscale=false', 'needs a Box of pixels'),
    ('stack_num=2', 'env_arg stack_num'), ('batch_size=1', 'env_arg batch_size'),
    ('autoreset_mode=SameStep', 'env_arg autoreset_mode'),
    ('life_loss_info=true', 'give episodic_life=true')])
def test_what_arguments_of_atari_cannot_be_is_told_in_one_line(argument, told):
  with pytest.raises(ValueError) as error:
    games.EnvironmentConfig('pong', env_arg=(argument,)).try_out(0)
  assert told in str(error.value) and '\n' not in str(error.value)
