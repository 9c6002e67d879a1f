"""The learner: one TensorFlow function per step, on one or more replicas."""

import time
from typing import Dict, Iterator, List, Mapping, Optional, Sequence

from acme import core
from acme.tf import savers
from acme.utils import counting
import numpy as np
import reverb
import sonnet as snt
import tensorflow as tf

from agents.impala_ppo import acting
from agents.impala_ppo import config as config_lib
from agents.impala_ppo import losses
from agents.impala_ppo import networks as networks_lib
from agents.impala_ppo import optimizers
from agents.impala_ppo import replay

_SLOWEST_STATISTICS_RATE = 1e-3


def make_strategy(
    devices: Optional[Sequence[str]] = None) -> snt.distribute.Replicator:
  """Makes the strategy that replicates the learner.

  Args:
    devices: TensorFlow device names, one a replica; by default all GPUs that
      TensorFlow sees, or else the CPU.
  """
  if devices is None:
    num_gpus = len(tf.config.list_logical_devices('GPU'))
    devices = [f'/gpu:{i}' for i in range(num_gpus)] or ['/cpu:0']
  # Reducing to one device works on any of them, unlike NCCL.
  return snt.distribute.Replicator(
      list(devices),
      cross_device_ops=tf.distribute.ReductionToOneDevice())


