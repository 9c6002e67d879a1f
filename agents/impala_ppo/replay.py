"""Reverb tables and the data pipeline from them to the learner.

Each shard has two tables of the same items: `queue`, through which every
trajectory passes once in order, and `replay`, sampled at random. An item is
one trajectory of each of an actor's environments, [S - 1 + T + 1, E, ...] for
stacks of S frames: the frames before the first observation, the T timesteps,
and the step that they bootstrap from.
"""

from typing import Dict, List, NamedTuple, Sequence

from acme import specs
import reverb
import tensorflow as tf

from agents.impala_ppo import config as config_lib

QUEUE_TABLE = 'queue'
REPLAY_TABLE = 'replay'


class Trajectories(NamedTuple):
  """A learner batch; B trajectories of T timesteps, the online ones first.

  Attributes:
    observation: [B, T + 1, ...], the last being bootstrapped from.
    action: [B, T] int32.
    reward: [B, T] float32, raw.
    discount: [B, T] float32, the environment's: 0 where an episode ended.
    mask: [B, T] bool, false where the environment was resetting.
    behaviour_logits: [B, T, A] float32.
    policy_version: [B, T] int64, learner steps behind the acting policy.
    key: [B] uint64, the item in its table.
    shard: [B] int32, the shard of that table.
  """
  observation: tf.Tensor
  action: tf.Tensor
  reward: tf.Tensor
  discount: tf.Tensor
  mask: tf.Tensor
  behaviour_logits: tf.Tensor
  policy_version: tf.Tensor
  key: tf.Tensor
  shard: tf.Tensor


def signature(environment_spec: specs.EnvironmentSpec,
              config: config_lib.ImpalaPPOConfig) -> Dict[str, tf.TensorSpec]:
  """Returns shapes and dtypes of an item's columns; E is left open."""
  observation = environment_spec.observations
  frame_shape = observation.shape
  if config.frame_stack > 1:
    frame_shape = frame_shape[:-1]
  num_actions = environment_spec.actions.num_values
  # The frames before the first observation, the trajectory, and the step that
  # holds the observation it bootstraps from.
  rows = config.sequence_length + config.frame_stack
  return {
      'frame': tf.TensorSpec([rows, None, *frame_shape], observation.dtype),
      'is_first': tf.TensorSpec([rows, None], tf.bool),
      'action': tf.TensorSpec([rows, None], tf.int32),
      'reward': tf.TensorSpec([rows, None], tf.float32),
      'discount': tf.TensorSpec([rows, None], tf.float32),
      'mask': tf.TensorSpec([rows, None], tf.bool),
      'behaviour_logits': tf.TensorSpec([rows, None, num_actions], tf.float32),
      'policy_version': tf.TensorSpec([rows], tf.int64),
  }


def make_tables(environment_spec: specs.EnvironmentSpec,
                config: config_lib.ImpalaPPOConfig) -> List[reverb.Table]:
  """Makes the tables of one shard."""
  table_signature = signature(environment_spec, config)
  tables = [reverb.Table.queue(QUEUE_TABLE, config.queue_capacity,
                               signature=table_signature)]
  if not config.uses_replay:
    return tables
  # The queue passes every item once, so what is left is the replay table's.
  replays_per_insert = config.samples_per_insert - 1
  # What the pipeline fetches ahead of the learner counts as sampled; the
  # margin has to exceed it, or actors and learner wait for each other.
  in_flight = (config.num_fetch_workers + config.prefetch_size *
               config.batch_size + config.queue_capacity + 1)
  error_buffer = 2 * max(1., replays_per_insert) * in_flight
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
    error_buffer = (0., replays_per_insert * config.replay_capacity)
  rate_limiter = reverb.rate_limiters.SampleToInsertRatio(
      replays_per_insert, config.min_replay_size, error_buffer)
  tables.append(reverb.Table(
      REPLAY_TABLE, sampler, reverb.selectors.Fifo(), config.replay_capacity,
      rate_limiter, max_times_sampled, signature=table_signature))
  return tables


def stack_frames(frames: tf.Tensor, is_first: tf.Tensor,
                 frame_stack: int) -> tf.Tensor:
  """Rebuilds stacked observations from single frames.

  Args:
    frames: [B, T + S, H, W], beginning S - 1 frames before the first
      observation.
    is_first: [B, T + S] bool, true where a frame is an episode's first.
    frame_stack: S.

  Returns:
    [B, T + 1, H, W, S], newest frame last, zero before an episode's first.
  """
  num_frames, *image_shape = frames.shape[1:]
  rows = (tf.range(num_frames - frame_stack + 1)[:, None] +
          tf.range(frame_stack))  # [T + 1, S]
  episode = tf.cumsum(tf.cast(is_first, tf.int32), axis=1)
  same_episode = (tf.gather(episode, rows, axis=1) ==
                  episode[:, frame_stack - 1:, None])
  # Gathering whole frames, and a blank one for those of another episode, is
  # three times as fast as masking and stacking pixels; and a transposed matrix
  # takes half the time of five transposed dimensions.
  frames = tf.concat([frames, tf.zeros_like(frames[:, :1])], axis=1)
  rows = tf.where(same_episode, rows, num_frames)
  rows += (num_frames + 1) * tf.range(tf.shape(frames)[0])[:, None, None]
  planes = tf.gather(tf.reshape(frames, [-1, *image_shape]),
                     tf.transpose(rows, [2, 0, 1]))  # [S, B, T + 1, H, W]
  stacks = tf.transpose(tf.reshape(planes, [frame_stack, -1]))
  return tf.reshape(stacks, [-1, rows.shape[1], *image_shape, frame_stack])


