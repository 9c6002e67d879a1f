"""Losses of the PPO-IMPALA agent: small pure functions.

The terms take [T, B] tensors, for time T and batch B, and return a loss for each
element. `impala_ppo_loss` is the training loss: it combines the terms and takes
the means.

References:
  [1] Espeholt et al., IMPALA, arXiv:1802.01561.
  [2] Schulman et al., Proximal Policy Optimization, arXiv:1707.06347.
  [3] Schulman et al., Generalized Advantage Estimation, arXiv:1506.02438.
  [4] Mnih et al., Asynchronous Methods for Deep RL, arXiv:1602.01783.
  [5] Farebrother et al., Stop Regressing, arXiv:2403.03950.
"""

from typing import Callable, NamedTuple

import tensorflow as tf

from agents.impala_ppo import config as config_lib
from agents.impala_ppo import networks as networks_lib
from agents.impala_ppo import ops
from agents.impala_ppo import trajectories
from agents.impala_ppo import values as values_lib


class VTrace(NamedTuple):
  """V-trace estimates, all [T, B] float32 and without gradient.

  Attributes:
    targets: v_s of [1, eq. 1], the regression targets of the values.
    advantages: r_s + discount_s (V(x_{s+1}) + lambda (v_{s+1} - V(x_{s+1})))
      - V(x_s), unweighted, since the surrogate's own ratio weights them. On
      policy, this is generalised advantage estimation [3, eq. 16].
    pg_advantages: the same times min(1, rho_s), for the policy gradient of
      [1, section 4.2].
  """
  targets: tf.Tensor
  advantages: tf.Tensor
  pg_advantages: tf.Tensor


class Loss(NamedTuple):
  """What a batch, or a replica's part of one, adds to the loss.

  Attributes:
    loss: [] float32; the sum over replicas is a mean over the batch.
    metrics: [] float32 each, likewise.
    priorities: [B] float32, the mean magnitude of the value error over each
      trajectory, for prioritised replay.
  """
  loss: tf.Tensor
  metrics: dict[str, tf.Tensor]
  priorities: tf.Tensor


# Has the arguments and results of `impala_ppo_loss`.
LossFunction = Callable[
    [networks_lib.NetworkOutputs, trajectories.Trajectories,
     config_lib.ImpalaPPOConfig, Callable[[tf.Tensor], tf.Tensor]], Loss]


