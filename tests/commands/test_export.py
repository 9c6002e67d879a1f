"""Policies that are kept: loaded, exported, and run by TensorFlow alone."""

import dataclasses
import pathlib
import sys

import ale_py
from ale_py import roms
from ale_py import vector_env
import numpy as np
import pytest
import tensorflow as tf

from agents import environments
from agents.impala_ppo import builder as builder_lib
import launch
from launch import export
from launch import settings as settings_lib
from tests import fresh
from tests.commands import runs

# What a program that has TensorFlow and nothing else does with an export.
ACT = """
import importlib.util
import numpy as np
import tensorflow as tf
for module in ('agents', 'launch', 'sonnet', 'acme', 'gymnasium', 'reverb'):
  assert importlib.util.find_spec(module) is None, module
outputs = {}
for name in ('pong', 'cartpole'):
  model = tf.saved_model.load(name)
  inputs = np.load(f'{name}.npz')
  for signature in model.signatures:
    found = model.signatures[signature](
        **{k: tf.constant(v) for k, v in inputs.items()
           if k in model.signatures[signature].structured_input_signature[1]})
    np.savez(f'{name}_{signature}.npz', **{k: v.numpy() for k, v in found.items()})
"""


@pytest.fixture(scope='module')
def pong(tmp_path_factory):
  return runs.write_policy(tmp_path_factory.mktemp('pong') / 'run', '--game', 'pong')


@pytest.fixture(scope='module')
def cartpole(tmp_path_factory):
  return runs.write_policy(tmp_path_factory.mktemp('cartpole') / 'run', '--game',
                   'CartPole-v1')


def play(num_steps, rom='pong'):
  """Plays a game in ALE itself, and in the environment of training.

  Returns:
    The screens of the one [N, 4, 2, height, 160], and the observations of the other
    [N, 42, 42, 4].
  """
  environment = environments.VectorEnvironment(vector_env.AtariVectorEnv(
      rom, 1, img_height=42, img_width=42, stack_num=4, noop_max=0,
      repeat_action_probability=0., reward_clipping=False, use_fire_reset=False),
      seed=0)
  environment.reset()
  emulator = ale_py.ALEInterface()
  emulator.setFloat('repeat_action_probability', 0.)
  emulator.loadROM(roms.get_rom_path(rom))
  emulator.reset_game()
  actions = emulator.getMinimalActionSet()
  first = np.stack([emulator.getScreenGrayscale()] * 2)
  screens = [np.zeros_like(first)] * 3 + [first]
  shown, seen = [], []
  random = np.random.default_rng(2)
  for _ in range(num_steps):
    action = random.integers(len(actions))
    seen.append(environment.step(np.array([action], np.int32)).observation[0])
    last = []
    for _ in range(4):
      emulator.act(actions[action])
      last.append(emulator.getScreenGrayscale())
    screens.append(np.stack(last[-2:]))
    shown.append(np.stack(screens[-4:]))
  environment.close()
  return np.stack(shown), np.stack(seen)


@pytest.mark.parametrize('rom, height', [('pong', 210), ('air_raid', 250)])
def test_preprocessing_is_that_of_the_environment(rom, height):
  screens, observations = play(40, rom)
  assert screens.shape[-2:] == (height, 160)
  made = export.preprocess(screens, 42).numpy()
  # OpenCV's sums are of another order: a grey level, of one pixel in many.
  difference = np.abs(made.astype(int) - observations)
  assert difference.max() <= 1 and (difference > 0).mean() < 2e-4
  assert observations.std() > 10


