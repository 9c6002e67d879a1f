"""The learner: its step, its replicas, what it serves and saves."""

import dataclasses
import time

from acme import specs
import numpy as np
import pytest
import tensorflow as tf

from agents.impala_ppo import builder as builder_lib
from agents.impala_ppo import config as config_lib
from agents.impala_ppo import replay
from agents.impala_ppo import trajectories

B, T, A = 8, 5, 3


def make_spec(shape=(16, 16, 4), dtype=np.uint8):
  return specs.EnvironmentSpec(
      observations=specs.Array(shape, dtype),
      actions=specs.DiscreteArray(A, dtype=np.int32),
      rewards=specs.Array((), np.float32),
      discounts=specs.BoundedArray((), np.float32, 0., 1.))


def make_batch(seed=0):
  rng = np.random.default_rng(seed)
  mask = rng.random((B, T)) > 0.2
  mask[0] = False  # Replicas then differ in how much there is to learn.
  return trajectories.Trajectories(
      observation=rng.integers(0, 256, (B, T + 1, 16, 16, 4)).astype(np.uint8),
      action=rng.integers(0, A, (B, T)).astype(np.int32),
      reward=rng.normal(0, 2, (B, T)).astype(np.float32),
      discount=(rng.random((B, T)) > 0.1).astype(np.float32),
      mask=mask,
      behaviour_logits=rng.normal(0, 1, (B, T, A)).astype(np.float32),
      policy_version=np.zeros((B, T), np.int64),
      key=np.arange(B, dtype=np.uint64), shard=np.zeros(B, np.int32))


def make_config(**kwargs):
  defaults = dict(frame_stack=4, sequence_length=T, batch_size=B,
                  samples_per_insert=2., latent_size=32, conv_channels=(8, 8))
  return config_lib.ImpalaPPOConfig(**{**defaults, **kwargs})


def make_learner(config, batches, devices=('/cpu:0',), seed=0):
  builder = builder_lib.ImpalaPPOBuilder(config, devices)
  dataset = tf.data.Dataset.from_tensor_slices(
      tf.nest.map_structure(lambda *x: np.stack(x), *batches))
  options = tf.data.Options()
  options.experimental_distribute.auto_shard_policy = (
      tf.data.experimental.AutoShardPolicy.OFF)
  dataset = dataset.repeat().with_options(options)
  strategy = builder._get_strategy()
  return builder.make_learner(
      seed, builder.make_networks(make_spec()),
      replay.distribute(dataset, strategy))


def weights(learner):
  return learner.get_variables(['policy'])[0]


@pytest.mark.parametrize('loss', config_lib.LOSSES)
def test_two_replicas_are_one_with_the_same_batch(loss):
  assert len(tf.config.list_logical_devices('CPU')) == 2
  batches = [make_batch(seed) for seed in range(10)]
  # A large epsilon keeps Adam from blowing rounding errors up.
  config = make_config(loss=loss, adam_epsilon=1e-3)
  one = make_learner(config, batches)
  two = make_learner(config, batches, devices=('/cpu:0', '/cpu:1'))
  for x, y in zip(weights(one), weights(two)):
    np.testing.assert_array_equal(x, y)
  start = weights(one)
  for _ in range(10):
    one.step()
    two.step()
  for x, y, before in zip(weights(one), weights(two), start):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5)
    assert (x != before).any()
  a, b = one.metrics(), two.metrics()
  for name in set(a) - {'wait_fraction', 'timesteps_per_second'}:
    assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5), name


def test_masked_steps_teach_nothing():
  batch = make_batch()
  other = make_batch(seed=1)
  # Actions, rewards and policies of reset steps are meaningless.
  changed = batch._replace(**{
      name: np.where(np.reshape(batch.mask, batch.mask.shape + (1,) * (
          getattr(batch, name).ndim - 2)), getattr(batch, name),
                     getattr(other, name))
      for name in ('action', 'reward', 'behaviour_logits')})
  config = make_config()
  results = []
  for data in (batch, changed):
    learner = make_learner(config, [data])
    learner.step()
    results.append(weights(learner))
  for x, y in zip(*results):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('loss', config_lib.LOSSES)
def test_rewarded_actions_become_likelier_and_values_right(loss):
  # On policy, action 1 always pays 1 and ends the episode.
  batch = make_batch()
  batch = batch._replace(
      reward=(batch.action == 1).astype(np.float32),
      discount=np.zeros((B, T), np.float32),
      mask=np.ones((B, T), bool),
      behaviour_logits=np.zeros((B, T, A), np.float32))
  learner = make_learner(
      make_config(loss=loss, entropy_cost=0., learning_rate=1e-3), [batch])
  # Each observation has one outcome: once the values know it, nothing is left
  # to learn, and standardised advantages are noise.
  for _ in range(15):
    learner.step()
  actor_critic = learner.state['actor_critic']
  logits, _ = actor_critic(batch.observation[:, :-1].reshape(-1, 16, 16, 4))
  probability = tf.reduce_mean(tf.nn.softmax(logits), axis=0)
  # The clipped surrogate goes no further than a ratio of 1.2 for long.
  assert probability[1] > 0.37
  assert probability[1] > max(probability[0], probability[2])


