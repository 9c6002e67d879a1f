"""Settings: their checks, from flags and files, to `config.json`, and back."""

import dataclasses
import glob
import importlib.metadata
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import typing
from typing import Optional

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from agents import games
from agents import validation
from agents.impala_ppo import config as agent_config
from launch import evaluate
from launch import export
from launch import inspect
from launch import plans
from launch import plot
from launch import settings as settings_lib
from programs import config as run_config
from programs.runtime import machine

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SECTIONS = {'environment': games.EnvironmentConfig,
            'agent': agent_config.ImpalaPPOConfig,
            'run': run_config.RunConfig}
COMMANDS = (settings_lib.TrainCommand, evaluate.EvaluateCommand,
            export.ExportCommand, inspect.InspectCommand, plot.PlotCommand,
            plans.SweepCommand)
NO_FLAG = ('frame_stack',)  # Follows from the game.
# Commands and configs that check themselves, with what they cannot do without.
CHECKED = [*SECTIONS.values(), *COMMANDS]
NEEDED = {run_config.RunConfig: {'run_dir': 'x'},
          evaluate.EvaluateCommand: {'run_dir': ('x',)},
          inspect.InspectCommand: {'run_dir': 'x'},
          plot.PlotCommand: {'runs': ('x',)},
          export.ExportCommand: {'run_dir': 'x', 'out': 'x'},
          plans.SweepCommand: {'out': 'x'}}


def settings_of(*argv):
  return settings_lib.parse_train(argv)[1]


def error_of(function, *args, **kwargs):
  with pytest.raises(ValueError) as error:
    function(*args, **kwargs)
  message = str(error.value)
  assert message and '\n' not in message
  return message


def flag_error(*argv):
  return error_of(settings_lib.parse_train, argv)


def file_error(tmp_path, text, name='config.yaml'):
  path = tmp_path / name
  path.write_text(text)
  message = flag_error('--config', str(path))
  assert str(path) in message
  return message


@dataclasses.dataclass
class Limits:
  ge: Optional[float] = None
  gt: Optional[float] = None
  le: Optional[float] = None
  min_length: int = 0
  max_length: int = 0

  @property
  def low(self):
    return self.ge if self.gt is None else self.gt


def plain(annotation):
  """Returns a type without its Annotated and its Optional, and its range."""
  limits = None
  while True:
    if typing.get_origin(annotation) is typing.Annotated:
      annotation, field = typing.get_args(annotation)
      limits = Limits(**{name: value for limit in field.metadata
                         for name, value in dataclasses.asdict(
                             limit).items()})
    elif typing.get_origin(annotation) is typing.Union:
      annotation, _ = typing.get_args(annotation)
    else:
      return annotation, limits


def fields_of(*types):
  return [pytest.param(config_class, name, annotation,
                       id=f'{config_class.__name__}.{name}')
          for config_class in CHECKED
          for name, annotation in typing.get_type_hints(
              config_class, include_extras=True).items()
          if plain(annotation)[0] in types]


def make(config_class, **values):
  return config_class(**{**NEEDED.get(config_class, {}), **values})


# What settings may be.


@pytest.mark.parametrize('config_class, name, annotation', fields_of(int, float))
def test_numbers_have_finite_ranges(config_class, name, annotation):
  kind, limits = plain(annotation)
  outside = [math.nan, math.inf, -math.inf, 10**400, -10**400]
  if kind is int:
    outside += [limits.low - 1, limits.le + 1]
  else:
    outside += [math.nextafter(limits.low, -math.inf),
                math.nextafter(limits.le, math.inf)]
    outside += [limits.low] if limits.gt is not None else []
  for value in outside:
    message = error_of(make, config_class, **{name: value})
    assert message.startswith(f'{name} must be ')
    assert f'{limits.low}, {limits.le}]' in message
  inside = (math.nextafter(limits.low, math.inf) if limits.gt is not None
            else limits.low)
  for value in (inside, limits.le):
    stored = validation.checked(name, validation.fields(config_class)[name],
                                value)
    assert stored == value and type(stored) is kind


@pytest.mark.parametrize('config_class, name, annotation', fields_of(int, float))
def test_only_numbers_are_numbers(config_class, name, annotation):
  kind, limits = plain(annotation)
  number = kind(limits.le)
  others = [True, False, np.bool_(True), str(number), '', [number], {}, 1j]
  if kind is int:
    others += [float(limits.low), np.float64(limits.le)]
  if type(None) not in typing.get_args(annotation):
    others.append(None)
  for value in others:
    assert error_of(make, config_class, **{name: value}).startswith(
        f'{name} must be ')