def _table_dataset(addresses: Sequence[str], table: str, num_workers: int,
                   ahead: bool) -> tf.data.Dataset:
  """Streams single trajectories ({column: [T, ...]}) of all shards' tables."""
  def of_shard(shard: tf.Tensor, address: tf.Tensor) -> tf.data.Dataset:
    items = reverb.TrajectoryDataset(
        address, table, dtypes, shapes,
        max_in_flight_samples_per_worker=1,
        num_workers_per_iterator=num_workers)

    def split(sample: reverb.ReplaySample) -> Dict[str, tf.Tensor]:
      columns = dict(sample.data)
      rows = shapes['action'][0]
      num_envs = tf.shape(columns['action'])[1]
      columns['policy_version'] = tf.repeat(
          columns['policy_version'][:, None], num_envs, axis=1)
      columns = {name: _swap_time_and_environments(column)
                 for name, column in columns.items()}
      columns['policy_version'].set_shape([None, rows])
      columns['key'] = tf.repeat(sample.info.key, num_envs)
      columns['shard'] = tf.repeat(shard, num_envs)
      return columns

    return items.map(split,
                     num_parallel_calls=num_workers if ahead else None).unbatch()

  info = reverb.Client(addresses[0]).server_info()
  table_signature = info[table].signature
  shapes = {k: v.shape for k, v in table_signature.items()}
  dtypes = {k: v.dtype for k, v in table_signature.items()}
  if len(addresses) == 1:
    return of_shard(tf.constant(0), addresses[0])
  # Shards are read as their data comes: one without any must not hold up the
  # others, which a deterministic order would let it.
  shards = tf.data.Dataset.from_tensor_slices(
      (tf.range(len(addresses)), list(addresses)))
  return shards.interleave(
      of_shard, cycle_length=len(addresses),
      num_parallel_calls=len(addresses), deterministic=False)


def _swap_time_and_environments(x: tf.Tensor) -> tf.Tensor:
  return tf.transpose(x, [1, 0, *range(2, len(x.shape))])


def make_dataset(addresses: Sequence[str],
                 config: config_lib.ImpalaPPOConfig) -> tf.data.Dataset:
  """Makes the dataset of learner batches.

  Every batch has `online_batch_size` trajectories from the queues and
  `replay_batch_size` from the replay tables of all shards, which are fetched,
  decoded, batched and prefetched in parallel to the learner.

  Args:
    addresses: 'host:port' of each Reverb shard.
    config: the agent's settings.

  Returns:
    A dataset of `Trajectories` with a static batch size.
  """
  ahead = config.prefetch_size > 0
  # A queue is read by one worker, or its order would be lost.
  streams = [_table_dataset(addresses, QUEUE_TABLE, 1, ahead).batch(
      config.online_batch_size, drop_remainder=True)]
  if config.uses_replay:
    workers = 1 if config.replay_sampler == 'fifo' else config.num_fetch_workers
    streams.append(
        _table_dataset(addresses, REPLAY_TABLE, workers, ahead).batch(
            config.replay_batch_size, drop_remainder=True))

  def to_trajectories(*batches: Dict[str, tf.Tensor]) -> Trajectories:
    columns = {name: tf.concat([b[name] for b in batches], axis=0)
               for name in batches[0]}
    frames = columns.pop('frame')
    is_first = columns.pop('is_first')
    key, shard = columns.pop('key'), columns.pop('shard')
    if config.frame_stack > 1:
      frames = stack_frames(frames, is_first, config.frame_stack)
    steps = slice(config.frame_stack - 1, -1)
    return Trajectories(
        observation=frames, key=key, shard=shard,
        **{name: column[:, steps] for name, column in columns.items()})

  dataset = tf.data.Dataset.zip(tuple(streams)).map(
      to_trajectories, num_parallel_calls=config.prefetch_size or None)
  options = tf.data.Options()
  # tf.data would make any map parallel, and so read ahead where told not to.
  options.experimental_optimization.map_parallelization = False
  options.experimental_distribute.auto_shard_policy = (
      tf.data.experimental.AutoShardPolicy.OFF)
  return dataset.prefetch(config.prefetch_size).with_options(options)


def distribute(dataset: tf.data.Dataset,
               strategy: tf.distribute.Strategy):
  """Splits each batch over the strategy's replicas and fetches it there."""
  if strategy.num_replicas_in_sync == 1:
    return iter(dataset)
  return iter(strategy.experimental_distribute_dataset(dataset))
