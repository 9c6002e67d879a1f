"""Checkpoints that are whole, broken, missing, or another network's."""

import os

from acme import specs
from acme.tf import savers
import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf

from agents.impala_ppo import config as config_lib
from agents.impala_ppo import networks as networks_lib
from programs.runtime import checkpoints


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


def make_checkpoint(networks, num_steps):
  """Of the same shape as the learner's."""
  variables = (networks.actor_critic.trainable_variables +
               networks.decoder.trainable_variables)
  optimizer = snt.optimizers.Adam(1e-3)
  optimizer._initialize(variables)
  return tf.train.Checkpoint(learner=tf.train.Checkpoint(
      actor_critic=networks.actor_critic, optimizer=optimizer,
      num_steps=num_steps, decoder=networks.decoder))


@pytest.fixture
def run(tmp_path):
  """A run's directory, its networks and three checkpoints, oldest first."""
  networks = make_networks()
  num_steps = tf.Variable(0, dtype=tf.int64)
  manager = tf.train.CheckpointManager(
      make_checkpoint(networks, num_steps),
      checkpoints.directory(str(tmp_path)), max_to_keep=3)
  paths = []
  for _ in range(3):
    num_steps.assign_add(10)
    paths.append(manager.save())
  return str(tmp_path), networks, paths


def truncate(path, suffix='.data-00000-of-00001'):
  """What a machine leaves that went down while it was writing."""
  size = os.path.getsize(path + suffix)
  assert size > 1
  os.truncate(path + suffix, size // 2)


def saved_steps(path):
  name = 'learner/num_steps/.ATTRIBUTES/VARIABLE_VALUE'
  return int(tf.train.load_variable(path, name))


def test_latest_is_the_newest(run):
  run_dir, _, paths = run
  assert checkpoints.latest(run_dir) == paths[-1]
  assert saved_steps(paths[-1]) == 30


def test_latest_of_a_run_without_checkpoints_is_none(tmp_path):
  assert checkpoints.latest(str(tmp_path)) is None
  assert checkpoints.discard_broken(str(tmp_path)) is None


@pytest.mark.parametrize('suffix', ('.data-00000-of-00001', '.index'))
def test_latest_skips_truncated_files(run, suffix):
  run_dir, _, paths = run
  truncate(paths[2], suffix)
  assert checkpoints.latest(run_dir) == paths[1]
  truncate(paths[1], suffix)
  assert checkpoints.latest(run_dir) == paths[0]
  truncate(paths[0], suffix)
  assert checkpoints.latest(run_dir) is None


@pytest.mark.parametrize('suffix', ('.data-00000-of-00001', '.index'))
def test_latest_skips_missing_files(run, suffix):
  run_dir, _, paths = run
  os.remove(paths[2] + suffix)
  assert checkpoints.latest(run_dir) == paths[1]


def test_latest_skips_altered_data(run):
  run_dir, _, paths = run
  with open(paths[2] + '.data-00000-of-00001', 'r+b') as f:
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


def test_whole_checkpoints_are_left_alone(run):
  run_dir, _, paths = run
  assert checkpoints.discard_broken(run_dir) == paths[2]
  state = tf.train.get_checkpoint_state(checkpoints.directory(run_dir))
  assert list(state.all_model_checkpoint_paths) == paths


def test_checkpoints_of_acme_are_found_and_resumed_without_the_broken(tmp_path):
  run_dir = str(tmp_path)

  def make_checkpointer(num_steps):
    # As the learner's worker does.
    return savers.Checkpointer(
        {'learner': tf.train.Checkpoint(num_steps=num_steps)},
        directory=run_dir, subdirectory='', add_uid=False, max_to_keep=3,
        time_delta_minutes=10.)

  num_steps = tf.Variable(0, dtype=tf.int64)
  checkpointer = make_checkpointer(num_steps)
  for steps in (10, 20):
    num_steps.assign(steps)
    checkpointer.save(force=True)
  newest = checkpoints.latest(run_dir)
  assert saved_steps(newest) == 20
  truncate(newest)
  checkpoints.discard_broken(run_dir)
  resumed = tf.Variable(0, dtype=tf.int64)
  checkpointer = make_checkpointer(resumed)
  assert resumed.numpy() == 10
  # Going on replaces the broken one.
  resumed.assign(25)
  checkpointer.save(force=True)
  assert saved_steps(checkpoints.latest(run_dir)) == 25


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


def test_weights_come_back(run):
  _, networks, paths = run
  other = make_networks()
  before = other.actor_critic(tf.ones([1, 4]))[1]
  # As evaluation does: only what acts.
  learner = tf.train.Checkpoint(actor_critic=other.actor_critic)
  tf.train.Checkpoint(learner=learner).restore(paths[-1]).expect_partial()
  after = other.actor_critic(tf.ones([1, 4]))[1]
  expected = networks.actor_critic(tf.ones([1, 4]))[1]
  assert before != expected
  np.testing.assert_array_equal(after, expected)