@pytest.mark.parametrize('config_class, name, annotation', fields_of(bool))
@pytest.mark.parametrize('value', ['false', 'no', '', 0, 1, 0., None, []])
def test_only_booleans_are_booleans(config_class, name, annotation, value):
  del annotation
  message = error_of(make, config_class, **{name: value})
  assert message.startswith(f'{name} must be true or false, not ')


@pytest.mark.parametrize('config_class, name, annotation', fields_of(str))
@pytest.mark.parametrize('value', [0, True, ['x'], b'x'])
def test_only_texts_are_texts(config_class, name, annotation, value):
  del annotation
  assert error_of(make, config_class, **{name: value}).startswith(
      f'{name} must be a text')


def test_messages():
  config = agent_config.ImpalaPPOConfig
  for value, message in (
      ({'discount': 1.5}, 'discount must be a number in [0, 1], not 1.5.'),
      ({'vtrace_lambda': 0},
       'vtrace_lambda must be a number in (0, 1], not 0.'),
      ({'batch_size': True},
       'batch_size must be an integer in [1, 1000000], not true.'),
      ({'loss': 'dqn'}, "loss must be one of ppo, vtrace, a3c, not 'dqn'."),
      ({'replay_sampler': 3},
       'replay_sampler must be one of uniform, prioritized, fifo, not 3.'),
      ({'conv_channels': (16, 0)}, 'conv_channels must be one or more values, '
       'each an integer in [1, 65536], not (16, 0).')):
    assert error_of(config, **value) == message
  assert error_of(run_config.RunConfig, 'x', num_gpus=-1) == (
      'num_gpus must be an integer in [0, 1000], or none, not -1.')
  assert error_of(run_config.RunConfig, '') == (
      "run_dir must be a text of 1 to 1000 characters, not ''.")


def test_messages_stay_short():
  deep = []
  for _ in range(100_000):
    deep = [deep]
  for value in ('x\n' * 10_000, deep, 10**5000, np.zeros((50, 50))):
    for name in ('batch_size', 'loss', 'autoencoder', 'conv_channels'):
      assert len(error_of(agent_config.ImpalaPPOConfig, **{name: value})) < 250
  while deep:  # Freed at once, it would be freed recursively.
    deep = deep.pop()


def test_numbers_are_stored_as_their_type_has_them():
  agent = agent_config.ImpalaPPOConfig(
      batch_size=np.int64(6), discount=1, learning_rate=np.float32(0.5),
      autoencoder=np.bool_(False), conv_channels=[np.int32(8), 16],
      loss=np.str_('vtrace'))
  assert (agent.batch_size, agent.discount, agent.learning_rate,
          agent.autoencoder, agent.conv_channels, agent.loss) == (
              6, 1., 0.5, False, (8, 16), 'vtrace')
  assert [type(value) for value in (
      agent.batch_size, agent.discount, agent.learning_rate, agent.autoencoder,
      agent.conv_channels[0], agent.loss)] == [int, float, float, bool, int, str]
  json.dumps(dataclasses.asdict(agent))


@pytest.mark.parametrize('name, value', [
    ('conv_channels', ()), ('conv_channels', (16, 0)), ('conv_channels', 16),
    ('conv_channels', '16'), ('conv_channels', (16., 32.)),
    ('conv_channels', None), ('conv_channels', ((16,),)),
    ('samples_per_insert', 5.), ('batch_size', 2),
    ('min_replay_size', 65), ('min_replay_size', 3),
])
def test_agent_settings_are_checked(name, value):
  assert name in error_of(agent_config.ImpalaPPOConfig, **{name: value})


def test_fifo_has_room_for_the_online_part_of_a_batch():
  # 30 online trajectories are 8 items of 4 environments.
  flags = ['--replay_sampler=fifo', '--batch_size=60', '--samples_per_insert=2',
           '--envs_per_actor=4']
  assert settings_of(*flags, '--replay_capacity', '9').agent.replay_capacity == 9
  assert flag_error(*flags, '--replay_capacity', '8') == (
      'replay_sampler fifo needs a replay_capacity of at least 9 here, one item '
      'more than the online part of a batch takes, not 8.')


def test_fifo_replays_whole_times():
  settings = {'batch_size': 5, 'samples_per_insert': 2.5}
  agent_config.ImpalaPPOConfig(**settings)
  assert 'samples_per_insert' in error_of(
      agent_config.ImpalaPPOConfig, replay_sampler='fifo', **settings)


def test_replay_settings_do_not_matter_without_replay():
  config = agent_config.ImpalaPPOConfig(samples_per_insert=1.,
                                        min_replay_size=100)
  assert not config.uses_replay and config.online_batch_size == 6
  config = agent_config.ImpalaPPOConfig()
  assert config.uses_replay
  assert (config.online_batch_size, config.replay_batch_size) == (2, 4)
  assert config.timesteps_per_learner_step == 2 * 32


