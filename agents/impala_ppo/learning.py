"""The learner: one TensorFlow function per step, on one or more replicas."""

import contextlib
import functools
import threading
import time
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

from acme import core
from acme.utils import counting
import numpy as np
import reverb
import sonnet as snt
import tensorflow as tf

from agents.impala_ppo import acting
from agents.impala_ppo import config as config_lib
from agents.impala_ppo import losses
from agents.impala_ppo import networks as networks_lib
from agents.impala_ppo import ops
from agents.impala_ppo import replay
from agents.impala_ppo import trajectories

_SLOWEST_STATISTICS_RATE = 1e-3
# By compute_dtype: Sonnet's mixed-precision type, and the scale of the loss. A mean
# over 10,000 timesteps has gradients of 1e-7 each, too small for float16, while one
# weight's can be 10.
_PRECISIONS = {'float32': (None, 1.), 'float16': (tf.float16, 1024.)}

# Maps a replica's part of a batch to metrics, and to priorities [B] or None.
Update = Callable[[trajectories.Trajectories],
                  tuple[dict[str, tf.Tensor], Optional[tf.Tensor]]]


def make_strategy(
    devices: Optional[Sequence[str]] = None) -> tf.distribute.Strategy:
  """Makes the strategy that replicates the learner, if there is more than the CPU.

  Args:
    devices: TensorFlow device names, one per replica; by default all GPUs that
      TensorFlow sees, or else the CPU.

  Raises:
    ValueError: if GPUs are missing; TensorFlow would silently use the CPU.
  """
  num_gpus = len(tf.config.list_logical_devices('GPU'))
  if devices is None:
    devices = [f'/gpu:{i}' for i in range(num_gpus)] or ['/cpu:0']
  elif num_gpus < sum('gpu' in device.lower() for device in devices):
    raise ValueError(
        f'the learner is to compute on {", ".join(devices)}, but TensorFlow finds '
        f'{num_gpus} GPUs here.')
  if list(devices) == ['/cpu:0'] and not num_gpus:
    # It computes there anyway; Sonnet's strategy would wait a second for the end of
    # the thread that traces the step.
    return tf.distribute.get_strategy()
  # Reducing to one device works on any of them, unlike NCCL.
  return snt.distribute.Replicator(
      list(devices),
      cross_device_ops=tf.distribute.ReductionToOneDevice())


def total_over_replicas(x: tf.Tensor) -> tf.Tensor:
  """Sums a tensor over its elements and over all replicas."""
  return tf.distribute.get_replica_context().all_reduce(
      tf.distribute.ReduceOp.SUM, tf.reduce_sum(x))


def learning_rate(num_steps: tf.Tensor,
                  config: config_lib.ImpalaPPOConfig) -> tf.Tensor:
  """Returns the step size [] float32 after `num_steps` [] int64; falls linearly."""
  progress = (tf.cast(num_steps, tf.float32) *
              config.timesteps_per_learner_step /
              config.learning_rate_decay_timesteps)
  return (config.learning_rate + tf.minimum(progress, 1.) *
          (config.final_learning_rate - config.learning_rate))


def variables_of(state: Mapping[str, Any]) -> list[tf.Variable]:
  """Returns the variables of a learner's `state`, always in the same order."""
  return [variable for part in state.values()
          for variable in (part.variables if isinstance(part, tf.Module)
                           else [part])]


