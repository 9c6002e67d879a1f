"""Reverb tables, and the data pipeline from them to the learner.

Each shard has a table `queue`, which passes on every item once, in order (see
`trajectories` for items). If items are used more than once, a table `replay` has
them too, and is sampled as `replay_sampler` says.
"""

import collections
import threading
from typing import Iterator, Mapping, Optional, Sequence, Union

from absl import logging
from acme import specs
import numpy as np
import reverb
import tensorflow as tf

from agents.impala_ppo import config as config_lib
from agents.impala_ppo import trajectories

QUEUE_TABLE = 'queue'
REPLAY_TABLE = 'replay'
_ANSWER_SECONDS = 5
_WAIT_SECONDS = 30
# What Reverb's calls raise, depending on what went wrong.
_ERRORS = (reverb.errors.ReverbError, RuntimeError)


def make_tables(environment_spec: specs.EnvironmentSpec,
                config: config_lib.ImpalaPPOConfig) -> list[reverb.Table]:
  """Makes the tables of one shard."""
  signature = trajectories.signature(environment_spec, config)
  tables = [reverb.Table.queue(QUEUE_TABLE, config.queue_capacity,
                               signature=signature)]
  if not config.uses_replay:
    return tables
  # The queue delivers every item once; the other samples come from replay.
  replays_per_insert = config.samples_per_insert - 1
  # Items that the pipeline fetches ahead of the learner count as sampled, and a
  # batch gets its online part first. The margin must exceed both, or actors and
  # learner deadlock.
  in_flight = (config.num_fetch_workers + max(1, config.prefetch_size) *
               config.batch_size + config.queue_capacity + 1)
  margin: Union[float, tuple[float, float]] = (
      2 * max(1., replays_per_insert) * in_flight)
  sampler = {
      'uniform': reverb.selectors.Uniform,
      'prioritized': lambda: reverb.selectors.Prioritized(
          config.priority_exponent),
      'fifo': reverb.selectors.Fifo,
  }[config.replay_sampler]()
  max_times_sampled = 0
  if config.replay_sampler == 'fifo':
    max_times_sampled = int(replays_per_insert)
    # Nothing is evicted before its last sample: actors wait instead.
    margin = (0., replays_per_insert * config.replay_capacity)
  rate_limiter = reverb.rate_limiters.SampleToInsertRatio(
      replays_per_insert, config.min_replay_size, margin)
  tables.append(reverb.Table(
      REPLAY_TABLE, sampler, reverb.selectors.Fifo(), config.replay_capacity,
      rate_limiter, max_times_sampled, signature=signature))
  return tables


def why_full(client: reverb.Client, tables: Sequence[str]) -> str:
  """Returns which of a shard's tables accept no items now, and why."""
  try:
    info = client.server_info(timeout=_ANSWER_SECONDS)
  except _ERRORS as e:
    return f'the server {client.server_address} does not answer ({e}).'
  reasons = []
  for table in tables:
    limiter = info[table].rate_limiter_info
    inserted = limiter.insert_stats.completed
    sampled = limiter.sample_stats.completed
    if (inserted + 1) * limiter.samples_per_insert - sampled > limiter.max_diff:
      reasons.append(f"the rate limiter of table '{table}' waits for samples: "
                     f'{inserted:,} items were inserted and {sampled:,} sampled. '
                     'Does the learner run?')
  return ' '.join(reasons) or 'its tables take more again.'


class Priorities:
  """Sets the priorities of a shard's replayed items.

  A shard that does not answer does not block the learner: meanwhile its items
  keep their priorities.
  """

  def __init__(self, client: reverb.Client):
    self._client = client
    self._sending: Optional[threading.Thread] = None

  def update(self, priorities: Mapping[int, float]) -> None:
    """Sets the priority of items, by key."""
    if self._sending is not None and self._sending.is_alive():
      return
    # Reverb's own call has no time limit.
    self._sending = threading.Thread(
        target=self._send, args=(priorities,), daemon=True)
    self._sending.start()
    self._sending.join(_ANSWER_SECONDS)
    if self._sending.is_alive():
      self._warn(f'no answer for {_ANSWER_SECONDS} s')

  def _send(self, priorities: Mapping[int, float]) -> None:
    try:
      self._client.mutate_priorities(REPLAY_TABLE, priorities)
    except _ERRORS as e:
      self._warn(str(e))

  def _warn(self, problem: str) -> None:
    logging.log_every_n_seconds(
        logging.WARNING, 'Shard %s: priorities stay as they are (%s).', 60,
        self._client.server_address, problem)


def _signature(address: str, table: str) -> dict[str, tf.TensorSpec]:
  """Returns the signature of a table, once its server answers."""
  while True:
    try:
      return reverb.Client(address).server_info(_WAIT_SECONDS)[table].signature
    except reverb.errors.DeadlineExceededError:
      logging.warning('The replay at %s has not answered for %d s; still waiting '
                      'for it.', address, _WAIT_SECONDS)


def _warn_of_unsound(shard: np.ndarray) -> bool:
  logging.log_every_n_seconds(
      logging.WARNING, 'Trajectories in shard %d are passed over: their numbers are '
      'not finite or their actions not of this game, so no actor of this program '
      'wrote them.', 60, int(shard))
  return False


