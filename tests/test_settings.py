"""Settings from flags, to `config.json`, and back."""

import argparse
import dataclasses
import importlib.metadata
import json
import os

import pytest

from agents import environments
from agents.impala_ppo import config as agent_config
from launch import settings as settings_lib
from programs import config as run_config


def parse(*argv):
  parser = settings_lib.Parser()
  settings_lib.add_flags(parser)
  return vars(parser.parse_args(argv))


def settings_of(*argv):
  return settings_lib.from_flags(parse(*argv))


def error_of(function, *args, **kwargs):
  with pytest.raises(ValueError) as error:
    function(*args, **kwargs)
  message = str(error.value)
  assert message and '\n' not in message
  return message


def write_config(run_dir, text):
  with open(os.path.join(run_dir, settings_lib.CONFIG_FILE), 'w') as f:
    f.write(text)


def test_defaults_are_those_of_the_configs():
  settings = settings_of()
  assert settings.environment == environments.EnvironmentConfig()
  # What follows from the game and where files go are settled here.
  assert settings.agent == agent_config.ImpalaPPOConfig(
      frame_stack=environments.ATARI_FRAME_STACK)
  assert settings.run == run_config.RunConfig(os.path.abspath('runs/pong'))


def test_absent_flags_are_not_parsed():
  # Otherwise their defaults would override a resumed run's settings.
  assert parse() == {}


def test_flags_override_defaults(tmp_path):
  settings = settings_of(
      '--game', 'CartPole-v1', '--loss', 'vtrace', '--discount', '0.5',
      '--no-autoencoder', '--conv_channels', '8,16,32', '--seed', '7',
      '--target_return', '450', '--run_dir', str(tmp_path))
  assert settings == settings_lib.Settings(
      environments.EnvironmentConfig(game='CartPole-v1'),
      agent_config.ImpalaPPOConfig(
          loss='vtrace', discount=0.5, autoencoder=False,
          conv_channels=(8, 16, 32), frame_stack=1),
      run_config.RunConfig(str(tmp_path), seed=7, target_return=450.))
  assert isinstance(settings.run.target_return, float)


def test_each_setting_has_a_documented_flag():
  parser = argparse.ArgumentParser()
  settings_lib.add_flags(parser)
  helps = {action.dest: action.help for action in parser._actions}
  for section in dataclasses.fields(settings_lib.Settings):
    for field in dataclasses.fields(section.type):
      if field.name != 'frame_stack':
        # Taken from the docstring of the config.
        assert len(helps[field.name].split('Default:')[0]) > 10, field.name
  parser.format_help()  # Fails where a help text has a stray %.


def test_names_of_settings_are_unique():
  # One flag must not set two things.
  names = [field.name for section in dataclasses.fields(settings_lib.Settings)
           for field in dataclasses.fields(section.type)]
  assert len(names) == len(set(names))


def test_run_dir_follows_from_the_game():
  run_dir = settings_of('--game', 'ALE/Pong-v5').run.run_dir
  assert run_dir == os.path.abspath('runs/ale_pong_v5')
  # Processes may start in another directory.
  assert os.path.isabs(settings_of('--run_dir', 'here').run.run_dir)


def test_save_and_load(tmp_path):
  settings = settings_of(
      '--run_dir', str(tmp_path), '--game', 'ms_pacman', '--frame_size', '84',
      '--conv_channels', '8', '--learning_rate', '1.25e-4',
      '--target_return', '21', '--no-normalize_advantages')
  settings_lib.save(settings)
  assert settings_lib.load(str(tmp_path)) == settings
  assert os.listdir(tmp_path) == [settings_lib.CONFIG_FILE]
  # To save again, as on resuming, replaces.
  settings.run.seed = 5
  settings_lib.save(settings)
  assert settings_lib.load(str(tmp_path)).run.seed == 5


def test_versions_are_saved(tmp_path):
  settings_lib.save(settings_of('--run_dir', str(tmp_path)))
  with open(tmp_path / settings_lib.CONFIG_FILE) as f:
    versions = json.load(f)['versions']
  for package in ('dm-acme', 'dm-reverb', 'tensorflow', 'ale-py'):
    assert versions[package] == importlib.metadata.version(package)
  assert versions['python'].startswith('3.')


def test_resuming_keeps_all_but_the_given(tmp_path):
  base = settings_of('--run_dir', str(tmp_path), '--game', 'CartPole-v1',
                     '--latent_size', '32', '--seed', '3')
  settings_lib.save(base)
  loaded = settings_lib.load(str(tmp_path))
  assert settings_lib.from_flags({}, loaded) == base
  flags = parse('--run_dir', str(tmp_path), '--max_timesteps', '99')
  resumed = settings_lib.from_flags(flags, loaded)
  assert resumed.run.max_timesteps == 99
  resumed.run.max_timesteps = base.run.max_timesteps
  assert resumed == base