@pytest.mark.parametrize('values, told', [
    ({'replay_port': 65_535, 'num_replay_shards': 2, 'num_actors': 2},
     'replay_port'),
    ({'num_replay_shards': 3, 'num_actors': 2}, 'num_replay_shards'),
])
def test_run_settings_are_checked(values, told):
  assert told in error_of(run_config.RunConfig, 'run', **values)


# Flags.


def test_defaults_are_those_of_the_configs():
  command, settings = settings_lib.parse_train([])
  assert command == settings_lib.TrainCommand(
      config=None, resume=False, lp_launch_type='local_mp')
  assert settings.environment == games.EnvironmentConfig()
  # What follows from the game and where files go are settled here.
  assert settings.agent == agent_config.ImpalaPPOConfig(
      frame_stack=games.ATARI_FRAME_STACK)
  assert settings.run == run_config.RunConfig(os.path.abspath('runs/pong'))
  assert settings.run.num_actors == machine.cores()


def test_flags_override_defaults(tmp_path):
  command, settings = settings_lib.parse_train([
      '--game', 'CartPole-v1', '--loss', 'vtrace', '--discount=0.5',
      '--no-autoencoder', '--conv_channels', '8,16,32', '--seed', '7',
      '--learning_rate', '1e-4', '--target_return', '-18',
      '--lp_launch_type=local_mt', '--run_dir', str(tmp_path), '--num_gpus=0'])
  assert command == settings_lib.TrainCommand(lp_launch_type='local_mt')
  assert settings == settings_lib.Settings(
      games.EnvironmentConfig(game='CartPole-v1'),
      agent_config.ImpalaPPOConfig(
          loss='vtrace', discount=0.5, autoencoder=False, learning_rate=1e-4,
          conv_channels=(8, 16, 32), frame_stack=1),
      run_config.RunConfig(str(tmp_path), seed=7, target_return=-18., num_gpus=0))
  assert settings_of('--seed', '1', '--seed', '2').run.seed == 2


def test_flags_of_the_evaluation():
  assert evaluate.parse(
      ['--run_dir', 'x', 'y,z', '--episodes=3', '--seed', '2', '--sampled',
       '--sticky', '0.25', '--checkpoint', '7', '--json']
  ) == evaluate.EvaluateCommand(('x', 'y,z'), episodes=3, seed=2, sampled=True,
                                sticky=0.25, checkpoint='7', json=True)
  assert evaluate.parse(
      ['--run_dir', 'x']) == evaluate.EvaluateCommand(
          ('x',), episodes=30, seed=1)
  filmed = evaluate.parse(['--run_dir', '~/x', '--video', '~/y.MP4'])
  assert (filmed.episodes, filmed.run_dir, filmed.video) == (
      1, (os.path.expanduser('~/x'),), os.path.expanduser('~/y.MP4'))
  for argv, told in (([], '--run_dir is missing'),
                     (['--run_dir', 'x', '--episodes', '0'], 'episodes must'),
                     (['--run_dir', 'x', '--sticky', '2'], 'sticky must'),
                     (['--run_dir', 'x', '--video', 'y.gif'], 'an .mp4 file'),
                     (['--run_dir', 'x', 'y', '--video', 'z.mp4'], 'of one run'),
                     (['--run_dir', 'x', '--seeds', '0'], 'mean --seed?')):
    assert told in error_of(evaluate.parse, argv)


def test_flags_of_the_inspection():
  assert inspect.parse(
      ['--run_dir', '~/x', '--sample', '3', '--out', '~/y', '--gif']
  ) == inspect.InspectCommand(run_dir=os.path.expanduser('~/x'), sample=3,
                              out=os.path.expanduser('~/y'), gif=True)
  assert inspect.parse(['--address', 'h:1', '--watch', '--seconds', '3']
                       ) == inspect.InspectCommand(
                           address='h:1', watch=True, seconds=3.)
  for argv, told in (([], 'give the --run_dir'),
                     (['--run_dir', 'x', '--sample', '1'], 'belong together'),
                     (['--run_dir', 'x', '--out', 'y'], 'belong together'),
                     (['--address', 'h:1', '--sample', '1', '--out', 'y'],
                      "the run's settings"),
                     (['--run_dir', 'x', '--gif'], '--gif is for'),
                     (['--run_dir', 'x', '--sample', '1', '--out', 'y', '--json'],
                      'another command'),
                     (['--run_dir', 'x', '--seconds', '0'], 'seconds must')):
    assert told in error_of(inspect.parse, argv)


def test_names_of_settings_are_unique():
  # One flag must not set two things.
  names = [field.name for config_class in (
      *SECTIONS.values(), settings_lib.TrainCommand)
           for field in dataclasses.fields(config_class)]
  assert len(names) == len(set(names))