@pytest.mark.slow
def test_exports_act_with_tensorflow_alone(pong, cartpole, tmp_path, capsys):
  expected = {}
  for name, run_dir in (('pong', pong), ('cartpole', cartpole)):
    assert export.main(['--run_dir', run_dir, '--out', str(tmp_path / name)]) == 0
    policy = launch.load_policy(run_dir)
    inputs = {'observation': np.random.default_rng(3).uniform(
        -1, 1, [5, 4]).astype(np.float32)}
    if name == 'pong':
      screens, observation = play(5)
      inputs = {'observation': observation, 'screens': screens}
    np.savez(tmp_path / f'{name}.npz', **inputs)
    logits, values = policy.networks.actor_critic(inputs['observation'])
    expected[name] = {'logits': logits.numpy(), 'value': values.numpy(),
                      'action': policy(inputs['observation'])}
  assert 'exported to' in capsys.readouterr().out
  bare = fresh.Environment(tmp_path / 'venv')
  bare.link(fresh.needed('tensorflow'))
  acted = bare.run(tmp_path, 'python', '-c', ACT)
  assert acted.returncode == 0, acted.stderr
  files = sorted(path.name for path in tmp_path.glob('*_*.npz'))
  assert files == ['cartpole_serving_default.npz', 'pong_act_on_screens.npz',
                   'pong_serving_default.npz']
  for file in files:
    outputs = np.load(tmp_path / file)
    wanted = expected[file.partition('_')[0]]
    assert sorted(outputs) == ['action', 'logits', 'value']
    np.testing.assert_array_equal(outputs['action'], wanted['action'])
    # A grey level of difference in a pixel moves the logits a little.
    np.testing.assert_allclose(outputs['logits'], wanted['logits'], atol=1e-2,
                               rtol=1e-3)
    np.testing.assert_allclose(outputs['value'], wanted['value'], atol=1e-2,
                               rtol=1e-3)
  # The README's own snippet, too.
  snippet = (tmp_path / 'pong' / 'README.md').read_text().split('```')[1]
  ran = bare.run(tmp_path / 'pong', 'python', '-c',
                 snippet.removeprefix('python\n'))
  assert ran.returncode == 0 and 'tf.Tensor([' in ran.stdout, ran.stderr


@pytest.mark.parametrize('arguments, size', [
    ([], 42), (['--env_arg', 'img_height=50', 'img_width=50'], None),
    (['--frame_size', '200'], None), (['--game', 'CartPole-v1'], None)])
def test_screens_are_taken_where_frames_are_made_of_them_as_here(
    arguments, size, tmp_path):
  policy = launch.load_policy(runs.write_policy(tmp_path / 'run', *arguments))
  assert export.screens_size(policy) == size


