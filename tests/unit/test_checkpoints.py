"""Checkpoints that are whole, broken, missing, or another network's."""

import glob
import os
import shutil
import types

from acme import core
from acme import specs
import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf

from agents.impala_ppo import config as config_lib
from agents.impala_ppo import networks as networks_lib
from programs.runtime import checkpoints
from tests import disks


def make_networks(latent_size=16):
  spec = specs.EnvironmentSpec(
      observations=specs.Array((4,), np.float32),
      actions=specs.DiscreteArray(2),
      rewards=specs.Array((), np.float32),
      discounts=specs.BoundedArray((), np.float32, 0., 1.))
  networks = networks_lib.make_networks(
      spec, config_lib.ImpalaPPOConfig(latent_size=latent_size))
  networks.create_variables()
  return networks


def learner_state(networks, num_steps):
  """As of the learner, after some steps of its optimiser."""
  variables = networks.trainable_variables
  optimizer = snt.optimizers.Adam(1e-3)
  optimizer.apply([tf.fill(v.shape, float(num_steps)) for v in variables],
                  variables)
  return {'actor_critic': networks.actor_critic, 'optimizer': optimizer,
          'num_steps': tf.Variable(num_steps, dtype=tf.int64),
          'decoder': networks.decoder}


class Counter(core.Saveable):
  """A state to save."""

  def __init__(self, state):
    self.state = state

  def save(self):
    return self.state

  def restore(self, state):
    self.state = state


@pytest.fixture(scope='module')
def saved_run(tmp_path_factory):
  """A run's directory and its networks."""
  run_dir, networks = str(tmp_path_factory.mktemp('run')), make_networks()
  state = learner_state(networks, 0)
  saver = checkpoints.Saver(
      checkpoints.Checkpoint(state, Counter({'timesteps': 99})), run_dir,
      period_minutes=1.)
  for _ in range(3):
    state['num_steps'].assign_add(10)
    saver.save()
  return run_dir, networks


@pytest.fixture
def run(saved_run, tmp_path):
  """A run's directory, its networks and three checkpoints, oldest first."""
  run_dir, networks = saved_run
  shutil.copytree(run_dir, tmp_path, dirs_exist_ok=True)
  state = tf.train.get_checkpoint_state(checkpoints.directory(str(tmp_path)))
  return str(tmp_path), networks, list(state.all_model_checkpoint_paths)


def files(path, kind):
  """Returns the files of a checkpoint, 'data' or 'index', the largest first."""
  return sorted(glob.glob(f'{glob.escape(path)}.{kind}*'), key=os.path.getsize,
                reverse=True)