@pytest.mark.parametrize('parse, config_classes', [
    (settings_lib.parse_train, [*SECTIONS.values(), settings_lib.TrainCommand]),
    (evaluate.parse, [evaluate.EvaluateCommand]),
    (export.parse, [export.ExportCommand]),
    (inspect.parse, [inspect.InspectCommand]),
])
def test_help_describes_each_flag(parse, config_classes, monkeypatch, capsys):
  monkeypatch.setenv('COLUMNS', '80')
  with pytest.raises(SystemExit) as ended:
    parse(['--help_all'])
  assert not ended.value.code
  _, *lines = capsys.readouterr().out.splitlines()  # After the usage.
  assert max(map(len, lines)) <= 80
  told = ' '.join(' '.join(line.strip('│') for line in lines).split())
  for config_class in config_classes:
    for field in dataclasses.fields(config_class):
      if field.name in NO_FLAG:
        continue
      # The whole of what the docstring says of it, and its default after that.
      said, = re.findall(rf'^    {field.name}: ((?:.|\n      )*)',
                         config_class.__doc__, re.MULTILINE)
      said = re.escape(' '.join(said.split()))
      assert re.search(rf'--{field.name},? \S+( \.\.\.)? {said} '
                       r'\((default: .|required\))', told), field.name
  assert ('--no_autoencoder' in told) == (parse is settings_lib.parse_train)
  assert 'frame_stack' not in told


def test_help_requires_no_flag_that_a_command_can_do_without(capsys):
  for parse in (evaluate.parse, export.parse):
    with pytest.raises(SystemExit):
      parse(['--help'])
    told = ' '.join(capsys.readouterr().out.replace('│', ' ').split())
    assert '(default: none, with --pretrained)' in told
  with pytest.raises(SystemExit):
    plans.parse(['--help_all'])
  told = capsys.readouterr().out
  assert '--seeds ' in told and not re.search(r'--(seed|run_dir) ', told)


def test_help_is_short_and_all_of_it_is_a_flag_away(capsys):
  for argv in (['--help'], ['--seed', '1', '-h']):
    with pytest.raises(SystemExit) as ended:
      settings_lib.parse_train(argv)
    assert not ended.value.code
    told = capsys.readouterr().out
    assert len(told.splitlines()) < 90 and '--help_all shows all' in told
    assert re.search(r'--game TEXT .*--loss .*--max_timesteps INT ', told, re.DOTALL)
    assert '--vtrace_lambda' not in told
  with pytest.raises(SystemExit):
    settings_lib.parse_train(['--help-all'])
  assert '--vtrace_lambda' in capsys.readouterr().out
  assert settings_of('--vtrace_lambda', '0.5').agent.vtrace_lambda == 0.5


def test_run_dir_follows_from_the_game():
  run_dir = settings_of('--game', 'ALE/Pong-v5').run.run_dir
  assert run_dir == os.path.abspath('runs/ale_pong_v5')
  home = os.path.expanduser('~')
  assert settings_of('--run_dir=~/here').run.run_dir == os.path.join(home, 'here')
  assert evaluate.parse(
      ['--run_dir=~/here']).run_dir == (os.path.join(home, 'here'),)
  # Processes may start in another directory.
  assert os.path.isabs(settings_of('--run_dir', 'here').run.run_dir)


@pytest.mark.parametrize('argv, told', [
    (['--learnign_rate', '1'], 'did you mean --learning_rate?'),
    (['--learnign_rate=1'], 'did you mean --learning_rate?'),
    (['--learning-rte', '1'], 'did you mean --learning_rate?'),
    (['--no-autoencodr'], 'did you mean --no_autoencoder?'),
    (['--num_gpu', '1'], 'did you mean --num_gpus?'),
    (['--resum'], 'did you mean --resume?'),
    # No abbreviations.
    (['--disc', '1'], 'did you mean --discount?'),
    (['--learning', '1'], "unknown flag '--learning'"),
    (['--no_such_flag'], "unknown flag '--no_such_flag'"),
    (['-x'], "unknown flag '-x'"),
    (['--frame_stack', '1'], "unknown flag '--frame_stack'"),
    (['pong'], "unexpected 'pong'"),
    (['--autoencoder', 'false'], "unexpected 'false'"),
    (['--autoencoder=false'], "unexpected 'false'"),
    (['--discount'], "value for argument '--discount'"),
    (['--discount', '--seed', '1'], "value for argument '--discount'"),
    (['--seed', 'one'], "seed must be an integer in [0, 9223372036854775807], "
     "not 'one'."),
    (['--seed', '1.0'], 'seed must be an integer'),
    (['--seed', '9' * 5000], 'seed must be an integer'),
    (['--discount', 'nan'], 'discount must be a number in [0, 1], not nan.'),
    (['--target_return', '-inf'], 'target_return must be a number'),
    (['--conv_channels', '8,x'], 'conv_channels must be'),
    (['--conv_channels='], 'conv_channels must be'),
    (['--batch_size', 'none'], 'batch_size must be an integer'),
    (['--loss', 'dqn'], 'loss must be one of ppo, vtrace'),
    (['--lp_launch_type', 'vertex'], 'must be one of local_mp, local_mt'),
    (['--run_dir='], 'run_dir must be a text of 1 to 1000'),
    (['--run_dir', '', '--resume'], 'run_dir must be a text of 1 to 1000'),
    (['--config', 'no/such\nfile'], 'cannot be read: no such file or directory'),
    (['--config', '.'], 'cannot be read: is a directory'),
])
@pytest.mark.parametrize('encoding', ['utf-8', 'ascii'])
def test_bad_flags_are_told_in_one_line(argv, told, encoding, monkeypatch, capsys):
  # Of terminals, as tyro draws what it says for them.
  monkeypatch.setattr(type(sys.stdout), 'encoding', encoding)
  with pytest.raises(SystemExit) as stopped:
    settings_lib.from_train_flags(argv)
  assert stopped.value.code == 2
  output = capsys.readouterr()
  assert output.out == ''
  assert output.err.count('\n') == 1 and output.err.endswith('\n')
  assert 'error: ' in output.err and told in output.err
  assert len(output.err) < 250


