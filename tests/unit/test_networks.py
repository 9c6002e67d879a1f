"""Shapes, cost and errors of the networks."""

from acme import specs
import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf

from agents.impala_ppo import config as config_lib
from agents.impala_ppo import networks as networks_lib
from benchmarks import policy_cost

NUM_ACTIONS = 6


def make_spec(shape, dtype=np.uint8, actions=None):
  return specs.EnvironmentSpec(
      observations=specs.Array(shape, dtype),
      actions=actions or specs.DiscreteArray(NUM_ACTIONS),
      rewards=specs.Array((), np.float32),
      discounts=specs.BoundedArray((), np.float32, 0., 1.))


def make(shape, dtype=np.uint8, **settings):
  networks = networks_lib.make_networks(
      make_spec(shape, dtype), config_lib.ImpalaPPOConfig(**settings))
  networks.create_variables()
  return networks


@pytest.mark.parametrize('shape, dtype, frame_stack, decoded', [
    ((84, 84, 4), np.uint8, 4, (84, 84, 1)),
    ((42, 42, 4), np.uint8, 4, (42, 42, 1)),
    ((84, 84, 4), np.uint8, 1, (84, 84, 4)),
    ((16, 16, 1), np.uint8, 1, (16, 16, 1)),
    ((8, 8, 3), np.uint8, 1, (8, 8, 3)),
    ((40, 71, 3), np.uint8, 1, (40, 71, 3)),
    ((5,), np.float32, 1, (5,)),
])
def test_shapes(shape, dtype, frame_stack, decoded):
  networks = make(shape, dtype, frame_stack=frame_stack, latent_size=32)
  observation = tf.ones([3, *shape], dtype)
  latent = networks.actor_critic.encoder(observation)
  assert latent.shape == (3, 32) and latent.dtype == tf.float32
  logits, values = networks.actor_critic(observation)
  assert logits.shape == (3, NUM_ACTIONS) and logits.dtype == tf.float32
  assert values.shape == (3,) and values.dtype == tf.float32
  reconstruction = networks.decoder(latent)
  assert reconstruction.shape == (3, *decoded)
  assert reconstruction.dtype == tf.float32


@pytest.mark.parametrize('shape, dtype', [((9, 10, 4), np.uint8),
                                          ((5,), np.float32)])
def test_observations_are_normalised_over_all_batches(shape, dtype):
  normalizer = networks_lib.Normalizer(shape)
  rng = np.random.default_rng(0)
  offset = rng.integers(50, 150, shape)
  batches = [(offset + rng.integers(0, 100, (7, *shape))).astype(dtype)
             for _ in range(5)]
  normalizer(batches[0])  # Makes the variables.
  for i, batch in enumerate(batches):
    normalizer.update(*normalizer.moments(batch), rate=tf.constant(1. / (i + 1)))
  everything = np.concatenate(batches).astype(np.float64)
  mean = everything.mean(axis=0)
  # Pixels share one scale, so that dull ones aren't blown up.
  axis = None if len(shape) == 3 else 0
  std = np.sqrt(np.square(everything - mean).mean(axis=axis))
  normalized = normalizer(batches[0])
  assert normalized.dtype == tf.float32
  np.testing.assert_allclose(normalized, (batches[0] - mean) / std, atol=1e-3)
  np.testing.assert_allclose(normalizer.denormalize(normalized), batches[0],
                             atol=1e-2)


@pytest.mark.parametrize('offset', (1e4, -1e5))
def test_what_is_large_and_varies_little_is_normalised(offset):
  normalizer = networks_lib.Normalizer((2,))
  rng = np.random.default_rng(0)
  batch = (offset + rng.normal(0., [1., 3.], (200, 2))).astype(np.float32)
  normalizer(batch)
  for _ in range(2):  # From 0, it has to come near first.
    normalizer.update(*normalizer.moments(batch), rate=tf.constant(1.))
  exact = batch.astype(np.float64)
  np.testing.assert_allclose(
      normalizer(batch), (exact - exact.mean(axis=0)) / exact.std(axis=0),
      atol=0.02)


def test_what_never_changed_is_normalised_to_something_finite():
  normalizer = networks_lib.Normalizer((2,))
  constant = np.full((6, 2), 1e3, np.float32)
  normalizer(constant)
  normalizer.update(*normalizer.moments(constant), rate=tf.constant(1.))
  np.testing.assert_array_equal(normalizer(constant), 0.)
  np.testing.assert_array_equal(normalizer(constant + 1.), 10.)