class ImpalaPPOLearner(core.Learner, savers.TFSaveable):
  """Learns from batches of `replay.Trajectories`.

  Serves its weights under the name 'policy', ending with the number of
  learner steps that made them.
  """

  def __init__(
      self,
      networks: networks_lib.ImpalaPPONetworks,
      config: config_lib.ImpalaPPOConfig,
      iterator: Iterator[replay.Trajectories],
      strategy: tf.distribute.Strategy,
      replay_clients: Sequence[reverb.Client] = (),
      counter: Optional[counting.Counter] = None,
  ):
    """Makes a learner.

    Args:
      networks: the networks to train, without variables yet.
      config: the agent's settings.
      iterator: batches, split over the replicas of `strategy`.
      strategy: where to compute.
      replay_clients: one a shard, to update priorities with; needed only for
        prioritised replay.
      counter: counts `steps`.
    """
    self._config = config
    self._iterator = iterator
    self._strategy = strategy
    self._replay_clients = replay_clients
    self._counter = counter
    self._actor_critic = networks.actor_critic
    self._decoder = networks.decoder
    with strategy.scope():
      networks.create_variables()
      self._num_steps = tf.Variable(0, dtype=tf.int64, trainable=False)
      self._learning_rate = tf.Variable(config.learning_rate, trainable=False)
      self._optimizer = optimizers.Adam(self._learning_rate,
                                        epsilon=config.adam_epsilon)
      self._variables = self._actor_critic.trainable_variables
      if self._decoder is not None:
        self._variables += self._decoder.trainable_variables
      # Its moments have to exist before a checkpoint can be restored.
      self._optimizer._initialize(self._variables)  # pylint: disable=protected-access
    self._distributed_step = tf.function(self._run_replicas)
    self._metrics: Dict[str, tf.Tensor] = {}
    self._wait_seconds = 0.
    self._step_seconds = 0.
    self._steps_since_metrics = 0
    self._publish(self._weights())

  def step(self):
    """Takes the next batch, waiting for it if need be, and learns from it."""
    start = time.perf_counter()
    batch = next(self._iterator)
    fetched = time.perf_counter()
    self._metrics, priorities, weights = self._distributed_step(batch)
    if priorities is not None:
      self._update_priorities(batch, priorities)
    self._publish(weights)
    if self._counter is not None:
      self._counter.increment(steps=1)
    self._wait_seconds += fetched - start
    self._step_seconds += time.perf_counter() - start
    self._steps_since_metrics += 1

  def _weights(self) -> List[tf.Tensor]:
    """Reads what actors get."""
    return [v.read_value()
            for v in (*self._actor_critic.variables, self._num_steps)]

  def _publish(self, weights: Sequence[tf.Tensor]):
    """Copies the weights for `get_variables`, so that serving them is free."""
    # One assignment, since other threads read it.
    self._published = [weight.numpy() for weight in weights]

  def get_variables(self, names: Sequence[str]) -> List[List[np.ndarray]]:
    """Returns the weights of the latest step and its number."""
    for name in names:
      if name != acting.POLICY:
        raise KeyError(f'no variables {name!r}; there are: {acting.POLICY}.')
    return [self._published for _ in names]

  @property
  def num_steps(self) -> int:
    """Steps that the weights have been trained for."""
    return int(self._published[-1])

  def metrics(self) -> Dict[str, float]:
    """Returns the latest losses, and rates since the previous call.

    `wait_fraction` is the part of the learner's time spent waiting for data,
    `frames_per_second` counts timesteps learned from, replayed ones too, and
    `policy_lag` the learner steps between acting and learning, over the
    batch's online part.
    """
    if not self._steps_since_metrics:
      return {}
    frames = (self._steps_since_metrics * self._config.batch_size *
              self._config.sequence_length)
    result = {name: float(value) for name, value in self._metrics.items()}
    result['wait_fraction'] = self._wait_seconds / self._step_seconds
    result['frames_per_second'] = frames / self._step_seconds
    self._wait_seconds = self._step_seconds = 0.
    self._steps_since_metrics = 0
    return result

  @property
  def state(self) -> Mapping[str, tf.Module]:
    """What a checkpoint holds: networks, optimiser and steps.

    The learning rate follows from the steps.
    """
    state = {'actor_critic': self._actor_critic, 'optimizer': self._optimizer,
             'num_steps': self._num_steps}
    if self._decoder is not None:
      state['decoder'] = self._decoder
    return state

  def on_restore(self):
    """To be called after `state` was restored from a checkpoint."""
    self._publish(self._weights())

  def _update_priorities(self, batch: replay.Trajectories,
                         priorities: tf.Tensor):
    """Sets the priority of each replayed item to its trajectories' mean."""
    def gather(values):
      return np.concatenate([
          v.numpy() for v in self._strategy.experimental_local_results(values)])

    keys, shards = gather(batch.key), gather(batch.shard)
    priorities = gather(priorities)
    replayed = slice(self._config.online_batch_size, None)
    sums: Dict[tuple, List[float]] = {}
    for shard, key, priority in zip(shards[replayed], keys[replayed],
                                    priorities[replayed]):
      sums.setdefault((int(shard), int(key)), []).append(float(priority))
    for shard, client in enumerate(self._replay_clients):
      updates = {key: np.mean(values) for (of, key), values in sums.items()
                 if of == shard}
      if updates:
        client.mutate_priorities(replay.REPLAY_TABLE, updates)

  def _run_replicas(self, batch: replay.Trajectories):
    metrics, priorities = self._strategy.run(self._replica_step, (batch,))
    # Metrics are already reduced: every replica has the same.
    metrics = tf.nest.map_structure(
        lambda m: self._strategy.experimental_local_results(m)[0], metrics)
    if self._config.replay_sampler != 'prioritized':
      priorities = None
    # Read in here: outside, each variable takes a call through the strategy.
    return metrics, priorities, self._weights()

  def _replica_step(self, batch: replay.Trajectories):
    """Learns from this replica's part of a batch.

    All means are over the whole batch, so that replicas compute together
    exactly what one would alone.
    """
    config = self._config
    context = tf.distribute.get_replica_context()

    def total(x):
      return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.reduce_sum(x))

    # Assigned below with `assign`: `assign_add` may work in place, and what
    # was read before it then changes.
    num_steps = tf.identity(self._num_steps)
    progress = (tf.cast(num_steps, tf.float32) *
                config.timesteps_per_learner_step /
                config.learning_rate_decay_timesteps)
    self._learning_rate.assign(
        config.learning_rate + tf.minimum(progress, 1.) *
        (config.final_learning_rate - config.learning_rate))

    # [B, T, ...] to [T, B, ...], as TRFL has it.
    actions, rewards, discounts, mask, behaviour_logits = (
        tf.transpose(x, [1, 0, *range(2, len(x.shape))]) for x in (
            batch.action, batch.reward, batch.discount,
            tf.cast(batch.mask, tf.float32), batch.behaviour_logits))
    rewards = tf.clip_by_value(rewards, -config.max_abs_reward,
                               config.max_abs_reward)
    discounts *= config.discount
    num_timesteps = total(mask)
    batch_shape = tf.shape(batch.observation)[:2]
    observation = tf.reshape(batch.observation,
                             [-1, *batch.observation.shape[2:]])

    def mean(x):
      return tf.reduce_sum(x * mask) / num_timesteps

    self._update_normalizer(batch.observation, num_steps)
    with tf.GradientTape() as tape:
      latent = self._actor_critic.encoder(observation)
      logits, values = self._actor_critic.heads(latent)
      logits = tf.transpose(
          tf.reshape(logits, [*tf.unstack(batch_shape), logits.shape[-1]]),
          [1, 0, 2])
      values = tf.transpose(tf.reshape(values, batch_shape))
      target_log_probs = losses.log_probs(logits[:-1], actions)
      log_rhos = target_log_probs - losses.log_probs(behaviour_logits, actions)
      vtrace = losses.vtrace(
          tf.stop_gradient(log_rhos), discounts, rewards,
          tf.stop_gradient(values[:-1]), tf.stop_gradient(values[-1]), mask,
          config.vtrace_lambda)

      if config.loss == 'ppo':
        advantages = vtrace.advantages
        if config.normalize_advantages:
          center = total(advantages * mask) / num_timesteps
          variance = total(tf.square(advantages - center) * mask) / num_timesteps
          advantages = (advantages - center) / (tf.sqrt(variance) + 1e-8)
        policy_loss = mean(losses.clipped_surrogate_loss(
            log_rhos, advantages, config.clip_epsilon))
      else:
        policy_loss = mean(losses.policy_gradient_loss(
            target_log_probs, vtrace.pg_advantages))
      value_loss = mean(losses.value_loss(values[:-1], vtrace.targets))
      entropy = mean(losses.entropy(logits[:-1]))
      loss = (policy_loss + config.baseline_cost * value_loss -
              config.entropy_cost * entropy)
      if self._decoder is not None:
        reconstruction_loss = self._reconstruction_loss(
            tf.reshape(latent, [*tf.unstack(batch_shape), latent.shape[-1]]),
            batch.observation)
        loss += config.reconstruction_cost * reconstruction_loss
      else:
        reconstruction_loss = tf.constant(0.)

    gradients = tape.gradient(loss, self._variables)
    gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
    gradients, gradient_norm = tf.clip_by_global_norm(
        gradients, config.max_gradient_norm)
    self._optimizer.apply(gradients, self._variables)

    self._num_steps.assign(num_steps + 1)
    priorities = tf.reduce_mean(
        tf.abs(vtrace.targets - values[:-1]) * mask, axis=0)
    outside = tf.cast(tf.abs(tf.exp(log_rhos) - 1.) > config.clip_epsilon,
                      tf.float32)
    metrics = {
        'loss': loss,
        'policy_loss': policy_loss,
        'value_loss': value_loss,
        'entropy': entropy,
        'reconstruction_loss': reconstruction_loss,
        'clip_fraction': mean(outside),
        'approximate_kl': mean(tf.exp(log_rhos) - 1. - log_rhos),
    }
    metrics = {name: total(value) for name, value in metrics.items()}
    metrics['gradient_norm'] = gradient_norm
    metrics['learning_rate'] = tf.convert_to_tensor(self._learning_rate)
    metrics['policy_lag'] = self._online_mean(
        num_steps - batch.policy_version, total)
    return metrics, priorities

  def _thin(self, x: tf.Tensor) -> tf.Tensor:
    """Picks timesteps of [B, T + 1, ...] and flattens them to [N, ...]."""
    steps = tf.range(0, x.shape[1], self._config.reconstruction_period)
    # Slicing with a stride copies pixel by pixel, twenty times as slowly.
    picked = tf.gather(x, steps, axis=1)
    return tf.reshape(picked, [-1, *x.shape[2:]])

  def _update_normalizer(self, observation: tf.Tensor, num_steps: tf.Tensor):
    """Updates the mean over all batches so far, and later over recent ones."""
    context = tf.distribute.get_replica_context()
    normalizer = self._actor_critic.encoder.normalizer
    mean, mean_square = context.all_reduce(
        tf.distribute.ReduceOp.MEAN,
        normalizer.moments(self._thin(observation)))
    rate = tf.maximum(1. / (tf.cast(num_steps, tf.float32) + 1.),
                      _SLOWEST_STATISTICS_RATE)
    normalizer.update(mean, mean_square, rate)

  def _online_mean(self, lag: tf.Tensor, total) -> tf.Tensor:
    """Mean of a [B, T] tensor over the online trajectories of all replicas."""
    context = tf.distribute.get_replica_context()
    size = tf.shape(lag)[0]
    index = tf.range(size) + size * context.replica_id_in_sync_group
    online = tf.cast(index < self._config.online_batch_size, tf.float32)
    online = online[:, None] * tf.ones([1, lag.shape[1]])
    return total(tf.cast(lag, tf.float32) * online) / total(online)

  def _reconstruction_loss(self, latent: tf.Tensor,
                           observation: tf.Tensor) -> tf.Tensor:
    """This replica's share of the mean reconstruction loss, [].

    Args:
      latent: [B, T + 1, latent_size].
      observation: [B, T + 1, ...].
    """
    reconstruction = self._decoder(self._thin(latent))
    target = self._actor_critic.encoder.normalizer(self._thin(observation))
    weight = tf.ones([])
    if self._config.frame_stack > 1:
      target, weight = losses.newest_frame_and_motion(target)
    loss = losses.reconstruction_loss(reconstruction, target, weight)
    replicas = self._strategy.num_replicas_in_sync
    return tf.reduce_mean(loss) / replicas