class ImpalaPPOLearner(core.Learner):
  """Learns from batches of `trajectories.Trajectories`.

  Serves two collections of variables, always of the same step: `policy`, the
  actors' weights, and `version`, the number of learner steps that made them.
  """

  def __init__(
      self,
      networks: networks_lib.ImpalaPPONetworks,
      config: config_lib.ImpalaPPOConfig,
      iterator: Iterator[trajectories.Trajectories],
      strategy: tf.distribute.Strategy,
      replay_clients: Sequence[reverb.Client] = (),
      counter: Optional[counting.Counter] = None,
      update: Optional[Update] = None,
      loss: losses.LossFunction = losses.impala_ppo_loss,
  ):
    """Makes a learner.

    Args:
      networks: the networks to train, without variables yet.
      config: the agent's settings.
      iterator: batches, split over the replicas of `strategy`.
      strategy: where to compute.
      replay_clients: one per shard, to update priorities; only prioritised replay
        needs them.
      counter: counts `steps`.
      update: what each replica does with its part of a batch; by default it
        learns from it.
      loss: the loss to minimise.

    Raises:
      ValueError: if prioritised replay has no clients.
    """
    if (config.replay_sampler == 'prioritized' and config.uses_replay and
        update is None and not replay_clients):
      raise ValueError('replay_sampler prioritized needs the replay_client, through '
                       'which the learner sets priorities.')
    self._config = config
    self._iterator = iterator
    self._strategy = strategy
    self._priorities = [replay.Priorities(client) for client in replay_clients]
    self._counter = counter
    self._networks = networks
    self._dtype, self._loss_scale = _PRECISIONS[config.compute_dtype]
    # Sonnet's first call computes in float32, so that variables are float32.
    with strategy.scope(), snt.mixed_precision.scope(self._dtype):
      networks.create_variables()
      self._num_steps = tf.Variable(0, dtype=tf.int64, trainable=False)
      self._learning_rate = tf.Variable(config.learning_rate, trainable=False)
      self._skipped_updates = tf.Variable(0, dtype=tf.int64, trainable=False)
      self._optimizer = ops.adam(self._learning_rate,
                                 epsilon=config.adam_epsilon)
      # Its moments must exist before a checkpoint can be restored.
      self._optimizer._initialize(networks.trainable_variables)
    self._loss = loss
    self._update = update or self._learn
    is_one_device = (strategy.num_replicas_in_sync == 1 and
                     not ops.may_use_gpus())
    self._distributed_step = (
        ops.function if is_one_device else ops.graph_function)(self._run_replicas)
    # Held while variables change.
    self._updating = threading.RLock()
    self._metrics: dict[str, tf.Tensor] = {}
    self._batch: Optional[trajectories.Trajectories] = None
    self._wait_seconds = 0.
    self._step_seconds = 0.
    self._steps_since_metrics = 0
    self._publish(self._served())

  def step(self) -> None:
    """Takes the next batch, waiting for it if need be, and learns from it."""
    start = time.perf_counter()
    batch = next(self._iterator)
    fetched = time.perf_counter()
    with self._updating:
      self._batch = batch
      self._metrics, priorities, served = self._distributed_step(batch)
      self._publish(served)
      if self._counter is not None:
        self._counter.increment(steps=1)
    # Without the lock: if a shard does not answer, only this thread waits.
    if priorities is not None:
      self._update_priorities(batch, priorities)
    with self._updating:
      self._wait_seconds += fetched - start
      self._step_seconds += time.perf_counter() - start
      self._steps_since_metrics += 1

  def _run_replicas(self, batch: trajectories.Trajectories) -> tuple[
      dict[str, tf.Tensor], Optional[tf.Tensor], dict[str, list[tf.Tensor]]]:
    metrics, priorities = self._strategy.run(self._update, (batch,))
    # Metrics are already reduced: every replica has the same.
    metrics = tf.nest.map_structure(
        lambda m: self._strategy.experimental_local_results(m)[0], metrics)
    if self._config.replay_sampler != 'prioritized':
      priorities = None
    self._num_steps.assign_add(1)
    # Read here: outside, each variable takes a call through the strategy.
    return metrics, priorities, self._served()

  def _learn(self, batch: trajectories.Trajectories) -> tuple[
      dict[str, tf.Tensor], Optional[tf.Tensor]]:
    """Learns from this replica's part of a batch."""
    config, networks = self._config, self._networks
    num_steps = tf.identity(self._num_steps)
    self._learning_rate.assign(learning_rate(num_steps, config))
    self._update_normalizer(batch.observation, num_steps)

    with tf.GradientTape() as tape, snt.mixed_precision.scope(self._dtype):
      outputs = networks.unroll(batch.observation, config.reconstruction_period)
      loss, metrics, priorities = self._loss(
          outputs, batch, config, total_over_replicas)
      loss *= self._loss_scale

    # A custom loss need not use all that the networks give.
    gradients = [gradient / self._loss_scale for gradient in tape.gradient(
        loss, networks.trainable_variables,
        unconnected_gradients=tf.UnconnectedGradients.ZERO)]
    gradients = tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.SUM, gradients)
    gradients, gradient_norm = tf.clip_by_global_norm(
        gradients, config.max_gradient_norm)
    self._apply(gradients, gradient_norm)

    metrics = {name: total_over_replicas(x) for name, x in metrics.items()}
    metrics['gradient_norm'] = gradient_norm
    metrics['skipped_updates'] = tf.convert_to_tensor(self._skipped_updates)
    metrics['learning_rate'] = tf.convert_to_tensor(self._learning_rate)
    metrics['policy_lag'] = self._mean_lag(num_steps - batch.policy_version)
    return metrics, priorities

  def _apply(self, gradients: Sequence[tf.Tensor], norm: tf.Tensor) -> None:
    """Updates the networks, unless the gradients' norm is not finite.

    Such gradients would leave weights, and so gradients, that stay non-finite.
    """
    def update():
      self._optimizer.apply(gradients, self._networks.trainable_variables)
      return tf.zeros([], tf.int64)

    def skip():
      return tf.ones([], tf.int64)

    self._skipped_updates.assign_add(
        tf.cond(tf.math.is_finite(norm), update, skip))

  def _update_normalizer(self, observation: tf.Tensor,
                         num_steps: tf.Tensor) -> None:
    """Updates statistics over all batches so far, and later over recent ones."""
    context = tf.distribute.get_replica_context()
    normalizer = self._networks.actor_critic.encoder.normalizer
    some = networks_lib.merge_time(
        ops.every(observation, self._config.reconstruction_period))
    mean, variance = normalizer.moments(some, functools.partial(
        context.all_reduce, tf.distribute.ReduceOp.MEAN))
    rate = tf.maximum(1. / (tf.cast(num_steps, tf.float32) + 1.),
                      _SLOWEST_STATISTICS_RATE)
    normalizer.update(mean, variance, rate)

  def _mean_lag(self, lag: tf.Tensor) -> tf.Tensor:
    """Mean of a [B, T] tensor over the online trajectories of all replicas."""
    context = tf.distribute.get_replica_context()
    size = tf.shape(lag)[0]
    index = tf.range(size) + size * context.replica_id_in_sync_group
    online = tf.cast(index < self._config.online_batch_size, tf.float32)
    online = online[:, None] * tf.ones([1, lag.shape[1]])
    return (total_over_replicas(tf.cast(lag, tf.float32) * online) /
            total_over_replicas(online))

  def _update_priorities(self, batch: trajectories.Trajectories,
                         priorities: tf.Tensor) -> None:
    """Sets the priority of each replayed item to its trajectories' mean."""
    def gather(values: tf.Tensor) -> np.ndarray:
      return np.concatenate([
          v.numpy() for v in self._strategy.experimental_local_results(values)])

    keys, shards = gather(batch.key), gather(batch.shard)
    # Reverb takes only finite priorities. With 0, an item is not drawn again.
    priorities = np.nan_to_num(gather(priorities), nan=0., posinf=0.)
    replayed = slice(self._config.online_batch_size, None)
    by_shard: dict[int, dict[int, list[float]]] = {}
    for shard, key, priority in zip(shards[replayed], keys[replayed],
                                    priorities[replayed]):
      by_shard.setdefault(int(shard), {}).setdefault(int(key), []).append(
          float(priority))
    for shard, shard_priorities in enumerate(self._priorities):
      if shard in by_shard:
        shard_priorities.update({
            key: float(np.mean(values)) for key, values in by_shard[shard].items()})

  def _served(self) -> dict[str, list[tf.Tensor]]:
    """Reads the variables that actors get."""
    return {
        acting.POLICY: [
            v.read_value() for v in self._networks.actor_critic.variables],
        acting.VERSION: [self._num_steps.read_value()],
    }

  def _publish(self, served: Mapping[str, Sequence[tf.Tensor]]) -> None:
    """Copies variables for `get_variables`, so that serving them is free."""
    # One assignment, since other threads read it.
    self._published = {name: [variable.numpy() for variable in variables]
                       for name, variables in served.items()}

  def get_variables(self, names: Sequence[str]) -> list[list[np.ndarray]]:
    """Returns collections of variables, all of the latest step."""
    published = self._published
    for name in names:
      if name not in published:
        raise KeyError(
            f'no variables {name!r}; there are: {", ".join(published)}.')
    return [published[name] for name in names]

  @property
  def num_steps(self) -> int:
    """Steps that the weights have been trained for."""
    return int(self._published[acting.VERSION][0])

  def metrics(self) -> dict[str, float]:
    """Returns the latest losses, and rates since the previous call.

    It is empty if there was no step since then.
    `skipped_updates` counts the gradients so far that were not applied because
    they were not finite. `wait_fraction` is the fraction of the learner's time
    spent waiting for data. `timesteps_per_second` counts timesteps learned from,
    including replayed ones. `policy_lag` is the mean number of learner steps
    between acting and learning, over the batch's online part.
    """
    with self._updating:
      if not self._steps_since_metrics:
        return {}
      timesteps = (self._steps_since_metrics * self._config.batch_size *
                   self._config.sequence_length)
      result = {name: float(value) for name, value in self._metrics.items()}
      result['wait_fraction'] = self._wait_seconds / self._step_seconds
      result['timesteps_per_second'] = timesteps / self._step_seconds
      self._wait_seconds = self._step_seconds = 0.
      self._steps_since_metrics = 0
      return result

  def reconstructions(self, most: int = 4) -> Optional[np.ndarray]:
    """Draws frames of the latest batch, each beside its reconstruction.

    Args:
      most: how many frames to draw at most, one below the other.

    Returns:
      [most * height, 2 * width, 1] uint8, with 3 channels if observations are in
      colour; None before the first step, or if no frames are reconstructed.
    """
    networks = self._networks
    spec = networks.observation_spec
    if (self._batch is None or networks.decoder is None or len(spec.shape) != 3 or
        spec.dtype != np.uint8):
      return None
    with self._updating:
      part, *_ = self._strategy.experimental_local_results(self._batch.observation)
      observation = part[:most, 0]
      drawn = networks.reconstruct(networks.actor_critic.encoder(observation))
    pairs = np.concatenate([observation[..., -drawn.shape[-1]:],
                            np.clip(drawn, 0, 255)], axis=2)
    if pairs.shape[-1] != 3:  # Not in colour.
      pairs = pairs[..., -1:]
    return np.concatenate(pairs.astype(np.uint8), axis=0)

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Keeps variables from changing; waits for a step that is changing them."""
    with self._updating:
      yield

  @property
  def state(self) -> Mapping[str, Any]:
    """What a checkpoint holds: networks, optimiser and steps.

    The learning rate follows from the steps.
    """
    state = {'actor_critic': self._networks.actor_critic,
             'optimizer': self._optimizer, 'num_steps': self._num_steps}
    if self._networks.decoder is not None:
      state['decoder'] = self._networks.decoder
    return state

  def on_restore(self) -> None:
    """Call this after restoring `state` from a checkpoint."""
    self._publish(self._served())

  def save(self) -> list[np.ndarray]:
    """Returns the variables of `state`; Acme's checkpointers keep them."""
    with self._updating:
      return [variable.numpy() for variable in variables_of(self.state)]

  def restore(self, state: Sequence[np.ndarray]) -> None:
    """Goes on from what a learner of the same networks has saved.

    Raises:
      ValueError: if it is of other networks.
    """
    variables = variables_of(self.state)
    saved, own = [[list(np.shape(x)) for x in xs] for xs in (state, variables)]
    if saved != own:
      raise ValueError('what was saved is of other networks: its shapes are '
                       f'{saved}, this learner has {own}.')
    with self._updating:
      for variable, value in zip(variables, state):
        variable.assign(value)
      self.on_restore()