@pytest.mark.slow
@pytest.mark.parametrize('game', ['pong', 'cartpole'])
def test_onnx_runs_the_same_policy(game, request, tmp_path):
  runtime = pytest.importorskip('onnxruntime')
  pytest.importorskip('tf2onnx')
  run_dir = request.getfixturevalue(game)
  assert export.main(['--run_dir', run_dir, '--onnx', '--out',
                      str(tmp_path / 'out')]) == 0
  session = runtime.InferenceSession(str(tmp_path / 'out' / 'model.onnx'),
                                     providers=['CPUExecutionProvider'])
  policy = launch.load_policy(run_dir)
  spec = policy.environment_spec.observations
  observation = np.random.default_rng(0).integers(
      0, 200, [7, *spec.shape]).astype(spec.dtype)
  outputs = dict(zip([output.name for output in session.get_outputs()],
                     session.run(None, {'observation': observation})))
  logits, values = policy.networks.actor_critic(observation)
  np.testing.assert_allclose(outputs['logits'], logits, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(outputs['value'], values, rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(outputs['action'], policy(observation))


def test_without_the_converter_the_extra_is_named(cartpole, tmp_path, monkeypatch,
                                                  capsys):
  monkeypatch.setitem(sys.modules, 'tf2onnx', None)
  with pytest.raises(SystemExit) as ended:
    export.main(['--run_dir', cartpole, '--onnx', '--out', str(tmp_path / 'x')])
  assert ended.value.code == 2
  assert 'pip install "impala-ppo[onnx]"' in capsys.readouterr().err
  assert not (tmp_path / 'x').exists()


def test_a_policy_acts_on_one_observation_or_on_many(cartpole):
  policy = launch.load_policy(cartpole)
  observations = np.random.default_rng(0).uniform(-5, 5, [50, 4])
  actions = policy(observations)
  assert actions.dtype == np.int32 and len(set(actions.tolist())) == 2
  assert [policy(observation) for observation in observations] == actions.tolist()
  logits, _ = policy.networks.actor_critic(observations.astype(np.float32))
  np.testing.assert_array_equal(actions, np.argmax(logits, axis=-1))
  with pytest.raises(ValueError, match='observations must be .4.'):
    policy(np.zeros([3]))


class NarrowBuilder(builder_lib.ImpalaPPOBuilder):
  """Networks of one's own, which the settings do not tell of."""

  def make_networks(self, environment_spec):
    narrow = dataclasses.replace(self._config, latent_size=5)
    return builder_lib.ImpalaPPOBuilder(narrow).make_networks(environment_spec)


def test_networks_of_ones_own_are_made_by_their_builder(tmp_path):
  run_dir = runs.write_policy(
      tmp_path / 'run', '--game', 'CartPole-v1', make_builder=NarrowBuilder)
  with pytest.raises(ValueError, match='another network'):
    launch.load_policy(run_dir)
  policy = launch.load_policy(run_dir, make_builder=NarrowBuilder)
  assert policy.networks.actor_critic.encoder(np.ones([1, 4])).shape == [1, 5]
  assert policy(np.zeros(4)) in (0, 1)


def test_a_sampled_policy_draws_from_its_distribution(cartpole):
  policy = launch.load_policy(cartpole, sampled=True, seed=5)
  observation = np.full([4000, 4], 0.1)
  actions = policy(observation)
  logits, _ = policy.networks.actor_critic(observation[:1].astype(np.float32))
  probability = tf.nn.softmax(logits)[0, 1].numpy()
  assert 0.02 < probability < 0.98
  deviation = np.sqrt(probability * (1 - probability) / len(actions))
  assert abs(actions.mean() - probability) < 4 * deviation


def test_pretrained_policies_are_small_and_have_a_card():
  directory = pathlib.Path(settings_lib.pretrained('pong'))
  files = [path for path in directory.rglob('*') if path.is_file()]
  assert sum(path.stat().st_size for path in files) < 3_000_000
  card = (directory / 'README.md').read_text()
  settings = settings_lib.load(str(directory))
  assert f'--seed {settings.run.seed}' in card and 'greedy return' in card
  policy = launch.load_policy(str(directory))
  # The ball is on its way, and so the actions are not all as likely.
  environment = settings.environment.make(8, 0)
  timestep = environment.reset()
  for _ in range(60):
    timestep = environment.step(policy(timestep.observation))
  logits, values = policy.networks.actor_critic(timestep.observation)
  assert tf.nn.softmax(logits).numpy().max() > 0.5
  assert values.numpy().mean() > 0.3  # It expects to win.


@pytest.mark.parametrize('argv, told', [
    ([], 'give --run_dir'),
    (['--run_dir', 'RUN', '--pretrained', 'pong', '--out', 'x'], 'give --run_dir'),
    (['--run_dir', 'RUN'], '--out is missing'),
    (['--run_dir', 'none/such', '--out', 'x'], 'none/such holds no run'),
    (['--pretrained', 'pnog', '--out', 'x'], "no pretrained 'pnog'; there are"),
    (['--run_dir', 'RUN', '--out', 'RUN'], 'is not empty; give another --out'),
    (['--pretrained', 'none', '--out', 'x'], 'give --run_dir'),
    (['--run_dir', 'RUN', '--out', 'RUN/config.json'], 'File exists'),
    (['--run_dir', 'RUN', '--out', 'RUN/config.json/x'], 'Not a directory'),
])
def test_what_cannot_be_exported_is_one_line(argv, told, cartpole, capsys):
  with pytest.raises(SystemExit) as ended:
    export.main([arg.replace('RUN', cartpole) for arg in argv])
  assert ended.value.code == 2
  said = capsys.readouterr().err
  assert told in said and said.count('\n') == 1