# Files.


def test_files_override_defaults_and_flags_override_files(tmp_path):
  path = tmp_path / 'mine.yaml'
  path.write_text("""
# A comment.
environment: {game: CartPole-v1}
agent:
  learning_rate: 1e-4
  conv_channels: [8, 16]
  autoencoder: false
  discount: 1
run:
  run_dir: here
  target_return: null
  seed: 3
""")
  settings = settings_of('--config', str(path))
  assert settings == settings_lib.Settings(
      games.EnvironmentConfig('CartPole-v1'),
      agent_config.ImpalaPPOConfig(learning_rate=1e-4, conv_channels=(8, 16),
                                   autoencoder=False, discount=1.),
      run_config.RunConfig(os.path.abspath('here'), seed=3))
  changed = settings_of('--config', str(path), '--seed', '4', '--autoencoder',
                        '--run_dir', 'there')
  assert changed.run.seed == 4 and changed.agent.autoencoder
  assert changed.run.run_dir == os.path.abspath('there')
  assert changed.agent.conv_channels == (8, 16)


def test_settings_are_checked_together_once_all_are_known(tmp_path):
  path = tmp_path / 'mine.json'
  path.write_text('{"agent": {"batch_size": 8}}')
  assert 'batch_size must be a multiple of' in flag_error('--config', str(path))
  settings = settings_of('--config', str(path), '--samples_per_insert', '2')
  assert settings.agent.online_batch_size == 4


@pytest.mark.parametrize('text, told', [
    ('agent: {autoencoder: "false"}', "must be true or false, not 'false'"),
    ('agent: {autoencoder: no}', "must be true or false, not 'no'"),
    ('agent: {batch_size: 12.0}', 'agent.batch_size must be an integer'),
    ('agent: {batch_size: true}', 'agent.batch_size must be an integer'),
    ('agent: {batch_size: "12"}', 'agent.batch_size must be an integer'),
    ('agent: {batch_size: null}', 'agent.batch_size must be an integer'),
    ('agent: {batch_size: [12]}', 'agent.batch_size must be an integer'),
    ('agent: {batch_size: {batch_size: 12}}', 'agent.batch_size must be'),
    ('agent: {batch_size: 1_2}', 'agent.batch_size must be an integer'),
    ('agent: {conv_channels: 16}', 'agent.conv_channels must be one or more'),
    ('agent:\n  conv_channels: 8,16', 'agent.conv_channels must be one or more'),
    ('agent: {conv_channels: []}', 'agent.conv_channels must be one or more'),
    ('agent: {discount: .nan}', 'agent.discount must be a number in [0, 1]'),
    ('agent: {discount: 1e999}', 'agent.discount must be a number in [0, 1]'),
    ('agent: {loss: dqn}', 'agent.loss must be one of ppo, vtrace'),
    ('agent: {frame_stack: x}', 'agent.frame_stack must be an integer'),
    ('run: {seed: 010}', 'run.seed must be an integer'),
    ('run: {seed: 2020-01-01}', 'run.seed must be an integer'),
    ('environment: {game: 3}', 'environment.game must be a text, not 3'),
    ('agent: {learnign_rate: 1}', 'did you mean agent.learning_rate?'),
    ('agent: {seed: 1}', 'did you mean run.seed?'),
    ('agent: {colour: 1}', "unknown setting 'colour' in agent"),
    ('agent: {1: 1}', 'unknown setting 1 in agent'),
    ('agents: {}', 'did you mean agent?'),
    ('seed: 1', 'did you mean run.seed?'),
    ('colour: 1', 'there are environment, agent, run'),
    ('agent:', 'agent must be settings by name, not none'),
    ('agent: [1]', 'agent must be settings by name, not [1]'),
    ('', 'must have the sections environment, agent, run, not none'),
    ('agent', 'must have the sections environment, agent, run'),
    ('- agent', 'must have the sections environment, agent, run'),
    ('agent: {batch_size: 12, batch_size: 24}', "'batch_size' stands in it twice"),
    ('run: {seed: 1}\nrun: {seed: 2}', "'run' stands in it twice"),
    ('agent: batch_size: 12', 'line 1: mapping values are not allowed here'),
    ('a: 1\n---\nb: 2', 'another document'),
    ('? [1, 2]\n: 3', 'unhashable key'),
    ('run: {seed: !!bool maybe}', 'a value does not fit its tag'),
    ('run: {seed: !!timestamp x}', 'a value does not fit its tag'),
    ('run: !!python/object:os.system {}', 'could not determine a constructor'),
    ('agent: &a [*a]', 'agent must be settings by name'),
    ('\t', 'cannot start any token'),
    ('run: {seed: ' + '9' * 5000 + '}', 'cannot be read'),
    ('[' * 100_000, 'it is nested too deeply'),
    ('agent: ' + '{a: ' * 100_000, 'it is nested too deeply'),
    ('- ' * 100_000, 'it is nested too deeply'),
])
def test_bad_yaml_is_told_in_one_line(tmp_path, text, told):
  assert told in file_error(tmp_path, text)