def impala_ppo_loss(
    outputs: networks_lib.NetworkOutputs,
    batch: trajectories.Trajectories,
    config: config_lib.ImpalaPPOConfig,
    total: Callable[[tf.Tensor], tf.Tensor] = tf.reduce_sum,
) -> Loss:
  """The agent's loss: PPO's surrogate, or the policy gradient of IMPALA or A3C.

  Args:
    outputs: the networks' outputs for `batch.observation`.
    batch: B trajectories, perhaps one replica's part of the batch.
    config: the agent's settings.
    total: sums a tensor over all its elements and all replicas. Every mean is
      over all replicas, so that together they compute exactly what one would
      alone.

  Returns:
    The `Loss`.
  """
  # [B, T, ...] to [T, B, ...]: from here on time comes first.
  actions, rewards, discounts, mask, behaviour_logits, logits, values = (
      tf.transpose(x, [1, 0, *range(2, len(x.shape))]) for x in (
          batch.action, batch.reward, batch.discount,
          tf.cast(batch.mask, tf.float32), batch.behaviour_logits,
          outputs.logits, outputs.values))
  logits, values, bootstrap_value = logits[:-1], values[:-1], values[-1]
  rewards = tf.clip_by_value(rewards, -config.max_abs_reward,
                             config.max_abs_reward)
  discounts *= config.discount
  num_timesteps = tf.maximum(total(mask), 1.)  # Resets alone teach nothing.
  num_replicas = total(tf.ones([]))

  def mean(x: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(x * mask) / num_timesteps

  target_log_probs = log_probs(logits, actions)
  log_rhos = target_log_probs - log_probs(behaviour_logits, actions)
  # A3C corrects nothing: its advantages are sums of rewards [4, section 4], which
  # V-trace gives on policy.
  correction = tf.zeros_like(log_rhos) if config.loss == 'a3c' else log_rhos
  estimates = vtrace(
      tf.stop_gradient(correction), discounts, rewards, tf.stop_gradient(values),
      tf.stop_gradient(bootstrap_value), mask, config.vtrace_lambda)

  if config.loss == 'ppo':
    advantages = estimates.advantages
    if config.normalize_advantages:
      advantages = standardize(advantages, mask, total)
    policy_loss = mean(clipped_surrogate_loss(
        log_rhos, advantages, config.clip_epsilon))
  else:
    policy_loss = mean(policy_gradient_loss(
        target_log_probs, estimates.pg_advantages))
  if outputs.value_logits is None:
    value_loss = mean(squared_value_loss(values, estimates.targets))
  else:
    value_logits = tf.transpose(outputs.value_logits[:, :-1], [1, 0, 2])
    value_loss = mean(hl_gauss_loss(
        value_logits, estimates.targets, values_lib.make_bins(config)))
  mean_entropy = mean(entropy(logits))
  loss = (policy_loss + config.baseline_cost * value_loss -
          config.entropy_cost * mean_entropy)

  reconstruction = tf.constant(0.)
  if outputs.reconstruction is not None:
    target, weight = outputs.normalized_observation, tf.ones([])
    if config.frame_stack > 1:
      target, weight = newest_frame_and_motion(target)
    errors = reconstruction_loss(outputs.reconstruction, target, weight)
    reconstruction = tf.reduce_mean(errors) / num_replicas  # Of equal shares.
    loss += config.reconstruction_cost * reconstruction

  ratios = tf.exp(log_rhos)
  outside = tf.cast(tf.abs(ratios - 1.) > config.clip_epsilon, tf.float32)
  metrics = {
      'loss': loss,
      'policy_loss': policy_loss,
      'value_loss': value_loss,
      'entropy': mean_entropy,
      'reconstruction_loss': reconstruction,
      'clip_fraction': mean(outside),
      'approximate_kl': mean(ratios - 1. - log_rhos),
      'rho_mean': mean(tf.minimum(1., ratios)),
      'rho_clipped_fraction': mean(tf.cast(ratios > 1., tf.float32)),
      # Every replica computes all of it.
      'explained_variance': explained_variance(
          values, estimates.targets, mask, total) / num_replicas,
  }
  priorities = tf.reduce_mean(
      tf.abs(estimates.targets - values) * mask, axis=0)
  return Loss(loss, metrics, priorities)


def log_probs(logits: tf.Tensor, actions: tf.Tensor) -> tf.Tensor:
  """Returns log-probabilities [...] of actions [...] under logits [..., A]."""
  return -tf.nn.sparse_softmax_cross_entropy_with_logits(
      labels=actions, logits=logits)


def vtrace(
    log_rhos: tf.Tensor,
    discounts: tf.Tensor,
    rewards: tf.Tensor,
    values: tf.Tensor,
    bootstrap_value: tf.Tensor,
    mask: tf.Tensor,
    lambda_: float = 1.,
) -> VTrace:
  """Computes V-trace targets and advantages; sequences may cross episodes.

  A step with mask 0 (the environment's reset) gets importance weight 0: its
  target is its value, so nothing flows back across it, and a truncated
  episode bootstraps from the value of its last observation.

  Args:
    log_rhos: [T, B], log pi(a|x) - log mu(a|x).
    discounts: [T, B], 0 after a terminal step.
    rewards: [T, B].
    values: [T, B], V(x_s).
    bootstrap_value: [B], V(x_T).
    mask: [T, B], 1 for experience and 0 for resets.
    lambda_: in (0, 1], scales the trace coefficients: c_i = lambda min(1, rho_i)
      [1, remark 2].

  Returns:
    The `VTrace` estimates; advantages are meaningless where mask is 0.
  """
  rhos = tf.where(mask > 0, tf.minimum(1., tf.exp(log_rhos)), 0.)
  next_values = tf.concat([values[1:], bootstrap_value[None]], axis=0)
  deltas = rhos * (rewards + discounts * next_values - values)

  # v_s - V(x_s), which is delta_s + discount_s c_s (v_{s+1} - V(x_{s+1})).
  corrections = ops.backward_recurrence(deltas, discounts * lambda_ * rhos)
  next_corrections = tf.concat(
      [corrections[1:], tf.zeros_like(bootstrap_value)[None]], axis=0)
  advantages = (rewards + discounts *
                (next_values + lambda_ * next_corrections) - values)
  return VTrace(*map(tf.stop_gradient, (
      values + corrections, advantages, rhos * advantages)))


def standardize(
    advantages: tf.Tensor,
    mask: tf.Tensor,
    total: Callable[[tf.Tensor], tf.Tensor] = tf.reduce_sum,
) -> tf.Tensor:
  """Standardises advantages to mean 0 and variance 1.

  Args:
    advantages: [T, B].
    mask: [T, B], 1 where they count.
    total: sums over all elements, and all replicas.

  Returns:
    [T, B].
  """
  num_timesteps = tf.maximum(total(mask), 1.)
  center = total(advantages * mask) / num_timesteps
  variance = total(tf.square(advantages - center) * mask) / num_timesteps
  return (advantages - center) / (tf.sqrt(variance) + 1e-8)


def explained_variance(
    values: tf.Tensor,
    targets: tf.Tensor,
    mask: tf.Tensor,
    total: Callable[[tf.Tensor], tf.Tensor] = tf.reduce_sum,
) -> tf.Tensor:
  """Returns the fraction of the targets' variance that values explain, [].

  Args:
    values: [T, B].
    targets: [T, B].
    mask: [T, B], 1 where they count.
    total: sums over all elements, and all replicas.

  Returns:
    At most 1: 1 if they agree, 0 if a constant would do as well, or if targets do
    not vary.
  """
  num_timesteps = tf.maximum(total(mask), 1.)

  def variance(x: tf.Tensor) -> tf.Tensor:
    center = total(x * mask) / num_timesteps
    return total(tf.square(x - center) * mask)

  of_targets = variance(targets)
  unexplained = tf.math.divide_no_nan(variance(targets - values), of_targets)
  return tf.where(of_targets > 0., 1. - unexplained, 0.)


def clipped_surrogate_loss(
    log_rhos: tf.Tensor,
    advantages: tf.Tensor,
    clip_epsilon: float,
) -> tf.Tensor:
  """PPO's clipped surrogate [2, eq. 7], with a ratio to the behaviour policy.

  Args:
    log_rhos: [T, B], log pi(a|x) - log mu(a|x), with gradient.
    advantages: [T, B], without gradient.
    clip_epsilon: width of the trust region of the ratio.

  Returns:
    The loss, [T, B].
  """
  ratio = tf.exp(log_rhos)
  clipped = tf.clip_by_value(ratio, 1. - clip_epsilon, 1. + clip_epsilon)
  return -tf.minimum(ratio * advantages, clipped * advantages)


def policy_gradient_loss(
    target_log_probs: tf.Tensor,
    pg_advantages: tf.Tensor,
) -> tf.Tensor:
  """IMPALA's policy gradient [1, section 4.2], as a loss.

  Args:
    target_log_probs: [T, B], log pi(a|x), with gradient.
    pg_advantages: [T, B], as of `VTrace`.

  Returns:
    The loss, [T, B].
  """
  return -target_log_probs * tf.stop_gradient(pg_advantages)


def squared_value_loss(values: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
  """Half the squared error of values to their targets, [T, B]."""
  return 0.5 * tf.square(tf.stop_gradient(targets) - values)


def hl_gauss_loss(
    value_logits: tf.Tensor,
    targets: tf.Tensor,
    bins: values_lib.Bins,
) -> tf.Tensor:
  """Divergence of predicted distributions from smoothed targets [5, eq. 3.1].

  This is the cross-entropy minus that of a perfect prediction: 0 if there is
  nothing to learn, and with the same gradient.

  Args:
    value_logits: [T, B, K].
    targets: [T, B].
    bins: the K bins of both.

  Returns:
    The loss, [T, B].
  """
  wanted = tf.stop_gradient(bins.probabilities(targets))
  least = -tf.reduce_sum(tf.math.xlogy(wanted, wanted), axis=-1)
  return tf.nn.softmax_cross_entropy_with_logits(wanted, value_logits) - least


def entropy(logits: tf.Tensor) -> tf.Tensor:
  """Returns the entropy in nats, [...], of softmax policies [..., A]."""
  log_p = tf.nn.log_softmax(logits)
  return -tf.reduce_sum(tf.exp(log_p) * log_p, axis=-1)


def newest_frame_and_motion(
    frames: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns what to reconstruct of a stack of frames, and where it moves.

  Args:
    frames: [N, H, W, C] float32, successive frames in the channels.

  Returns:
    The newest frame and its absolute difference from the one before, both
    [N, H, W, 1].
  """
  frame, change = ops.newest_and_change(frames)
  return frame, tf.abs(change)


def reconstruction_loss(
    reconstruction: tf.Tensor,
    target: tf.Tensor,
    weight: tf.Tensor,
) -> tf.Tensor:
  """Squared error, half of it for the whole and half for what moves.

  A ball is a handful of pixels among thousands: the plain mean all but
  ignores it. The second half is a mean weighted by `weight`, in which the
  moving pixels count the same however few they are.

  Args:
    reconstruction: [N, ...].
    target: [N, ...].
    weight: [N, ...] non-negative, such as motion.

  Returns:
    The loss of each example, [N].
  """
  error = tf.square(reconstruction - target)
  axes = list(range(1, len(error.shape)))
  weight = tf.broadcast_to(weight, tf.shape(error))
  whole = tf.reduce_mean(error, axes)
  moving = tf.math.divide_no_nan(tf.reduce_sum(weight * error, axes),
                                 tf.reduce_sum(weight, axes))
  return 0.5 * (whole + moving)