def test_latent_depends_on_every_frame():
  encoder = make((42, 42, 4), frame_stack=4).actor_critic.encoder
  observation = np.zeros((5, 42, 42, 4), np.uint8)
  for i in range(4):
    observation[i, 10:20, 10:20, i] = 255
  latent = encoder(observation).numpy()
  assert len(np.unique(latent.round(4), axis=0)) == 5


def test_initial_policy_is_nearly_uniform():
  rng = np.random.default_rng(0)
  observation = rng.integers(0, 256, (8, 42, 42, 4)).astype(np.uint8)
  actor_critic = make((42, 42, 4), frame_stack=4).actor_critic
  normalizer = actor_critic.encoder.normalizer
  normalizer.update(*normalizer.moments(observation), rate=tf.constant(1.))
  logits, _ = actor_critic(observation)
  np.testing.assert_allclose(tf.nn.softmax(logits), 1. / NUM_ACTIONS, atol=0.02)


def test_autoencoder_can_be_left_out():
  networks = make((16, 16, 1), autoencoder=False)
  assert networks.decoder is None


@pytest.mark.parametrize('spec, settings, told', [
    (make_spec((4,), np.float32,
               specs.BoundedArray((2,), np.float32, -1., 1.)), {}, 'actions'),
    (make_spec((84, 84)), {}, '[84, 84]'),
    (make_spec(())._replace(observations={'pixels': specs.Array((8, 8), np.uint8)}),
     {}, 'observations are {'),
    (make_spec((7, 84, 3)), {}, '[7, 84, 3]'),
    (make_spec((8, 8, 1)), {'conv_channels': (8, 8, 8)}, 'conv_channels'),
    (make_spec((84, 84, 4)), {'conv_channels': (8,) * 7}, 'conv_channels'),
    (make_spec((84, 84, 3)), {'frame_stack': 4}, 'frame_stack'),
    (make_spec((4,), np.float32), {'frame_stack': 4}, 'frame_stack'),
])
def test_misfits_are_told_in_one_line(spec, settings, told):
  with pytest.raises(ValueError) as error:
    networks_lib.make_networks(spec, config_lib.ImpalaPPOConfig(**settings))
  assert told in str(error.value)
  assert '\n' not in str(error.value)


def test_acting_costs_at_most_half_of_the_nature_network():
  spec = specs.Array((84, 84, 4), np.uint8)
  nature = snt.Sequential([
      lambda x: tf.cast(x, tf.float32),
      snt.Conv2D(32, 8, 4, padding='VALID'), tf.nn.relu,
      snt.Conv2D(64, 4, 2, padding='VALID'), tf.nn.relu,
      snt.Conv2D(64, 3, 1, padding='VALID'), tf.nn.relu,
      snt.Flatten(), snt.Linear(512), tf.nn.relu,
      snt.Linear(NUM_ACTIONS + 1)])
  nature_multiply_adds = policy_cost.multiply_adds(nature, spec)
  # By hand, layer by layer: output height * width * kernel * in * out.
  assert nature_multiply_adds == (
      20 * 20 * 8 * 8 * 4 * 32 + 9 * 9 * 4 * 4 * 32 * 64 +
      7 * 7 * 3 * 3 * 64 * 64 + 7 * 7 * 64 * 512 + 512 * (NUM_ACTIONS + 1))
  ours = policy_cost.multiply_adds(
      make(spec.shape, frame_stack=4).actor_critic, spec)
  # Guards the count itself: policy and value head are two products.
  assert ours == (
      20 * 20 * 8 * 8 * 4 * 16 + 9 * 9 * 4 * 4 * 16 * 32 +
      9 * 9 * 32 * 256 + 256 * (NUM_ACTIONS + 51))
  assert ours <= nature_multiply_adds / 2


@pytest.mark.parametrize('shape, dtype', [((9, 10, 4), np.uint8),
                                          ((5,), np.float32)])
def test_a_graph_normalises_as_eagerly(shape, dtype):
  normalizer = networks_lib.Normalizer(shape)
  rng = np.random.default_rng(0)
  observation = rng.integers(0, 255, (7, *shape)).astype(dtype)
  normalizer(observation)  # Makes the variables.
  # A small variance, so that some of it is cut off.
  normalizer.mean.assign(rng.uniform(50, 150, shape))
  normalizer.variance.assign(tf.fill(normalizer.variance.shape, 25.))
  eagerly = normalizer(observation)
  assert 0.1 < np.mean(np.abs(eagerly) == 10.) < 0.9
  np.testing.assert_allclose(tf.function(normalizer)(observation), eagerly,
                             rtol=1e-6)
