"""The learner: its step, its replicas, what it serves and saves."""

import dataclasses
import threading
import types
import typing

from acme import specs
from acme.tf import savers
import numpy as np
import pytest
import tensorflow as tf

from agents.impala_ppo import builder as builder_lib
from agents.impala_ppo import config as config_lib
from agents.impala_ppo import learning
from agents.impala_ppo import losses
from agents.impala_ppo import ops
from agents.impala_ppo import replay
from agents.impala_ppo import trajectories
from tests import heap
from tests import oracles

# Of the thread that sends priorities.
pytestmark = pytest.mark.filterwarnings(
    'error::pytest.PytestUnhandledThreadExceptionWarning')
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
                  samples_per_insert=2., latent_size=32, conv_channels=(8, 8),
                  autoencoder=False)
  return config_lib.ImpalaPPOConfig(**{**defaults, **kwargs})


def make_learner(config, batches, devices=('/cpu:0',), seed=0,
                 loss=losses.impala_ppo_loss, **kwargs):
  builder = builder_lib.ImpalaPPOBuilder(config, devices, loss)
  dataset = tf.data.Dataset.from_tensor_slices(
      tf.nest.map_structure(lambda *x: np.stack(x), *batches))
  strategy = builder._get_strategy()
  networks = kwargs.pop('networks', None) or builder.make_networks(make_spec())
  return builder.make_learner(
      seed, networks, replay.distribute(dataset.repeat(), strategy), **kwargs)


class ReplayClient:
  """Keeps the priorities that it is given, {key: priority}."""

  def __init__(self):
    self.updates = {}

  def mutate_priorities(self, table, updates):
    assert table == replay.REPLAY_TABLE
    assert not set(updates) & set(self.updates)
    self.updates.update(updates)


def weights(learner):
  return learner.get_variables(['policy'])[0]


@pytest.mark.parametrize('loss, autoencoder', [
    ('ppo', False), pytest.param('ppo', True, marks=pytest.mark.slow),
    pytest.param('vtrace', True, marks=pytest.mark.slow)])
def test_two_replicas_are_one_with_the_same_batch(loss, autoencoder):
  assert len(tf.config.list_logical_devices('CPU')) == 2
  batches = [make_batch(seed) for seed in range(10)]
  # A large epsilon keeps Adam from blowing rounding errors up.
  config = make_config(loss=loss, autoencoder=autoencoder, adam_epsilon=1e-3)
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


@pytest.mark.slow
def test_one_replica_is_as_good_as_no_strategy():
  batches = [make_batch(seed) for seed in range(3)]
  config = make_config()
  learners = [make_learner(config, batches, devices=[device])
              for device in ('/cpu:0', '/cpu:1')]
  assert [isinstance(learner._strategy, tf.distribute.MirroredStrategy)
          for learner in learners] == [False, True]
  for learner in learners:
    for _ in range(3):
      learner.step()
  for x, y in zip(*map(weights, learners)):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_steps_leave_no_memory_behind():
  learner = make_learner(make_config(), [make_batch()])

  def grown(num_steps):
    before = heap.used()
    for _ in range(num_steps):
      learner.step()
    return heap.used() - before

  grown(50)
  # By TensorFlow's own call, some 400 bytes each time.
  assert grown(500) < 500 * 50


@pytest.mark.slow
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


@pytest.mark.parametrize('loss', typing.get_args(config_lib.Loss))
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


@pytest.mark.slow
def test_reconstruction_trains_the_encoder_and_can_be_left_out():
  config = make_config(autoencoder=True, baseline_cost=0., entropy_cost=0.,
                       learning_rate=3e-3)
  batch = make_batch()
  learner = make_learner(config, [batch])
  learner.step()
  first = learner.metrics()['reconstruction_loss']
  for _ in range(30):
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


@pytest.mark.slow
@pytest.mark.parametrize('devices', [('/cpu:0',), ('/cpu:0', '/cpu:1')])
def test_a_policy_of_the_learners_networks_follows_it_when_told(devices):
  config = make_config()
  builder = builder_lib.ImpalaPPOBuilder(config, devices)
  networks = builder.make_networks(make_spec())
  learner = make_learner(config, [make_batch()], devices, networks=networks)
  policy = builder.make_policy(networks, make_spec())
  actor = builder.make_actor(0, policy, variable_source=learner)
  before = weights(learner)
  learner.step()
  after = weights(learner)
  for own, x in zip(policy.variables['policy'], before):
    np.testing.assert_array_equal(own, x)
  actor.update(wait=True)
  assert policy.variables['version'][0] == 1
  for own, x in zip(policy.variables['policy'], after):
    np.testing.assert_array_equal(own, x)
  for x, y in zip(weights(learner), after):
    np.testing.assert_array_equal(x, y)