def statistics(clients: Sequence[reverb.Client]) -> dict[str, float]:
  """Asks the shards how full they are and how often items are sampled.

  Args:
    clients: one per shard.

  Returns:
    `queue_fill` and `replay_fill`, the fractions of the tables' capacity in use,
    and `samples_per_insert` so far, over both tables; empty if a shard does not
    answer.
  """
  sizes: collections.Counter = collections.Counter()
  room: collections.Counter = collections.Counter()
  inserted = sampled = 0
  try:
    for client in clients:
      for table, info in client.server_info(timeout=_ANSWER_SECONDS).items():
        sizes[table] += info.current_size
        room[table] += info.max_size
        sampled += info.rate_limiter_info.sample_stats.completed
        if table == QUEUE_TABLE:
          inserted += info.rate_limiter_info.insert_stats.completed
  except _ERRORS:
    return {}
  result = {f'{table}_fill': sizes[table] / room[table] for table in room}
  if inserted:
    result['samples_per_insert'] = sampled / inserted
  return result


def _table_dataset(addresses: Sequence[str], table: str, num_workers: int,
                   ahead: bool) -> tf.data.Dataset:
  """Streams single trajectories ({column: [rows, ...]}) of all shards' tables."""
  @tf.autograph.experimental.do_not_convert
  def is_sound(columns: dict[str, tf.Tensor]) -> tf.Tensor:
    return tf.cond(
        trajectories.is_sound(columns), lambda: tf.constant(True),
        lambda: tf.ensure_shape(tf.numpy_function(
            _warn_of_unsound, [columns['shard']], tf.bool), ()))

  @tf.autograph.experimental.do_not_convert
  def of_shard(shard: tf.Tensor, address: tf.Tensor) -> tf.data.Dataset:
    items = reverb.TrajectoryDataset(
        address, table, dtypes, shapes,
        max_in_flight_samples_per_worker=1,
        num_workers_per_iterator=num_workers)

    @tf.autograph.experimental.do_not_convert
    def split(sample: reverb.ReplaySample) -> dict[str, tf.Tensor]:
      columns = trajectories.by_environment(sample.data)
      num_envs = tf.shape(columns['action'])[0]
      return {**columns,
              'key': tf.repeat(sample.info.key, num_envs),
              'shard': tf.repeat(shard, num_envs)}

    split_items = items.map(
        split, num_parallel_calls=num_workers if ahead else None)
    return split_items.unbatch().filter(is_sound)

  table_signature = _signature(addresses[0], table)
  shapes = {k: v.shape for k, v in table_signature.items()}
  dtypes = {k: v.dtype for k, v in table_signature.items()}
  if len(addresses) == 1:
    return of_shard(tf.constant(0), addresses[0])
  # Shards are read as their data arrives: in a deterministic order, a shard without
  # data would block the others.
  shards = tf.data.Dataset.from_tensor_slices(
      (tf.range(len(addresses)), list(addresses)))
  return shards.interleave(
      of_shard, cycle_length=len(addresses),
      num_parallel_calls=len(addresses), deterministic=False)


def make_dataset(addresses: Sequence[str],
                 config: config_lib.ImpalaPPOConfig) -> tf.data.Dataset:
  """Makes the dataset of learner batches.

  Every batch has `online_batch_size` trajectories from the queues and
  `replay_batch_size` from the replay tables of all shards. They are fetched,
  decoded, batched and prefetched in parallel with the learner.

  Args:
    addresses: 'host:port' of each Reverb shard.
    config: the agent's settings.

  Returns:
    A dataset of `trajectories.Trajectories` with a static batch size.
  """
  ahead = config.prefetch_size > 0
  # One worker reads a queue: several would lose its order.
  streams = [_table_dataset(addresses, QUEUE_TABLE, 1, ahead).batch(
      config.online_batch_size, drop_remainder=True)]
  if config.uses_replay:
    workers = 1 if config.replay_sampler == 'fifo' else config.num_fetch_workers
    streams.append(
        _table_dataset(addresses, REPLAY_TABLE, workers, ahead).batch(
            config.replay_batch_size, drop_remainder=True))

  @tf.autograph.experimental.do_not_convert
  def join(*batches: dict[str, tf.Tensor]) -> trajectories.Trajectories:
    columns = {name: tf.concat([b[name] for b in batches], axis=0)
               for name in batches[0]}
    return trajectories.from_rows(columns, config.frame_stack)

  dataset = tf.data.Dataset.zip(tuple(streams)).map(
      join, num_parallel_calls=config.prefetch_size or None)
  options = tf.data.Options()
  # tf.data would parallelise any map, and so read ahead even if told not to.
  options.experimental_optimization.map_parallelization = False
  return dataset.prefetch(config.prefetch_size).with_options(options)


def distribute(
    dataset: tf.data.Dataset,
    strategy: tf.distribute.Strategy) -> Iterator[trajectories.Trajectories]:
  """Splits each batch over the strategy's replicas and copies the parts there.

  A GPU gets the next batch while it computes on the current one.
  """
  options = tf.data.Options()
  # Replicas share each batch.
  options.experimental_distribute.auto_shard_policy = (
      tf.data.experimental.AutoShardPolicy.OFF)
  dataset = dataset.with_options(options)
  if not isinstance(strategy, tf.distribute.MirroredStrategy):
    return iter(dataset)  # The CPU's.
  if strategy.num_replicas_in_sync == 1:
    device, = strategy.extended.worker_devices
    if 'GPU' in device:
      dataset = dataset.apply(
          tf.data.experimental.prefetch_to_device(device, buffer_size=1))
    return iter(dataset)
  return iter(strategy.experimental_distribute_dataset(dataset))