def truncate(path, kind='data'):
  """What a machine leaves that went down while it was writing."""
  file = files(path, kind)[0]
  os.truncate(file, os.path.getsize(file) // 2)


def test_latest_is_the_newest(run):
  run_dir, _, paths = run
  assert checkpoints.latest(run_dir) == paths[-1]
  assert checkpoints.learner_steps(paths[-1]) == 30


def test_latest_of_a_run_without_checkpoints_is_none(tmp_path):
  assert checkpoints.latest(str(tmp_path)) is None
  assert checkpoints.discard_broken(str(tmp_path)) is None


@pytest.mark.parametrize('kind', ['data', 'index'])
def test_latest_skips_truncated_files(run, kind):
  run_dir, _, paths = run
  truncate(paths[2], kind)
  assert checkpoints.latest(run_dir) == paths[1]
  truncate(paths[1], kind)
  assert checkpoints.latest(run_dir) == paths[0]
  truncate(paths[0], kind)
  assert checkpoints.latest(run_dir) is None


@pytest.mark.parametrize('kind', ['data', 'index'])
def test_latest_skips_missing_files(run, kind):
  run_dir, _, paths = run
  for i, file in enumerate(files(paths[2], kind)):
    os.rename(file, f'{run_dir}/{i}')
    assert checkpoints.latest(run_dir) == paths[1]
    os.rename(f'{run_dir}/{i}', file)
  assert checkpoints.latest(run_dir) == paths[2]


def test_latest_skips_altered_data(run):
  run_dir, _, paths = run
  with open(files(paths[2], 'data')[0], 'r+b') as f:
    # Within the weights, which only their checksums guard.
    f.seek(os.path.getsize(f.name) // 2)
    byte = f.read(1)
    f.seek(-1, os.SEEK_CUR)
    f.write(bytes([byte[0] ^ 0xff]))
  assert checkpoints.latest(run_dir) == paths[1]


def test_training_resumes_from_before_a_broken_checkpoint(run):
  run_dir, _, paths = run
  directory = checkpoints.directory(run_dir)
  truncate(paths[2])
  assert tf.train.latest_checkpoint(directory) == paths[2]
  assert checkpoints.discard_broken(run_dir) == paths[1]
  assert tf.train.latest_checkpoint(directory) == paths[1]
  # The other good one stays known, for should this one break, too.
  assert checkpoints.latest(run_dir) == paths[1]
  truncate(paths[1])
  assert checkpoints.discard_broken(run_dir) == paths[0]


def test_a_full_disk_keeps_nobody_from_going_on(run):
  run_dir, _, paths = run
  said: list[str] = []
  with disks.full(10):
    assert checkpoints.discard_broken(run_dir, said.append) == paths[2]
  line, = said
  assert line.startswith(f'{checkpoints.directory(run_dir)} could not be tidied (')


def test_whole_checkpoints_are_left_alone(run):
  run_dir, _, paths = run
  assert checkpoints.discard_broken(run_dir) == paths[2]
  state = tf.train.get_checkpoint_state(checkpoints.directory(run_dir))
  assert list(state.all_model_checkpoint_paths) == paths


def test_going_on_replaces_the_broken(run):
  run_dir, _, paths = run
  truncate(paths[2])
  checkpoints.discard_broken(run_dir)
  saver = checkpoints.Saver(
      checkpoints.Checkpoint(learner_state(make_networks(), 25)), run_dir,
      period_minutes=1.)
  saver.save()
  assert checkpoints.learner_steps(checkpoints.latest(run_dir)) == 25


def test_own_checkpoint_matches(run):
  _, networks, paths = run
  for key in ('actor_critic', 'decoder'):
    checkpoints.check_matches(
        paths[-1], getattr(networks, key).variables, key)


def test_checkpoint_of_another_network_does_not_match(run):
  _, _, paths = run
  other = make_networks(latent_size=24)
  for key in ('actor_critic', 'decoder'):
    with pytest.raises(ValueError) as error:
      checkpoints.check_matches(paths[-1], getattr(other, key).variables, key)
    message = str(error.value)
    assert paths[-1] in message and '\n' not in message
    assert '[64, 16]' in message or '[16, 64]' in message
    assert '[64, 24]' in message or '[24, 64]' in message


def test_all_that_was_saved_is_restored(run):
  _, networks, paths = run
  other = make_networks()
  state, counter = learner_state(other, 7), Counter(None)
  expected = networks.actor_critic(tf.ones([1, 4]))
  assert (other.actor_critic(tf.ones([1, 4]))[1] != expected[1]).numpy().all()
  checkpoints.Checkpoint(state, counter).restore(paths[-1])
  for x, y in zip(other.actor_critic(tf.ones([1, 4])), expected):
    np.testing.assert_array_equal(x, y)
  np.testing.assert_array_equal(other.decoder(tf.ones([1, 16])),
                                networks.decoder(tf.ones([1, 16])))
  assert state['num_steps'] == 30 and counter.state == {'timesteps': 99}
  # Sonnet's optimiser keeps its moments, here of gradients that were zero.
  assert all((m == 0.).numpy().all() for m in state['optimizer'].m)


def test_a_part_can_be_restored_alone(run):
  # As evaluation does: only what acts.
  _, networks, paths = run
  other = make_networks()
  checkpoints.Checkpoint({'actor_critic': other.actor_critic}).restore(paths[-1])
  np.testing.assert_array_equal(other.actor_critic(tf.ones([1, 4]))[1],
                                networks.actor_critic(tf.ones([1, 4]))[1])


@pytest.mark.parametrize('part', ['variable', 'counter', 'network'])
def test_what_the_file_does_not_hold_is_refused(run, tmp_path, part):
  _, networks, paths = run
  state, counter = {'actor_critic': networks.actor_critic}, None
  if part == 'variable':
    state['temperature'] = tf.Variable(1.)
  elif part == 'network':
    state['critic'] = make_networks().actor_critic
  else:
    # A checkpoint that was written without one.
    checkpoints.Saver(checkpoints.Checkpoint(state), str(tmp_path / 'other'),
                      1.).save()
    paths = [checkpoints.latest(str(tmp_path / 'other'))]
    counter = Counter({})
  with pytest.raises(AssertionError):
    checkpoints.Checkpoint(state, counter).restore(paths[-1])


@pytest.fixture
def clock(monkeypatch):
  """The time, as its attribute `now`."""
  clock = types.SimpleNamespace(now=1000.)
  monkeypatch.setattr(checkpoints, 'time',
                      types.SimpleNamespace(monotonic=lambda: clock.now))
  return clock


def test_a_saver_saves_at_first_and_when_due(tmp_path, clock):
  number = tf.Variable(0)
  saver = checkpoints.Saver(checkpoints.Checkpoint({'number': number}),
                            str(tmp_path), period_minutes=2.)
  saved = []
  for second in range(0, 400, 50):
    clock.now = 1000. + second
    before = checkpoints.latest(str(tmp_path))
    saver.save_if_due()
    if checkpoints.latest(str(tmp_path)) != before:
      saved.append(second)
  assert saved == [0, 150, 300]


def test_saving_when_asked_to_puts_the_next_time_off(tmp_path, clock):
  saver = checkpoints.Saver(
      checkpoints.Checkpoint({'number': tf.Variable(0)}), str(tmp_path),
      period_minutes=1.)
  saver.save()
  first = checkpoints.latest(str(tmp_path))
  clock.now += 59.
  saver.save_if_due()
  assert checkpoints.latest(str(tmp_path)) == first
  clock.now += 1.
  saver.save_if_due()
  assert checkpoints.latest(str(tmp_path)) != first


@pytest.mark.parametrize('is_replaced', [False, True])
def test_nothing_is_saved_where_a_directory_was_moved_away(tmp_path, is_replaced,
                                                           capsys):
  run_dir = tmp_path / 'run'
  saver = checkpoints.Saver(
      checkpoints.Checkpoint({'number': tf.Variable(0)}), str(run_dir), 1.)
  assert saver.save()
  run_dir.rename(tmp_path / 'moved')
  if is_replaced:
    run_dir.mkdir()
  assert not saver.save()
  assert 'was removed or moved' in capsys.readouterr().err
  assert run_dir.exists() == is_replaced and not list(run_dir.glob('*'))
  if is_replaced:
    run_dir.rmdir()
  (tmp_path / 'moved').rename(run_dir)
  assert saver.save()


def test_a_saver_keeps_three_also_of_before_it(run):
  run_dir, _, paths = run
  saver = checkpoints.Saver(
      checkpoints.Checkpoint(learner_state(make_networks(), 40)), run_dir,
      period_minutes=1.)
  saver.save()
  saver.save()
  directory = checkpoints.directory(run_dir)
  state = tf.train.get_checkpoint_state(directory)
  kept = list(state.all_model_checkpoint_paths)
  assert kept[0] == paths[2] and len(kept) == 3
  assert {name for name in os.listdir(directory) if name.endswith('.index')} == {
      f'{os.path.basename(path)}.index' for path in kept}


def test_checkpoints_are_found_by_name(saved_run, tmp_path):
  run_dir = saved_run[0]
  newest = checkpoints.latest(run_dir)
  name = os.path.basename(newest)
  for number in (1, 2, 3):
    for asked in (f'ckpt-{number}', str(number)):
      path = checkpoints.named(run_dir, asked)
      assert checkpoints.learner_steps(path) == 10 * number
  assert path == newest
  for bad in ('99', 'ckpt-', 'latest', '-1', '²'):
    with pytest.raises(ValueError, match=f'has no checkpoint .*it has .*{name}'):
      checkpoints.named(run_dir, bad)
  with pytest.raises(ValueError, match='it has none'):
    checkpoints.named(str(tmp_path), '1')
  copied = shutil.copytree(run_dir, tmp_path / 'run')
  data, = glob.glob(f'{copied}/checkpoints/{name}.data*')
  os.truncate(data, os.path.getsize(data) // 2)
  with pytest.raises(ValueError, match='cannot be used: it cannot be read whole'):
    checkpoints.named(str(copied), name)