@pytest.mark.parametrize('text, told', [
    ('', 'Expecting value'),
    ('no json\nat all', 'Expecting value'),
    ('3', 'must have the sections environment, agent, run, not 3'),
    ('{"agent": {"autoencoder": "false"}}', 'must be true or false'),
    ('{"agent": {"discount": NaN}}', 'agent.discount must be a number in [0, 1]'),
    ('{"agent": {"learnign_rate": 1}}', 'did you mean agent.learning_rate?'),
    ('{"run": {"seed": 1, "seed": 2}}', "'seed' stands in it twice"),
    ('{"run": {"seed": ' + '9' * 5000 + '}}', 'cannot be read'),
    ('[' * 100_000, 'it is nested too deeply'),
    ('{"agent": ' * 100_000, 'it is nested too deeply'),
])
def test_bad_json_is_told_in_one_line(tmp_path, text, told):
  assert told in file_error(tmp_path, text, 'config.json')
  # As the config of a run.
  assert told in error_of(settings_lib.load, str(tmp_path))


def test_a_file_that_is_no_text(tmp_path):
  path = tmp_path / 'config.yaml'
  path.write_bytes(b'run: {run_dir: "\xff"}')
  assert 'it is not UTF-8 text' in flag_error('--config', str(path))


@pytest.mark.parametrize('text, told', [
    ('{}', 'has no environment'),
    ('{"environment": {}, "run": {"run_dir": "x"}}', 'has no agent'),
    ('{"environment": {}, "agent": {}, "run": {}}', 'run has no run_dir'),
    ('{"environment": {}, "agent": {"batch_size": 2}, "run": {"run_dir": "x"}}',
     'batch_size must be a multiple'),
])
def test_config_of_no_run(tmp_path, text, told):
  (tmp_path / 'config.json').write_text(text)
  message = error_of(settings_lib.load, str(tmp_path))
  assert told in message and str(tmp_path / 'config.json') in message


def test_directory_without_a_run(tmp_path):
  assert str(tmp_path) in error_of(settings_lib.load, str(tmp_path))
  missing = str(tmp_path / 'missing')
  assert missing in error_of(settings_lib.load, missing)


# Runs.


def test_a_run_from_before_there_was_a_setting_does_what_it_did(tmp_path):
  settings_lib.save(settings_of('--run_dir', str(tmp_path)))
  path = tmp_path / 'config.json'
  content = json.loads(path.read_text())
  assert content['agent'].pop('value_loss') == 'hl_gauss'
  path.write_text(json.dumps(content))
  assert settings_lib.load(str(tmp_path)).agent.value_loss == 'squared'
  assert settings_of('--config', str(path)).agent.value_loss == 'squared'
  content = {'agent': {'latent_size': 8}}  # Somebody's own, of today.
  path.write_text(json.dumps(content))
  assert settings_of('--config', str(path)).agent.value_loss == 'hl_gauss'


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