def kept_by_tensorflow(old, new, folder):
  path = tf.train.Checkpoint(**old.state).save(str(folder / 'checkpoint'))
  tf.train.Checkpoint(**new.state).restore(path).assert_consumed()
  new.on_restore()


def kept_by_acme(old, new, folder):
  def checkpointer(learner):
    return savers.Checkpointer(
        {'learner': learner}, directory=str(folder), add_uid=False)

  checkpointer(old).save(force=True)
  checkpointer(new)  # It restores what it finds.


@pytest.mark.slow
@pytest.mark.parametrize('keep, devices', [
    (kept_by_tensorflow, ['/cpu:0']), (kept_by_acme, ['/cpu:0']),
    (kept_by_acme, ['/cpu:0', '/cpu:1'])])
def test_a_restored_learner_goes_on_as_if_never_stopped(keep, devices, tmp_path):
  batches = [make_batch(seed) for seed in range(6)]
  config = make_config(autoencoder=True, learning_rate_decay_timesteps=200)
  unbroken = make_learner(config, batches, devices)
  for _ in range(3):
    unbroken.step()
  second = make_learner(config, batches[3:] + batches[:3], devices, seed=1)
  keep(unbroken, second, tmp_path)
  assert second.num_steps == 3
  for x, y in zip(weights(unbroken), weights(second)):
    np.testing.assert_array_equal(x, y)
  for _ in range(3):
    unbroken.step()
    second.step()
  for x, y in zip(weights(unbroken), weights(second)):
    np.testing.assert_array_equal(x, y)


def test_what_another_network_has_saved_is_refused():
  learner = make_learner(make_config(), [make_batch()])
  before = weights(learner)
  other = make_learner(make_config(latent_size=16), [make_batch()], seed=1)
  with pytest.raises(ValueError, match=r'other networks: .*16.* has .*32'):
    learner.restore(other.save())
  for x, y in zip(weights(learner), before):
    np.testing.assert_array_equal(x, y)


def test_missing_gpus_are_told():
  there = len(tf.config.list_logical_devices('GPU'))
  wanted = [f'/gpu:{i}' for i in range(there + 1)]
  with pytest.raises(ValueError,
                     match=f'{wanted[-1]}, but TensorFlow finds {there} GPUs'):
    learning.make_strategy(wanted)


def test_batches_that_replicas_cannot_share_evenly_are_refused():
  devices = ['/cpu:0', '/cpu:1']
  config = make_config(batch_size=3, samples_per_insert=1.)
  with pytest.raises(ValueError, match='batch_size.*2 devices.*not 3'):
    builder_lib.ImpalaPPOBuilder(config, devices)


def test_batches_that_all_there_is_cannot_share_evenly_are_refused(monkeypatch):
  strategy = learning.make_strategy(['/cpu:0', '/cpu:1'])
  monkeypatch.setattr(learning, 'make_strategy', lambda devices: strategy)
  config = make_config(batch_size=3, samples_per_insert=1.)
  with pytest.raises(ValueError, match='batch_size.*2 devices.*not 3'):
    make_learner(config, [make_batch()], devices=None)


