"""The losses, against closed forms and slow references."""

import typing

import numpy as np
import pytest
import tensorflow as tf
import trfl

from agents.impala_ppo import config as config_lib
from agents.impala_ppo import losses
from agents.impala_ppo import networks as networks_lib
from agents.impala_ppo import trajectories
from agents.impala_ppo import values as values_lib
from tests import oracles

T, B, A = 7, 5, 4


def random_batch(seed=0):
  rng = np.random.default_rng(seed)
  # Near 1 the differences of long products show; 0 is a terminal step.
  discounts = rng.uniform(0.9, 1., (T, B)) * (rng.random((T, B)) > 0.2)
  batch = {
      'log_rhos': rng.normal(0., 1., (T, B)), 'discounts': discounts,
      'rewards': rng.normal(0., 1., (T, B)), 'values': rng.normal(0., 1., (T, B)),
      'bootstrap_value': rng.normal(0., 1., B),
      'mask': (rng.random((T, B)) > 0.25).astype(np.float64)}
  return {name: x.astype(np.float32) for name, x in batch.items()}


def column(*numbers):
  return np.array(numbers, np.float32)[:, None]


@pytest.mark.parametrize('lambda_', (1., 0.95, 0.4))
@pytest.mark.parametrize('seed', range(3))
def test_vtrace_is_equation_1(seed, lambda_):
  batch = random_batch(seed)
  assert 0 < batch['mask'].mean() < 1 and (batch['discounts'] == 0).any()
  targets, advantages, pg_advantages = oracles.vtrace(**batch, lambda_=lambda_)
  result = losses.vtrace(**batch, lambda_=lambda_)
  np.testing.assert_allclose(result.targets, targets, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
      result.pg_advantages, pg_advantages, rtol=1e-4, atol=1e-5)
  experience = batch['mask'] > 0
  np.testing.assert_allclose(result.advantages.numpy()[experience],
                             advantages[experience], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('seed', range(3))
def test_vtrace_with_lambda_1_is_that_of_trfl(seed):
  batch = random_batch(seed)
  batch['mask'] = np.ones((T, B), np.float32)
  result = losses.vtrace(**batch, lambda_=1.)
  del batch['mask']  # Of resets TRFL knows nothing.
  expected = trfl.vtrace_from_importance_weights(**batch)
  np.testing.assert_allclose(result.targets, expected.vs, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(result.pg_advantages, expected.pg_advantages,
                             rtol=1e-4, atol=1e-5)


def test_vtrace_on_policy_is_n_step_returns():
  batch = random_batch()
  batch['log_rhos'] = np.zeros((T, B), np.float32)
  batch['mask'] = np.ones((T, B), np.float32)
  returns, after = [], batch['bootstrap_value']
  for reward, discount in zip(batch['rewards'][::-1], batch['discounts'][::-1]):
    after = reward + discount * after
    returns.insert(0, after)
  result = losses.vtrace(**batch)
  np.testing.assert_allclose(result.targets, returns, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(result.advantages, returns - batch['values'],
                             rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(result.pg_advantages, result.advantages,
                             rtol=1e-4, atol=1e-5)


def test_vtrace_on_policy_is_generalised_advantage_estimation():
  batch = random_batch()
  batch['log_rhos'] = np.zeros((T, B), np.float32)
  batch['mask'] = np.ones((T, B), np.float32)
  next_values = np.concatenate([batch['values'][1:],
                                batch['bootstrap_value'][None]])
  deltas = batch['rewards'] + batch['discounts'] * next_values - batch['values']
  expected, after = [], 0.
  for delta, discount in zip(deltas[::-1], batch['discounts'][::-1]):
    after = delta + 0.8 * discount * after
    expected.insert(0, after)
  result = losses.vtrace(**batch, lambda_=0.8)
  np.testing.assert_allclose(result.advantages, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(result.targets - batch['values'], expected,
                             rtol=1e-4, atol=1e-5)


def test_vtrace_clips_weights_from_above_only():
  # One step, ratios 3 and 1/2: the correction is taken once and by half.
  result = losses.vtrace(
      log_rhos=np.log([[3., 0.5]]).astype(np.float32),
      discounts=np.full((1, 2), 0.5, np.float32),
      rewards=np.full((1, 2), 2., np.float32),
      values=np.full((1, 2), 1., np.float32),
      bootstrap_value=np.full(2, 4., np.float32),
      mask=np.ones((1, 2), np.float32))
  np.testing.assert_allclose(result.targets, [[4., 2.5]], rtol=1e-6)
  # PPO's advantages leave weighing to the ratio.
  np.testing.assert_allclose(result.advantages, [[3., 3.]], rtol=1e-6)
  np.testing.assert_allclose(result.pg_advantages, [[3., 1.5]], rtol=1e-6)


def test_vtrace_has_no_gradient():
  batch = {name: tf.constant(x) for name, x in random_batch().items()}
  with tf.GradientTape() as tape:
    tape.watch(list(batch.values()))
    total = tf.add_n([tf.reduce_sum(x) for x in losses.vtrace(**batch)])
  assert all(g is None for g in tape.gradient(total, list(batch.values())))


def test_target_of_a_reset_is_its_value():
  batch = random_batch()
  result = losses.vtrace(**batch)
  reset = batch['mask'] == 0
  np.testing.assert_array_equal(result.targets.numpy()[reset],
                                batch['values'][reset])
  np.testing.assert_array_equal(result.pg_advantages.numpy()[reset], 0.)


def test_nothing_flows_back_across_a_reset():
  reset = 3
  batch = random_batch()
  batch['discounts'][:] = 0.9  # No terminal step is to do the mask's work.
  batch['mask'][:] = 1.
  batch['mask'][reset] = 0.
  before = losses.vtrace(**batch)
  for name in ('log_rhos', 'rewards'):
    batch[name][reset:] += 2.
  batch['values'][reset + 1:] += 2.  # The reset's own is the last observation's.
  batch['bootstrap_value'] += 2.
  after = losses.vtrace(**batch)
  np.testing.assert_array_equal(before.targets[:reset + 1],
                                after.targets[:reset + 1])
  np.testing.assert_array_equal(before.advantages[:reset],
                                after.advantages[:reset])
  assert np.abs(before.targets[-1] - after.targets[-1]).min() > 0.1


def test_truncation_bootstraps_and_termination_does_not():
  def estimate(last_discount):
    # Two steps of an episode whose last observation is worth 5, the reset,
    # and one step of the next episode.
    return losses.vtrace(
        log_rhos=column(0., 0., 0., 0.),
        discounts=column(0.9, last_discount, 0., 0.9),
        rewards=column(1., 2., 0., 3.),
        values=column(1., 2., 5., 7.),
        bootstrap_value=np.array([10.], np.float32),
        mask=column(1., 1., 0., 1.))

  truncated = estimate(0.9)
  # 2 + 0.9 * 5 = 6.5, then 1 + 0.9 * 6.5 = 6.85; behind the reset 3 + 0.9 * 10.
  np.testing.assert_allclose(truncated.targets, column(6.85, 6.5, 5., 12.),
                             rtol=1e-6)
  np.testing.assert_allclose(truncated.advantages[:2], column(5.85, 4.5),
                             rtol=1e-6)
  terminated = estimate(0.)
  np.testing.assert_allclose(terminated.targets, column(2.8, 2., 5., 12.),
                             rtol=1e-6)
  np.testing.assert_allclose(terminated.advantages[:2], column(1.8, 0.),
                             rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('numbers', [(1., 4.), (-2e3, 7e3), (0.001, 0.002)])
def test_two_standardised_advantages_are_minus_1_and_1(numbers):
  low, high = numbers
  # What is masked counts for nothing.
  advantages = np.array([[low, high, 1e6], [high, low, -1e6]], np.float32)
  mask = np.array([[1., 1., 0.], [1., 1., 0.]], np.float32)
  result = losses.standardize(advantages, mask)
  np.testing.assert_allclose(result[:, :2], [[-1., 1.], [1., -1.]], rtol=1e-4)


def test_standardised_advantages_have_mean_0_and_variance_1():
  batch = random_batch()
  advantages, mask = 3. + 5. * batch['rewards'], batch['mask']
  result = losses.standardize(advantages, mask).numpy()[mask > 0]
  np.testing.assert_allclose([result.mean(), result.var()], [0., 1.], atol=1e-5)
  # Their order and their ratios of distances stay.
  kept = advantages[mask > 0]
  np.testing.assert_allclose(result, (kept - kept.mean()) / kept.std(), rtol=1e-4,
                             atol=1e-5)


def test_equal_advantages_are_standardised_to_zero():
  np.testing.assert_array_equal(
      losses.standardize(tf.fill([3, 2], 2.), tf.ones([3, 2])), np.zeros((3, 2)))


def test_a_replica_standardises_by_the_whole_batch():
  batch = random_batch()
  advantages, mask = batch['rewards'], batch['mask']
  whole = losses.standardize(advantages, mask)
  # What the other replica has, as each call asks for it: the number of
  # timesteps, the sum and the sum of squares.
  center = np.sum(advantages * mask) / np.sum(mask)
  other_advantages, other_mask = advantages[:, 2:], mask[:, 2:]
  of_other = iter([np.sum(other_mask), np.sum(other_advantages * other_mask),
                   np.sum(np.square(other_advantages - center) * other_mask)])
  part = losses.standardize(advantages[:, :2], mask[:, :2],
                            lambda x: tf.reduce_sum(x) + next(of_other))
  np.testing.assert_allclose(part, whole[:, :2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('ratio, advantage, loss, gradient', [
    # Within the trust region: the policy gradient, weighed by the ratio.
    (1.1, 2., -2.2, -2.2),
    (0.9, -2., 1.8, 1.8),
    # Outside, where going on would improve: no more gradient.
    (1.5, 2., -2.4, 0.),
    (0.5, -2., 1.6, 0.),
    # Outside, but on the wrong side: all of the way back.
    (1.5, -2., 3., 3.),
    (0.5, 2., -1., -1.),
])
def test_clipped_surrogate(ratio, advantage, loss, gradient):
  log_rhos = tf.constant([[np.log(ratio)]], tf.float32)
  with tf.GradientTape() as tape:
    tape.watch(log_rhos)
    result = losses.clipped_surrogate_loss(log_rhos, column(advantage), 0.2)
  np.testing.assert_allclose(result, [[loss]], rtol=1e-5)
  # With respect to the log-ratio, and so to the log-probability: descending
  # makes an action of positive advantage more likely.
  np.testing.assert_allclose(tape.gradient(result, log_rhos), [[gradient]],
                             rtol=1e-5)


def test_clip_epsilon_is_the_width_on_both_sides():
  log_rhos = np.log([[3., 0.1]]).astype(np.float32)
  advantages = np.array([[1., -1.]], np.float32)
  result = losses.clipped_surrogate_loss(log_rhos, advantages, 0.5)
  np.testing.assert_allclose(result, [[-1.5, 0.5]], rtol=1e-5)


def test_policy_gradient():
  rng = np.random.default_rng(0)
  logits = tf.constant(rng.normal(size=(T, B, A)), tf.float32)
  actions = rng.integers(0, A, (T, B)).astype(np.int32)
  advantages = tf.constant(rng.normal(size=(T, B)), tf.float32)
  with tf.GradientTape() as tape:
    tape.watch([logits, advantages])
    loss = tf.reduce_sum(losses.policy_gradient_loss(
        losses.log_probs(logits, actions), advantages))
  gradient, to_advantages = tape.gradient(loss, [logits, advantages])
  chosen = np.eye(A)[actions]
  expected = advantages.numpy()[..., None] * (tf.nn.softmax(logits) - chosen)
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
  assert to_advantages is None


def test_log_probs():
  logits = np.log([[[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]]]).astype(np.float32)
  # Any offset makes the same policy.
  logits += np.array([3., -80.], np.float32)[:, None]
  actions = np.array([[2, 0]], np.int32)
  np.testing.assert_allclose(losses.log_probs(logits, actions),
                             np.log([[0.7, 0.5]]), rtol=1e-4)


def test_squared_value_loss():
  values, targets = tf.constant([[1., 5.]]), tf.constant([[3., 4.]])
  with tf.GradientTape() as tape:
    tape.watch([values, targets])
    loss = losses.squared_value_loss(values, targets)
  np.testing.assert_allclose(loss, [[2., 0.5]])
  to_values, to_targets = tape.gradient(loss, [values, targets])
  np.testing.assert_allclose(to_values, [[-2., 1.]])
  assert to_targets is None


def test_hl_gauss_loss_is_the_divergence_of_what_is_predicted():
  bins = values_lib.Bins(bound=2., num_bins=21)
  targets = tf.constant([[0., 1.], [-3., 50.]])  # The last is beyond the bins.
  value_logits = np.random.default_rng(0).normal(size=(2, 2, 21)).astype(np.float32)
  with tf.GradientTape() as tape:
    tape.watch(targets)
    loss = losses.hl_gauss_loss(value_logits, targets, bins)
  np.testing.assert_allclose(
      loss, oracles.hl_gauss_loss(value_logits, targets.numpy(), 2.), rtol=1e-4)
  assert tape.gradient(loss, targets) is None
  perfect = tf.math.log(bins.probabilities(targets) + 1e-30)
  np.testing.assert_allclose(losses.hl_gauss_loss(perfect, targets, bins),
                             np.zeros([2, 2]), atol=1e-5)


def test_its_gradient_is_that_of_a_classifier():
  bins = values_lib.Bins(bound=2., num_bins=21)
  targets = tf.constant([[0.3, -1.]])
  value_logits = tf.random.stateless_normal([1, 2, 21], [1, 2])
  with tf.GradientTape() as tape:
    tape.watch(value_logits)
    loss = losses.hl_gauss_loss(value_logits, targets, bins)
  np.testing.assert_allclose(
      tape.gradient(loss, value_logits),
      tf.nn.softmax(value_logits) - bins.probabilities(targets), atol=1e-6)


def test_entropy():
  uniform = losses.entropy(tf.fill([2, 3, A], 7.))
  np.testing.assert_allclose(uniform, np.full((2, 3), np.log(A)), rtol=1e-6)
  certain = losses.entropy(tf.constant([[0., 200., 0.]]))
  np.testing.assert_allclose(certain, [0.], atol=1e-6)
  p = np.array([0.1, 0.2, 0.7])
  np.testing.assert_allclose(losses.entropy(np.log(p).astype(np.float32)),
                             -np.sum(p * np.log(p)), rtol=1e-6)


def test_raising_entropy_lowers_the_likeliest_logit():
  logits = tf.constant([2., 0., 0.])
  with tf.GradientTape() as tape:
    tape.watch(logits)
    entropy = losses.entropy(logits)
  gradient = tape.gradient(entropy, logits).numpy()
  # Closed form: -p_i (log p_i + H).
  p = tf.nn.softmax(logits).numpy()
  np.testing.assert_allclose(gradient, -p * (np.log(p) + entropy), rtol=1e-5)
  assert gradient[0] < 0 < gradient[1]


@pytest.mark.parametrize('num_frames', (2, 4))
def test_newest_frame_and_motion(num_frames):
  rng = np.random.default_rng(0)
  frames = rng.random((3, 6, 5, num_frames)).astype(np.float32)
  frame, motion = losses.newest_frame_and_motion(tf.constant(frames))
  np.testing.assert_allclose(frame, frames[..., -1:], rtol=1e-6)
  np.testing.assert_allclose(
      motion, np.abs(frames[..., -1:] - frames[..., -2:-1]), atol=1e-6)


def test_lost_ball_costs_far_more_than_in_the_plain_mean():
  # A ball of 8 pixels moved by its length; a still wall is the background.
  frames = np.zeros((1, 84, 84, 2), np.float32)
  frames[:, :10] = 0.5
  frames[:, 40:44, 30:32, 0] = 1.
  frames[:, 40:44, 32:34, 1] = 1.
  target, motion = losses.newest_frame_and_motion(tf.constant(frames))
  lost = frames[..., 1:].copy()
  lost[:, 40:44, 32:34] = 0.
  plain = np.mean(np.square(lost - target))
  np.testing.assert_allclose(plain, 8 / 84**2, rtol=1e-5)
  loss = losses.reconstruction_loss(tf.constant(lost), target, motion)
  # Of the 16 moving pixels, half are wrong by one.
  np.testing.assert_allclose(loss, [0.5 * (8 / 84**2 + 8 / 16)], rtol=1e-5)
  assert loss[0] > 200 * plain
  # As wrong somewhere still, it costs no more than under the plain mean.
  elsewhere = frames[..., 1:].copy()
  elsewhere[:, 70:74, 32:34] = 1.
  loss = losses.reconstruction_loss(tf.constant(elsewhere), target, motion)
  np.testing.assert_allclose(loss, [0.5 * plain], rtol=1e-5)


@pytest.mark.parametrize('weight', (tf.ones([]), tf.fill([3, 4, 4, 1], 7.)))
def test_reconstruction_loss_of_even_weight_is_the_plain_mean(weight):
  rng = np.random.default_rng(0)
  a, b = rng.random((2, 3, 4, 4, 1)).astype(np.float32)
  np.testing.assert_allclose(losses.reconstruction_loss(a, b, weight),
                             np.mean(np.square(a - b), (1, 2, 3)), rtol=1e-5)


def test_reconstruction_loss_where_nothing_moves_is_finite():
  a, b = np.ones((2, 6), np.float32), np.zeros((2, 6), np.float32)
  np.testing.assert_allclose(losses.reconstruction_loss(a, b, tf.zeros([2, 6])),
                             [0.5, 0.5])


def random_outputs_and_batch(config, seed=0):
  """What the networks might make of a batch [B, T, ...] of small images."""
  rng = np.random.default_rng(seed)

  def normal(*shape, scale=1.):
    return rng.normal(0., scale, shape).astype(np.float32)

  reconstruction = normalized = None
  if config.autoencoder:
    channels = max(config.frame_stack, 2)
    normalized = normal(6, 8, 8, channels)
    # Only the newest frame of a stack is decoded.
    reconstruction = normal(6, 8, 8, 1 if config.frame_stack > 1 else channels)
  value_logits = (
      normal(B, T + 1, values_lib.make_bins(config).num_bins)
      if config.value_loss == 'hl_gauss' else None)
  outputs = networks_lib.NetworkOutputs(
      normal(B, T + 1, A), normal(B, T + 1), reconstruction, normalized,
      value_logits)
  batch = trajectories.Trajectories(
      observation=None, action=rng.integers(0, A, (B, T)).astype(np.int32),
      reward=normal(B, T, scale=3.),
      discount=(rng.random((B, T)) > 0.2).astype(np.float32),
      mask=rng.random((B, T)) > 0.25, behaviour_logits=normal(B, T, A),
      policy_version=None, key=None, shard=None)
  return outputs, batch


@pytest.mark.parametrize('settings', [
    dict(loss='ppo', autoencoder=True, frame_stack=1),
    dict(loss='ppo', autoencoder=True, frame_stack=4),
    dict(loss='ppo', autoencoder=False),
    dict(loss='ppo', autoencoder=False, normalize_advantages=False),
    dict(loss='vtrace', autoencoder=True, frame_stack=4),
    dict(loss='ppo', autoencoder=False, value_loss='squared'),
    dict(loss='vtrace', autoencoder=False),
    dict(loss='a3c', autoencoder=False),
], ids=lambda settings: '-'.join(map(str, settings.values())))
def test_each_metric_is_what_numpy_makes_of_it(settings):
  config = config_lib.ImpalaPPOConfig(
      vtrace_lambda=0.9, baseline_cost=0.7, entropy_cost=0.3,
      reconstruction_cost=0.4, max_abs_reward=2., **settings)
  outputs, batch = random_outputs_and_batch(config)
  expected, priorities = oracles.impala_ppo_loss(outputs, batch, config)
  # Whatever is clipped or not is there to be seen.
  assert 0. < expected['clip_fraction'] < 1.
  assert np.abs(batch.reward).max() > 2. > np.abs(batch.reward).min()
  result = losses.impala_ppo_loss(outputs, batch, config)
  assert set(result.metrics) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(result.metrics[name], value, rtol=1e-4, atol=1e-6,
                               err_msg=name)
  np.testing.assert_allclose(result.loss, expected['loss'], rtol=1e-4)
  np.testing.assert_allclose(result.priorities, priorities, rtol=1e-4)


@pytest.mark.parametrize('loss', typing.get_args(config_lib.Loss))
def test_a_batch_of_resets_alone_teaches_nothing_but_reconstruction(loss):
  config = config_lib.ImpalaPPOConfig(loss=loss, frame_stack=4)
  outputs, batch = random_outputs_and_batch(config)
  result = losses.impala_ppo_loss(
      outputs, batch._replace(mask=np.zeros((B, T), bool)), config)
  whole = losses.impala_ppo_loss(outputs, batch, config)
  reconstruction = whole.metrics.pop('reconstruction_loss')
  assert result.metrics.pop('reconstruction_loss') == reconstruction
  assert result.loss == config.reconstruction_cost * reconstruction
  assert result.metrics.pop('loss') == result.loss
  assert set(result.metrics) == set(whole.metrics) - {'loss'}
  assert all(value == 0. for value in result.metrics.values())
  np.testing.assert_array_equal(result.priorities, 0.)


def test_a3c_takes_all_experience_for_the_current_policys():
  config = config_lib.ImpalaPPOConfig(loss='a3c', autoencoder=False)
  outputs, batch = random_outputs_and_batch(config)
  own = batch._replace(behaviour_logits=outputs.logits[:, :-1])
  result = losses.impala_ppo_loss(outputs, batch, config)
  assert result.loss == losses.impala_ppo_loss(outputs, own, config).loss
  # On policy that is IMPALA's gradient.
  config.loss = 'vtrace'
  assert result.loss == losses.impala_ppo_loss(outputs, own, config).loss
  assert result.loss != losses.impala_ppo_loss(outputs, batch, config).loss


@pytest.mark.parametrize('loss', typing.get_args(config_lib.Loss))
def test_estimates_are_constants_and_resets_have_no_gradient(loss):
  config = config_lib.ImpalaPPOConfig(loss=loss, frame_stack=4,
                                      value_loss='squared')
  outputs, batch = random_outputs_and_batch(config)
  watched = networks_lib.NetworkOutputs(*map(tf.constant, outputs[:4]))
  with tf.GradientTape() as tape:
    tape.watch(watched[:4])
    total = losses.impala_ppo_loss(watched, batch, config).loss
  to_logits, to_values, to_reconstruction = (
      gradient.numpy() for gradient in tape.gradient(total, watched[:3]))

  assert (to_logits[:, :-1][~batch.mask] == 0).all()
  assert np.abs(to_logits[:, :-1][batch.mask]).max(axis=-1).min() > 1e-6
  # The last step is only bootstrapped from.
  assert (to_logits[:, -1] == 0).all() and (to_values[:, -1] == 0).all()
  # That of half a squared error is the error, which priorities are means of.
  _, priorities = oracles.impala_ppo_loss(outputs, batch, config)
  np.testing.assert_allclose(
      np.abs(to_values[:, :-1]).sum(axis=1),
      config.baseline_cost * priorities * T / batch.mask.sum(), rtol=1e-4)
  target = outputs.normalized_observation[..., -1:]
  motion = np.abs(target - outputs.normalized_observation[..., -2:-1])
  weight = 1. / 64 + motion / motion.sum(axis=(1, 2, 3), keepdims=True)
  np.testing.assert_allclose(
      to_reconstruction, config.reconstruction_cost / len(target) * weight *
      (outputs.reconstruction - target), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize('loss', typing.get_args(config_lib.Loss))
def test_value_logits_learn_from_experience_and_values_are_constants(loss):
  config = config_lib.ImpalaPPOConfig(loss=loss, autoencoder=False)
  outputs, batch = random_outputs_and_batch(config)
  values, value_logits = map(tf.constant, (outputs.values, outputs.value_logits))
  with tf.GradientTape() as tape:
    tape.watch([values, value_logits])
    total = losses.impala_ppo_loss(outputs._replace(
        values=values, value_logits=value_logits), batch, config).loss
  to_values, to_logits = tape.gradient(total, [values, value_logits])
  # What values say goes into targets and advantages only.
  assert to_values is None
  magnitudes = np.abs(to_logits).max(axis=-1)
  assert (magnitudes[:, :-1][~batch.mask] == 0).all()
  assert magnitudes[:, :-1][batch.mask].min() > 1e-6
  # The last step is only bootstrapped from.
  assert (magnitudes[:, -1] == 0).all()