def test_what_a_run_was_made_with_is_saved(tmp_path):
  settings_lib.save(settings_of('--run_dir', str(tmp_path)))
  content = json.loads((tmp_path / settings_lib.CONFIG_FILE).read_text())
  versions = content['versions']
  for package in ('dm-acme', 'dm-reverb', 'tensorflow', 'ale-py'):
    assert versions[package] == importlib.metadata.version(package)
  assert versions['python'].startswith('3.')
  with open('/proc/cpuinfo') as f:
    names = re.findall(r'model name\s*: (.*)', f.read())
  assert content['processor'] == (names[0] if names else None)
  assert content['cores'] == machine.cores()


@pytest.mark.slow
def test_the_commit_is_saved(tmp_path):
  checkout = tmp_path / 'checkout'
  for package in ('agents', 'programs', 'launch'):
    shutil.copytree(os.path.join(ROOT, package), checkout / package,
                    ignore=shutil.ignore_patterns('__pycache__'))
  outside = {key: value for key, value in os.environ.items()
             if not key.startswith('GIT_')}  # As set where a hook runs tests.

  def git(*args):
    return subprocess.run(
        ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *args], text=True,
        cwd=checkout, check=True, env=outside, capture_output=True).stdout.strip()

  def saved(code=checkout, **env):
    (tmp_path / 'run').mkdir(exist_ok=True)
    subprocess.run(
        [sys.executable, '-c', 'import sys; from launch import settings; '
         'settings.save(settings.from_train_flags(sys.argv[1:]))',
         '--run_dir', str(tmp_path / 'run')],
        cwd=code, check=True, env={**outside, 'PYTHONDONTWRITEBYTECODE': '1', **env})
    content = json.loads((tmp_path / 'run' / 'config.json').read_text())
    return content['commit'], content['dirty']

  assert saved() == (None, None)
  git('init', '-q')
  assert saved() == (None, None)  # There is no commit yet.
  git('add', '.')
  git('commit', '-q', '-m', 'first')
  commit = git('rev-parse', 'HEAD')
  assert saved() == (commit, False)
  assert saved(PATH='') == (None, None)
  with open(checkout / 'launch' / 'train.py', 'a') as f:
    f.write('# Changed.\n')
  assert saved() == (commit, True)
  # Installed somewhere in another checkout.
  shutil.copytree(checkout / 'launch', checkout / 'lib' / 'launch')
  for package in ('agents', 'programs'):
    shutil.copytree(checkout / package, checkout / 'lib' / package)
  assert saved(checkout / 'lib') == (None, None)


@pytest.mark.parametrize('path', sorted(glob.glob(
    os.path.join(ROOT, 'benchmarks', 'results', '**', 'config.json'),
    recursive=True)), ids=lambda path: path.split('results/')[1])
def test_configs_of_earlier_runs_are_read(path):
  with open(path) as f:
    content = json.load(f)
  loaded = dataclasses.asdict(settings_lib.load(os.path.dirname(path)))
  loaded = json.loads(json.dumps(loaded))  # Tuples are lists there.
  for section in SECTIONS:
    assert content[section].items() <= loaded[section].items()
  settings = settings_of('--config', path)
  assert settings.run.run_dir == os.path.abspath(
      f'runs/{content["environment"]["game"]}')


def test_a_new_run_from_the_config_of_another(tmp_path):
  old, new = tmp_path / 'old', tmp_path / 'new'
  old.mkdir()
  settings = settings_of('--run_dir', str(old), '--game', 'breakout',
                         '--batch_size', '24')
  settings_lib.save(settings)
  path = str(old / settings_lib.CONFIG_FILE)
  # It does not go into the old one's directory.
  again = settings_of('--config', path)
  assert again.run.run_dir == os.path.abspath('runs/breakout')
  again = settings_of('--config', path, '--run_dir', str(new))
  assert again.run.run_dir == str(new)
  assert (again.environment, again.agent) == (settings.environment, settings.agent)
  # Frames are stacked as the new game wants it.
  assert settings_of('--config', path,
                     '--game', 'CartPole-v1').agent.frame_stack == 1


def test_resuming_keeps_all_but_the_given(tmp_path):
  run_dir = ['--run_dir', str(tmp_path)]
  base = settings_of(*run_dir, '--game', 'CartPole-v1', '--latent_size', '32',
                     '--seed', '3', '--target_return', '400')
  settings_lib.save(base)
  command, resumed = settings_lib.parse_train([*run_dir, '--resume'])
  assert command.resume and resumed == base
  resumed = settings_of(*run_dir, '--resume', '--max_timesteps', '99',
                        '--target_return', 'none')
  assert resumed.run.max_timesteps == 99 and resumed.run.target_return is None
  resumed.run.max_timesteps = base.run.max_timesteps
  resumed.run.target_return = 400.
  assert resumed == base
  # The defaults, the run, a file, flags: each overrides those before it.
  path = tmp_path / 'more.yaml'
  path.write_text('run: {seed: 4, max_timesteps: 50}')
  resumed = settings_of(*run_dir, '--resume', '--config', str(path),
                        '--max_timesteps', '99')
  assert (resumed.agent.latent_size, resumed.run.seed,
          resumed.run.max_timesteps) == (32, 4, 99)