def test_rewards_are_clipped_for_learning():
  batch = make_batch()
  losses = []
  for scale in (100., 1.):
    reward = np.sign(batch.reward) * scale
    learner = make_learner(make_config(), [batch._replace(reward=reward)])
    learner.step()
    losses.append(learner.metrics()['value_loss'])
  assert losses[0] == losses[1]


def test_reconstruction_trains_the_encoder_and_can_be_left_out():
  config = make_config(baseline_cost=0., entropy_cost=0., learning_rate=3e-3)
  batch = make_batch()
  learner = make_learner(config, [batch])
  learner.step()
  first = learner.metrics()['reconstruction_loss']
  for _ in range(60):
    learner.step()
  assert learner.metrics()['reconstruction_loss'] < 0.8 * first
  plain = make_learner(dataclasses.replace(config, autoencoder=False), [batch])
  plain.step()
  assert 'decoder' not in plain.state
  assert plain.metrics()['reconstruction_loss'] == 0.


def test_statistics_are_of_every_so_many_timesteps():
  batch = make_batch()
  learner = make_learner(make_config(reconstruction_period=2), [batch])
  learner.step()
  normalizer = learner.state['actor_critic'].encoder.normalizer
  picked = batch.observation[:, [0, 2, 4]].reshape(-1, 16, 16, 4)
  mean = picked.mean(axis=0)
  np.testing.assert_allclose(normalizer.mean, mean, rtol=1e-5)
  np.testing.assert_allclose(normalizer.variance,
                             np.square(picked - mean).mean(), rtol=1e-5)


def test_learning_rate_follows_the_steps():
  config = make_config(learning_rate=1e-3, final_learning_rate=1e-4,
                       learning_rate_decay_timesteps=4 * (B // 2) * T)
  learner = make_learner(config, [make_batch()])
  rates = []
  for _ in range(6):
    learner.step()
    rates.append(learner.metrics()['learning_rate'])
  np.testing.assert_allclose(
      rates, [1e-3, 7.75e-4, 5.5e-4, 3.25e-4, 1e-4, 1e-4], rtol=1e-5)


def test_serves_its_version_with_its_weights():
  learner = make_learner(make_config(), [make_batch()])
  assert learner.get_variables(['version']) == [[0]]
  learner.step()
  learner.step()
  served, (version,) = learner.get_variables(['policy', 'version'])
  assert version == 2 and version.dtype == np.int64
  expected = learner.state['actor_critic'].variables
  assert len(served) == len(expected)
  for weight, variable in zip(served, expected):
    np.testing.assert_array_equal(weight, variable)
  # In the order that is asked for.
  assert learner.get_variables(['version', 'policy'])[0] == [2]
  with pytest.raises(KeyError, match='critic.*policy, version'):
    learner.get_variables(['critic'])


def test_a_restored_learner_goes_on_as_if_never_stopped(tmp_path):
  batches = [make_batch(seed) for seed in range(6)]
  config = make_config(learning_rate_decay_timesteps=200)
  unbroken = make_learner(config, batches)
  first = make_learner(config, batches)
  for _ in range(3):
    unbroken.step()
    first.step()
  path = tf.train.Checkpoint(**first.state).save(str(tmp_path / 'checkpoint'))
  second = make_learner(config, batches[3:] + batches[:3], seed=1)
  status = tf.train.Checkpoint(**second.state).restore(path)
  status.assert_consumed()
  second.on_restore()
  assert second.num_steps == 3
  for _ in range(3):
    unbroken.step()
    second.step()
  for x, y in zip(weights(unbroken), weights(second)):
    np.testing.assert_array_equal(x, y)


def test_batches_that_replicas_cannot_share_evenly_are_refused():
  devices = ['/cpu:0', '/cpu:1']
  config = make_config(batch_size=3, samples_per_insert=1.)
  with pytest.raises(ValueError, match='batch_size.*2 devices.*not 3'):
    builder_lib.ImpalaPPOBuilder(config, devices)


def test_waiting_is_counted():
  def fraction(seconds):
    def wait(batch):
      tf.numpy_function(lambda: time.sleep(seconds), [], [])
      return batch

    batch = tf.nest.map_structure(tf.constant, make_batch())
    dataset = tf.data.Dataset.from_tensors(batch).repeat().map(wait)
    builder = builder_lib.ImpalaPPOBuilder(make_config(), ('/cpu:0',))
    learner = builder.make_learner(0, builder.make_networks(make_spec()),
                                   iter(dataset))
    learner.step()  # Traces.
    learner.metrics()
    learner.step()
    return learner.metrics()['wait_fraction']

  # A step takes some milliseconds.
  assert fraction(2.) > 0.5
  assert fraction(0.) < 0.5


def test_prioritised_replay_updates_the_items_it_has_sampled():
  class Client:

    def __init__(self):
      self.updates = {}

    def mutate_priorities(self, table, updates):
      assert table == replay.REPLAY_TABLE
      self.updates.update(updates)

  config = make_config(replay_sampler='prioritized')
  learner = make_learner(config, [make_batch()])
  learner._replay_clients = [Client()]
  learner.step()
  updates = learner._replay_clients[0].updates
  # Keys are 0 .. B - 1; the first half of the batch came from the queue.
  assert set(updates) == set(range(B // 2, B))
  assert min(updates.values()) > 0