@pytest.mark.parametrize('loss, autoencoder, max_gradient_norm', [
    ('ppo', True, 0.05), ('ppo', False, 1e3),
    ('vtrace', True, 1e3), ('vtrace', False, 0.05),
])
def test_a_step_is_what_numpy_makes_of_it(loss, autoencoder, max_gradient_norm):
  batch = make_batch()
  rng = np.random.default_rng(1)
  batch = batch._replace(policy_version=-rng.integers(0, 9, (B, T)))
  config = make_config(
      loss=loss, autoencoder=autoencoder, max_gradient_norm=max_gradient_norm,
      reconstruction_period=2, learning_rate=1e-2, adam_epsilon=1e-2,
      replay_sampler='prioritized')
  builder = builder_lib.ImpalaPPOBuilder(config)
  networks, client = builder.make_networks(make_spec()), ReplayClient()
  learner = make_learner(config, [batch], networks=networks,
                         replay_client=[client])

  # The first batch's statistics are those that the first step normalises by.
  some = batch.observation[:, ::2].reshape(-1, 16, 16, 4).astype(np.float64)
  normalizer = networks.actor_critic.encoder.normalizer
  normalizer.mean.assign(some.mean(axis=0))
  normalizer.variance.assign(np.square(some - some.mean(axis=0)).mean())
  variables = networks.trainable_variables
  with tf.GradientTape() as tape:
    outputs = networks.unroll(tf.constant(batch.observation), 2)
    total = losses.impala_ppo_loss(outputs, batch, config).loss
  gradients = [g.numpy() for g in tape.gradient(total, variables)]
  before = [v.numpy() for v in variables]
  expected, priorities = oracles.impala_ppo_loss(
      type(outputs)(*(x if x is None else x.numpy() for x in outputs)), batch,
      config)
  norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients))
  expected.update(gradient_norm=norm, learning_rate=1e-2,
                  policy_lag=np.mean(-batch.policy_version[:B // 2]),
                  skipped_updates=0.)

  learner.step()
  metrics = learner.metrics()
  assert set(metrics) == {*expected, 'wait_fraction', 'timesteps_per_second'}
  for name, value in expected.items():
    assert metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
  assert client.updates == pytest.approx(
      dict(zip(range(B // 2, B), priorities[B // 2:])), rel=1e-3)
  # Adam's first step is the gradient over its magnitude, but for epsilon.
  assert (norm > max_gradient_norm) == (max_gradient_norm < 1.)
  for variable, old, gradient in zip(variables, before, gradients):
    gradient = gradient * min(1., max_gradient_norm / norm)
    np.testing.assert_allclose(
        variable, old - 1e-2 * gradient / (np.abs(gradient) + 1e-2),
        rtol=1e-3, atol=1e-5)


def test_a_loss_need_not_use_all_that_the_networks_give():
  def of_the_policy(outputs, batch, config, total):
    del config
    loss = -losses.entropy(outputs.logits)
    return losses.Loss(tf.reduce_mean(loss) / total(tf.ones([])), {},
                       tf.zeros(tf.shape(batch.key)))

  learner = make_learner(make_config(autoencoder=True), [make_batch()],
                         loss=of_the_policy)
  decoder = learner.state['decoder'].trainable_variables
  before, kept = weights(learner), [v.numpy() for v in decoder]
  learner.step()
  assert any((x != y).any() for x, y in zip(weights(learner), before))
  for variable, old in zip(decoder, kept):
    np.testing.assert_array_equal(variable, old)


def test_prioritised_replay_needs_somebody_to_tell_priorities():
  with pytest.raises(ValueError, match='prioritized needs the replay_client'):
    make_learner(make_config(replay_sampler='prioritized'), [make_batch()])


@pytest.mark.slow
def test_half_precision_makes_the_same_gradients():
  def small_loss(outputs, batch, config, total):
    """As small as that of a batch of 1,000 times as many timesteps."""
    loss, *rest = losses.impala_ppo_loss(outputs, batch, config, total)
    return 1e-3 * loss, *rest

  gradients = {}
  for dtype in ('float32', 'float16'):
    learner = make_learner(
        make_config(autoencoder=True, compute_dtype=dtype), [make_batch()],
        loss=small_loss)
    learner.step()
    # The first moment of Adam is a tenth of its first gradient.
    gradients[dtype] = [m.numpy() for m in learner.state['optimizer'].m]
    assert all(w.dtype == np.float32 for w in weights(learner))
    graph = tf.function(learner._run_replicas).get_concrete_function(
        learner._batch).graph
    assert {operation.get_attr('T') for operation in graph.get_operations()
            if operation.type.startswith('Conv2D')} == {tf.as_dtype(dtype)}
  for half, single in zip(gradients['float16'], gradients['float32']):
    assert half.dtype == np.float32
    assert np.linalg.norm(half - single) <= 0.1 * np.linalg.norm(single)


@pytest.mark.slow
def test_plain_operations_learn_the_same(monkeypatch):
  batches = [make_batch(seed) for seed in range(3)]
  # A large epsilon keeps Adam from blowing rounding errors up.
  config = make_config(autoencoder=True, adam_epsilon=1e-3,
                       reconstruction_period=2)
  learned = []
  for plain in ('0', '1'):
    monkeypatch.setenv(ops.PLAIN_VARIABLE, plain)
    learner = make_learner(config, batches)
    for _ in range(3):
      learner.step()
    learned.append(weights(learner))
  for x, y in zip(*learned):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-5)


def update_by_rewards(batch):
  """Learns nothing; priorities are the first rewards."""
  return {'loss': tf.constant(0.)}, batch.reward[:, 0]


def test_rates_are_of_the_time_since_the_last_metrics(monkeypatch):
  learner = make_learner(make_config(), [make_batch()], update=update_by_rewards)
  # Asked at the start of a step, with its batch there, and at its end.
  clock = iter([0., 3., 4., 4., 5., 8., 10., 10.25, 11.])
  monkeypatch.setattr(learning, 'time',
                      types.SimpleNamespace(perf_counter=lambda: next(clock)))
  assert learner.metrics() == {}
  learner.step()
  learner.step()
  assert learner.metrics() == {'loss': 0., 'wait_fraction': (3 + 1) / 8,
                               'timesteps_per_second': 2 * B * T / 8}
  assert learner.metrics() == {}
  learner.step()
  assert learner.metrics() == {'loss': 0., 'wait_fraction': 0.25,
                               'timesteps_per_second': B * T / 1.}


@pytest.mark.parametrize('devices', [('/cpu:0',), ('/cpu:0', '/cpu:1')])
def test_priorities_go_to_the_shards_of_their_items(devices):
  # The last four are replayed: two of one item, and the same key elsewhere.
  reward = np.zeros((B, T), np.float32)
  reward[:, 0] = [9., 9., 9., 9., 1., 2., 3., 4.]
  batch = make_batch()._replace(
      reward=reward, key=np.array([1, 2, 3, 4, 7, 7, 7, 8], np.uint64),
      shard=np.array([0, 0, 0, 0, 0, 2, 0, 2], np.int32))
  clients = [ReplayClient() for _ in range(3)]
  learner = make_learner(make_config(replay_sampler='prioritized'), [batch],
                         devices, replay_client=clients, update=update_by_rewards)
  learner.step()
  assert [client.updates for client in clients] == [
      {7: (1. + 3.) / 2}, {}, {7: 2., 8: 4.}]


def test_without_prioritised_replay_there_are_no_priorities():
  client = ReplayClient()
  learner = make_learner(make_config(), [make_batch()], replay_client=[client],
                         update=update_by_rewards)
  learner.step()
  assert client.updates == {}


def test_nothing_changes_while_the_learner_is_paused():
  learner = make_learner(make_config(), [make_batch()], update=update_by_rewards)
  learner.step()
  thread = threading.Thread(target=learner.step)
  with learner.paused():
    thread.start()
    thread.join(0.5)
    assert thread.is_alive() and learner.num_steps == 1
    assert learner.state['num_steps'] == 1
  thread.join(30.)
  assert not thread.is_alive() and learner.num_steps == 2


def test_a_pause_waits_for_the_step_that_has_begun():
  learner = make_learner(make_config(), [make_batch()], update=update_by_rewards)
  learner.step()
  run, began, may_go_on = learner._distributed_step, *(
      threading.Event() for _ in range(2))

  def slow_step(batch):
    began.set()
    assert may_go_on.wait(30.)
    return run(batch)

  learner._distributed_step = slow_step
  stepping = threading.Thread(target=learner.step)
  stepping.start()
  assert began.wait(30.)
  threading.Timer(0.3, may_go_on.set).start()
  with learner.paused():
    assert may_go_on.is_set() and learner.state['num_steps'] == 2
  stepping.join()


@pytest.mark.slow
@pytest.mark.parametrize('devices, frame_stack', [
    (('/cpu:0',), 4), (('/cpu:0', '/cpu:1'), 4), (('/cpu:0',), 1)])
def test_frames_are_drawn_beside_their_reconstructions(devices, frame_stack):
  config = make_config(autoencoder=True, frame_stack=frame_stack)
  batch = make_batch()
  learner = make_learner(config, [batch], devices=devices)
  assert learner.reconstructions() is None
  learner.step()
  drawn = learner.reconstructions(most=2)
  newest = batch.observation[:2, 0, ..., -1:]
  height, width = newest.shape[1:3]
  assert drawn.shape == (2 * height, 2 * width, 1) and drawn.dtype == np.uint8
  np.testing.assert_array_equal(drawn[:, :width], np.concatenate(newest))
  # What is beside them is the decoder's, of those very observations.
  networks = learner._networks
  encoder = networks.actor_critic.encoder
  expected = networks.decoder(encoder(batch.observation[:2, 0]))
  scale = encoder.normalizer.denormalize(
      tf.repeat(expected, frame_stack, axis=-1) if frame_stack > 1 else expected
  )[..., -1:]
  np.testing.assert_allclose(
      drawn[:, width:], np.concatenate(np.clip(scale, 0, 255)), atol=1.01)


def test_without_a_decoder_nothing_is_drawn():
  learner = make_learner(make_config(autoencoder=False), [make_batch()])
  learner.step()
  assert learner.reconstructions() is None