def test_a_moved_run_resumes_where_it_is(tmp_path):
  old, new = tmp_path / 'old', tmp_path / 'new'
  old.mkdir()
  settings_lib.save(settings_of('--run_dir', str(old), '--seed', '3'))
  old.rename(new)
  resumed = settings_of('--run_dir', str(new), '--resume')
  assert resumed.run == run_config.RunConfig(str(new), seed=3)


def test_override_is_checked_against_the_base(tmp_path):
  flags = ['--run_dir', str(tmp_path)]
  # Without the base this would not do: the default batch is no multiple of 5.
  settings_lib.save(settings_of(*flags, '--batch_size', '10',
                                '--samples_per_insert', '2'))
  resumed = settings_of(*flags, '--resume', '--samples_per_insert', '5')
  assert resumed.agent.online_batch_size == 2
  assert 'batch_size' in flag_error(*flags, '--resume',
                                    '--samples_per_insert', '4')


# All of it, for any settings.


def values_of(annotation):
  kind, limits = plain(annotation)
  origin, args = typing.get_origin(annotation), typing.get_args(annotation)
  if origin is typing.Union:
    return st.none() | values_of(args[0])
  if typing.get_origin(kind) is tuple:
    return st.lists(values_of(typing.get_args(kind)[0]), min_size=1,
                    max_size=4).map(tuple)
  if origin is typing.Literal:
    return st.sampled_from(args)
  if kind is bool:
    return st.booleans()
  if kind is str:
    # A run_dir must have none of those left out.
    return st.text(st.characters(categories=('L', 'N', 'P', 'S', 'Zs'),
                                 exclude_characters='[\\'),
                   min_size=1, max_size=20)
  if kind is int:
    return st.integers(limits.low, limits.le)
  return st.floats(limits.low, limits.le, exclude_min=limits.gt is not None)


@st.composite
def any_settings(draw):
  values = {
      section: {name: draw(values_of(annotation)) for name, annotation in
                typing.get_type_hints(config_class, include_extras=True).items()}
      for section, config_class in SECTIONS.items()}
  agent, run = values['agent'], values['run']
  values['environment']['env_arg'] = [
      f'name={value}' for value in values['environment']['env_arg']]
  # What one setting asks of another.
  replays = draw(st.integers(1, 1000))
  agent['samples_per_insert'] = float(replays)
  agent['batch_size'] = replays * draw(st.integers(1, 1000))
  if agent['replay_sampler'] == 'fifo':
    agent['replay_capacity'] = max(
        agent['replay_capacity'], agent['batch_size'] // replays + 1, 2)
  agent['min_replay_size'] = min(agent['min_replay_size'],
                                 agent['replay_capacity'], agent['queue_capacity'])
  run['num_replay_shards'] = min(run['num_replay_shards'], run['num_actors'])
  run['replay_port'] = min(run['replay_port'], 65_536 - run['num_replay_shards'])
  run['listen'] = 'loopback' if run['isolate'] else draw(
      st.sampled_from(['loopback', 'all']) | st.ip_addresses().map(str).filter(
          lambda address: address not in ('0.0.0.0', '::')))
  return settings_lib.from_layers([values])


def as_flags(settings):
  for section in SECTIONS:
    for name, value in vars(getattr(settings, section)).items():
      if name in NO_FLAG:
        continue
      if isinstance(value, bool):
        yield f'--{name}' if value else f'--no-{name}'
      elif name == 'env_arg':  # Each of several arguments is one of the shell's.
        yield from [f'--{name}', *value] if value else ()
      else:
        text = (','.join(map(str, value)) if isinstance(value, tuple)
                else 'none' if value is None else str(value))
        yield f'--{name}={text}'


@pytest.mark.slow
@hypothesis.settings(max_examples=50)
@hypothesis.given(any_settings())
def test_settings_survive_flags_and_files(settings):
  assert settings_of(*as_flags(settings)) == settings
  with tempfile.TemporaryDirectory() as directory:
    for name in ('mine.json', 'mine.yaml'):  # JSON is YAML.
      path = os.path.join(directory, name)
      with open(path, 'w') as f:
        json.dump(dataclasses.asdict(settings), f, ensure_ascii=False)
      assert settings_lib.from_layers([settings_lib.read_config(path)]) == settings
    settings.run.run_dir = directory
    settings_lib.save(settings)
    assert settings_lib.load(directory) == settings
    path = os.path.join(directory, settings_lib.CONFIG_FILE)
    assert settings_of('--config', path, '--run_dir', directory) == settings