def test_override_is_checked_against_the_base():
  base = settings_of('--batch_size', '6', '--samples_per_insert', '3')
  assert 'batch_size' in error_of(
      settings_lib.from_flags, {'samples_per_insert': 4.}, base)


def test_directory_without_a_run(tmp_path):
  assert str(tmp_path) in error_of(settings_lib.load, str(tmp_path))
  missing = str(tmp_path / 'missing')
  assert missing in error_of(settings_lib.load, missing)


@pytest.mark.parametrize('text', [
    '', 'no json\nat all', '[]', '3', '{}', '{"environment": 3}',
    '{"environment": {}, "agent": {"colour": 1}, "run": {"run_dir": "x"}}',
    '{"environment": {}, "agent": {"batch_size": "x"}, "run": {"run_dir": ""}}',
    '{"environment": {}, "agent": {}, "run": {}}',
    '{"environment": {}, "agent": {"batch_size": 0}, "run": {"run_dir": "x"}}',
])
def test_foreign_config(tmp_path, text):
  write_config(tmp_path, text)
  error_of(settings_lib.load, str(tmp_path))


@pytest.mark.parametrize('name, value', [
    *[(name, 0) for name in (
        'latent_size', 'frame_stack', 'sequence_length', 'batch_size',
        'reconstruction_period', 'replay_capacity', 'min_replay_size',
        'queue_capacity', 'learning_rate_decay_timesteps',
        'variable_update_period', 'num_fetch_workers')],
    ('prefetch_size', -1),
    *[(name, value) for value in (0., -1., float('nan')) for name in (
        'clip_epsilon', 'max_abs_reward', 'learning_rate', 'adam_epsilon',
        'max_gradient_norm')],
    *[(name, value) for value in (-0.1, float('nan')) for name in (
        'baseline_cost', 'entropy_cost', 'reconstruction_cost',
        'final_learning_rate', 'priority_exponent', 'discount')],
    ('discount', 1.01), ('vtrace_lambda', 0.), ('vtrace_lambda', 1.01),
    ('conv_channels', ()), ('conv_channels', (16, 0)),
    ('loss', 'dqn'), ('replay_sampler', 'lifo'),
    ('samples_per_insert', 0.5), ('samples_per_insert', 5.),
    ('batch_size', 2), ('min_replay_size', 65), ('min_replay_size', 3),
])
def test_agent_settings_are_checked(name, value):
  message = error_of(agent_config.ImpalaPPOConfig, **{name: value})
  assert name in message


def test_fifo_replays_whole_times():
  settings = {'batch_size': 5, 'samples_per_insert': 2.5}
  agent_config.ImpalaPPOConfig(**settings)
  assert 'samples_per_insert' in error_of(
      agent_config.ImpalaPPOConfig, replay_sampler='fifo', **settings)


def test_replay_settings_do_not_matter_without_replay():
  config = agent_config.ImpalaPPOConfig(samples_per_insert=1.,
                                        min_replay_size=100)
  assert not config.uses_replay and config.online_batch_size == 12
  config = agent_config.ImpalaPPOConfig()
  assert config.uses_replay
  assert (config.online_batch_size, config.replay_batch_size) == (4, 8)
  assert config.timesteps_per_learner_step == 4 * 32


@pytest.mark.parametrize('name, value', [
    *[(name, 0) for name in (
        'num_actors', 'envs_per_actor', 'num_replay_shards', 'max_timesteps',
        'evaluation_episodes', 'checkpoint_minutes', 'progress_seconds')],
    *[(name, -1) for name in ('seed', 'replay_port', 'evaluation_interval')],
    ('replay_port', 65536), ('num_replay_shards', 3),
])
def test_run_settings_are_checked(name, value):
  message = error_of(run_config.RunConfig, 'run', **{name: value})
  assert name in message


@pytest.mark.parametrize('argv, told', [
    (['--seed', 'one'], '--seed'),
    (['--conv_channels', '8,x'], '--conv_channels'),
    (['--no_such_flag'], '--no_such_flag'),
    (['--discount'], '--discount'),
])
def test_bad_flags_are_told_in_one_line(argv, told, capsys):
  with pytest.raises(SystemExit) as stopped:
    parse(*argv)
  assert stopped.value.code == 2
  output = capsys.readouterr()
  assert output.out == ''
  assert output.err.count('\n') == 1 and output.err.endswith('\n')
  assert 'error: ' in output.err and told in output.err
