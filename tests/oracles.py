"""What tests hold the losses to: numpy, slowly and in float64."""

import math

import numpy as np


def vtrace(log_rhos, discounts, rewards, values, bootstrap_value, mask,
           lambda_=1.):
  """Eq. 1 of the IMPALA paper as it is written, a sum over t for every s."""
  rho = np.minimum(1., np.exp(log_rhos)) * mask
  c = lambda_ * np.minimum(1., np.exp(log_rhos)) * mask
  next_values = np.concatenate([values[1:], bootstrap_value[None]])
  delta = rho * (rewards + discounts * next_values - values)
  num_steps, batch_size = rewards.shape
  v = np.array(values)
  for b in range(batch_size):
    for s in range(num_steps):
      for t in range(s, num_steps):
        weight = 1.
        for i in range(s, t):
          weight *= discounts[i, b] * c[i, b]
        v[s, b] += weight * delta[t, b]
  next_v = np.concatenate([v[1:], bootstrap_value[None]])
  next_v = lambda_ * next_v + (1. - lambda_) * next_values
  advantages = rewards + discounts * next_v - values
  return v, advantages, rho * advantages


def log_softmax(x):
  x = x.astype(np.float64)
  return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def hl_gauss_loss(value_logits, targets, bound):
  """The divergence from a Gaussian around each target, cut up into bins."""
  num_bins = value_logits.shape[-1]
  width = 2 * bound / (num_bins - 1)
  edges = [-bound + width * (i - 0.5) for i in range(num_bins + 1)]
  log_q = log_softmax(value_logits)
  result = np.empty(targets.shape)
  for index, target in np.ndenumerate(targets):
    squashed = math.copysign(math.log(1 + abs(target)), target)
    squashed = min(max(squashed, -bound), bound)
    below = [0.5 * (1 + math.erf((edge - squashed) / (0.75 * width) / 2 ** 0.5))
             for edge in edges]
    p = np.diff(below) / (below[-1] - below[0])
    result[index] = sum(
        a * (math.log(a) - b) for a, b in zip(p, log_q[index]) if a > 0)
  return result


def impala_ppo_loss(outputs, batch, config):
  """The whole loss in float64, by other means: no TensorFlow, no scan.

  Returns:
    Metrics and priorities.
  """
  def chosen(log_p):
    return np.take_along_axis(log_p, batch.action[..., None], -1)[..., 0]

  mask = batch.mask.astype(np.float64)
  log_p = log_softmax(outputs.logits[:, :-1])
  log_rhos = chosen(log_p) - chosen(log_softmax(batch.behaviour_logits))
  values = outputs.values.astype(np.float64)
  corrected = log_rhos * (config.loss != 'a3c')
  targets, advantages, pg_advantages = (x.T for x in vtrace(
      corrected.T, config.discount * batch.discount.T,
      np.clip(batch.reward, -config.max_abs_reward, config.max_abs_reward).T,
      values[:, :-1].T, values[:, -1], mask.T, config.vtrace_lambda))

  def mean(x):
    return x[batch.mask].mean()

  ratios = np.exp(log_rhos)
  if config.loss == 'ppo':
    if config.normalize_advantages:
      experience = advantages[batch.mask]
      advantages = (advantages - experience.mean()) / experience.std()
    clipped = np.clip(ratios, 1 - config.clip_epsilon, 1 + config.clip_epsilon)
    policy_loss = -mean(np.minimum(ratios * advantages, clipped * advantages))
  else:
    policy_loss = -mean(chosen(log_p) * pg_advantages)
  if config.value_loss == 'squared':
    value_loss = mean(np.square(targets - values[:, :-1])) / 2
  else:
    value_loss = mean(hl_gauss_loss(
        outputs.value_logits[:, :-1], targets,
        math.log(1 + config.max_abs_reward / (1 - config.discount))))
  entropy = mean(-(np.exp(log_p) * log_p).sum(axis=-1))
  reconstruction_loss = 0.
  if config.autoencoder:
    target = outputs.normalized_observation.astype(np.float64)
    weight = np.ones_like(target)
    if config.frame_stack > 1:
      weight = np.abs(target[..., -1:] - target[..., -2:-1])
      target = target[..., -1:]
    error = np.square(outputs.reconstruction - target)
    reconstruction_loss = np.mean([
        (e.mean() + np.average(e, weights=w)) / 2 for e, w in zip(error, weight)])
  metrics = {
      'loss': (policy_loss + config.baseline_cost * value_loss -
               config.entropy_cost * entropy +
               config.reconstruction_cost * reconstruction_loss),
      'policy_loss': policy_loss,
      'value_loss': value_loss,
      'entropy': entropy,
      'reconstruction_loss': reconstruction_loss,
      'clip_fraction': mean(np.abs(ratios - 1) > config.clip_epsilon),
      'approximate_kl': mean(ratios - 1 - log_rhos),
      'rho_mean': mean(np.minimum(1, ratios)),
      'rho_clipped_fraction': mean(ratios > 1),
      'explained_variance': 1 - (
          (targets - values[:, :-1])[batch.mask].var() / targets[batch.mask].var()),
  }
  return metrics, (np.abs(targets - values[:, :-1]) * mask).mean(axis=1)
