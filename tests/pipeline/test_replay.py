"""Adder, tables and data pipeline, through real Reverb servers."""

import itertools
import logging
import threading
import time

from acme import specs
import dm_env
import numpy as np
import pytest
import reverb
import tensorflow as tf

from agents import games
from agents.impala_ppo import adders
from agents.impala_ppo import config as config_lib
from agents.impala_ppo import replay
from agents.impala_ppo import trajectories

NUM_ACTIONS = 3
SIZE = 8


def make_config(**kwargs):
  defaults = dict(frame_stack=4, sequence_length=4, batch_size=8,
                  samples_per_insert=2., replay_capacity=10, queue_capacity=50,
                  prefetch_size=1, num_fetch_workers=1)
  return config_lib.ImpalaPPOConfig(**{**defaults, **kwargs})


def make_spec():
  return specs.EnvironmentSpec(
      observations=specs.Array((SIZE, SIZE, 4), np.uint8),
      actions=specs.DiscreteArray(NUM_ACTIONS, dtype=np.int32),
      rewards=specs.Array((), np.float32),
      discounts=specs.BoundedArray((), np.float32, 0., 1.))


def make_server(config):
  return reverb.Server(replay.make_tables(make_spec(), config))


def take(num_batches, servers, config):
  """Returns so many batches; then there are no more of the servers."""
  iterator = iter(replay.make_dataset(
      [f'localhost:{server.port}' for server in servers], config))
  batches = list(itertools.islice(iterator, num_batches))
  # While there is the iterator, which without it would wait for more.
  for server in servers:
    server.stop()
  return batches


def make_adder(server, config):
  return adders.ImpalaPPOAdder(
      reverb.Client(f'localhost:{server.port}'), config.sequence_length,
      config.frame_stack, config.uses_replay)


class Stream:
  """Random experience of E environments, with a record of what was seen."""

  def __init__(self, num_envs, seed=0, episode_length=7):
    self._rng = np.random.default_rng(seed)
    self._num_envs = num_envs
    self._episode_length = episode_length
    # Episodes end at different times in different environments.
    self._age = np.arange(num_envs) % episode_length
    self._frames = np.zeros((num_envs, SIZE, SIZE, 4), np.uint8)
    self.steps = []

  def first(self):
    self._age[:] = 0
    self._step_type = np.full(self._num_envs, dm_env.StepType.FIRST, np.int32)
    self._see(self._step_type == dm_env.StepType.FIRST)
    zeros = np.zeros(self._num_envs, np.float32)
    return dm_env.TimeStep(self._step_type, zeros, zeros, self._frames.copy())

  def _see(self, is_first):
    new = self._rng.integers(1, 256, (self._num_envs, SIZE, SIZE), np.uint8)
    self._frames[is_first] = 0
    self._frames = np.concatenate([self._frames[..., 1:], new[..., None]], -1)

  def next(self):
    """Returns (action, extras, next time step), and records the step."""
    was_last = self._step_type == dm_env.StepType.LAST
    record = dict(observation=self._frames.copy(), mask=~was_last)
    self._age = np.where(was_last, 0, self._age + 1)
    lengths = self._episode_length + np.arange(self._num_envs) % 3
    is_last = ~was_last & (self._age >= lengths)
    self._step_type = np.where(
        was_last, dm_env.StepType.FIRST,
        np.where(is_last, dm_env.StepType.LAST, dm_env.StepType.MID)
    ).astype(np.int32)
    self._see(was_last)
    reward = self._rng.normal(size=self._num_envs).astype(np.float32)
    discount = np.where(is_last | was_last, 0, 1).astype(np.float32)
    timestep = dm_env.TimeStep(self._step_type, np.where(was_last, 0, reward),
                               discount, self._frames.copy())
    action = self._rng.integers(NUM_ACTIONS, size=self._num_envs, dtype=np.int32)
    extras = dict(
        behaviour_logits=self._rng.normal(
            size=(self._num_envs, NUM_ACTIONS)).astype(np.float32),
        policy_version=np.int64(len(self.steps)))
    record.update(action=action, reward=timestep.reward, discount=discount,
                  **extras)
    self.steps.append(record)
    return action, extras, timestep

  def trajectory(self, start, env, length):
    """Returns what the actor saw and did from a step on, in one environment."""
    steps = self.steps[start:start + length]
    result = {name: np.stack([
        step[name] if name == 'policy_version' else step[name][env]
        for step in steps]) for name in steps[0]}
    result['observation'] = np.stack([
        step['observation'][env] for step in self.steps[start:start + length + 1]])
    return result


def fill(adder, stream, num_steps):
  adder.add_first(stream.first())
  for _ in range(num_steps):
    action, extras, timestep = stream.next()
    adder.add(action, timestep, extras)
  adder.reset()


@pytest.mark.parametrize('sequence_length', [4, 5])
@pytest.mark.parametrize('num_envs', [1, 3])
def test_pipeline_returns_bit_for_bit_what_the_actor_saw(sequence_length, num_envs):
  config = make_config(sequence_length=sequence_length, samples_per_insert=1.,
                       batch_size=num_envs)
  server = make_server(config)
  stream = Stream(num_envs)
  num_items = 12
  fill(make_adder(server, config), stream, num_items * sequence_length + 1)
  for item, batch in enumerate(take(num_items, [server], config)):
    for env in range(num_envs):
      # Successive trajectories, without a gap or an overlap.
      expected = stream.trajectory(item * sequence_length, env, sequence_length)
      for name, value in expected.items():
        np.testing.assert_array_equal(getattr(batch, name)[env], value, name)
  # The comparison covered resets and padded stacks.
  masks = np.stack([step['mask'] for step in stream.steps])
  assert (~masks).any()


def test_boundaries_have_no_discount_and_train_nothing():
  config = make_config(samples_per_insert=1., batch_size=3)
  server = make_server(config)
  fill(make_adder(server, config), Stream(3), 41)
  batches = take(10, [server], config)
  mask = np.concatenate([b.mask for b in batches], 1)
  discount = np.concatenate([b.discount for b in batches], 1)
  reward = np.concatenate([b.reward for b in batches], 1)
  assert (~mask).sum() > 3
  assert (discount[~mask] == 0).all() and (reward[~mask] == 0).all()
  # Whatever precedes a reset was an episode's end.
  assert (discount[:, :-1][~mask[:, 1:]] == 0).all()


def test_batches_mix_the_tables_and_the_queue_passes_everything_once():
  config = make_config(samples_per_insert=4., batch_size=4)
  server = make_server(config)
  client = reverb.Client(f'localhost:{server.port}')
  num_items = 20
  stream = Stream(1)
  fill(make_adder(server, config), stream, num_items * 4 + 1)
  iterator = iter(replay.make_dataset([f'localhost:{server.port}'], config))
  batches = list(itertools.islice(iterator, num_items))
  online = np.concatenate([b.policy_version[:1, 0] for b in batches])
  np.testing.assert_array_equal(online, np.arange(num_items) * 4)
  info = client.server_info()
  assert info[replay.QUEUE_TABLE].current_size == 0
  # Bounded: only the newest are left to replay.
  assert info[replay.REPLAY_TABLE].current_size == config.replay_capacity
  replayed = np.concatenate([b.policy_version[1:, 0] for b in batches])
  oldest_left = (num_items - config.replay_capacity) * 4
  assert replayed.min() >= oldest_left
  assert len(set(replayed)) > 3
  server.stop()


def test_rate_limiter_holds_actors_to_the_ratio():
  config = make_config(samples_per_insert=2., queue_capacity=100,
                       num_fetch_workers=1, batch_size=2)
  table = replay.make_tables(make_spec(), config)[1]
  limiter = table.info.rate_limiter_info
  assert limiter.samples_per_insert == 1.
  server = reverb.Server([table])
  client = reverb.Client(f'localhost:{server.port}')
  signature = trajectories.signature(make_spec(), config)
  item = {name: np.zeros([size or 1 for size in spec.shape],
                         spec.dtype.as_numpy_dtype)
          for name, spec in signature.items()}
  # The limiter's error is inserts x ratio - samples.
  allowed = int(limiter.max_diff)
  writer = client.trajectory_writer(1)

  def insert(writer):
    writer.append(item)
    writer.create_item(replay.REPLAY_TABLE, 1., {
        name: column[-1] for name, column in writer.history.items()})

  for _ in range(allowed):
    insert(writer)
    writer.flush(timeout_ms=5000)
  insert(writer)
  with pytest.raises(reverb.errors.DeadlineExceededError):
    writer.flush(timeout_ms=300)
  # One sample makes room for one insert.
  list(client.sample(replay.REPLAY_TABLE, 1))
  writer.flush(timeout_ms=5000)
  writer.close()
  del writer  # Or the server would wait for its stream.
  server.stop()


def test_learner_reads_all_shards():
  config = make_config(samples_per_insert=2., batch_size=4, queue_capacity=10)
  servers = [make_server(config) for _ in range(3)]
  for i, server in enumerate(servers):
    fill(make_adder(server, config), Stream(2, seed=i), 21)
  # 3 shards with 5 items of 2 trajectories, and 2 online ones in a batch.
  batches = take(15, servers, config)
  shards = np.concatenate([b.shard[:2] for b in batches])
  np.testing.assert_array_equal(np.bincount(shards), [10, 10, 10])
  assert set(np.concatenate([b.shard[2:] for b in batches])) == {0, 1, 2}


@pytest.mark.parametrize('prefetch_size', [0, 1, 3])
def test_fifo_replays_each_trajectory_the_same_number_of_times(prefetch_size):
  config = make_config(samples_per_insert=3., batch_size=3,
                       replay_sampler='fifo', prefetch_size=prefetch_size)
  server = make_server(config)
  fill(make_adder(server, config), Stream(1), 8 * 4 + 1)
  batches = take(8, [server], config)
  replayed = np.concatenate([b.policy_version[1:, 0] for b in batches])
  np.testing.assert_array_equal(replayed, np.repeat(np.arange(8) * 4, 2))


@pytest.mark.parametrize('samples_per_insert', [2., 3., 6.])
def test_fifo_needs_room_for_two_items(samples_per_insert):
  settings = dict(batch_size=6, samples_per_insert=samples_per_insert,
                  replay_sampler='fifo')
  make_server(make_config(replay_capacity=2, **settings)).stop()
  with pytest.raises(ValueError, match='fifo.* replay_capacity .*2, not 1'):
    make_config(replay_capacity=1, **settings)


@pytest.mark.parametrize('prefetch_size', [0, 8])
def test_only_prefetching_reads_ahead(prefetch_size):
  config = make_config(samples_per_insert=1., batch_size=1,
                       prefetch_size=prefetch_size)
  server = make_server(config)
  client = reverb.Client(f'localhost:{server.port}')
  num_items = 20
  fill(make_adder(server, config), Stream(1), num_items * 4 + 1)
  iterator = iter(replay.make_dataset([f'localhost:{server.port}'], config))
  next(iterator)

  def ahead():
    queue = client.server_info()[replay.QUEUE_TABLE]
    return num_items - queue.current_size - 1

  deadline = time.monotonic() + (30. if prefetch_size else 1.)
  while ahead() < max(prefetch_size, 2) and time.monotonic() < deadline:
    time.sleep(0.05)
  if prefetch_size:
    assert ahead() >= prefetch_size
  else:
    assert ahead() <= 1  # Reverb's own stream keeps one in flight.
  server.stop()


def test_statistics_are_of_all_shards():
  config = make_config(samples_per_insert=3., batch_size=3, queue_capacity=20,
                       replay_capacity=40, min_replay_size=1)
  servers = [make_server(config) for _ in range(2)]
  clients = [reverb.Client(f'localhost:{server.port}') for server in servers]
  assert replay.statistics(clients) == {'queue_fill': 0., 'replay_fill': 0.}
  fill(make_adder(servers[0], config), Stream(1), 8 * 4 + 1)
  list(clients[0].sample(replay.QUEUE_TABLE, 6))
  list(clients[0].sample(replay.REPLAY_TABLE, 10))
  # Of 20 + 20 and 40 + 40 places; 8 were inserted.
  assert replay.statistics(clients) == {
      'queue_fill': 2 / 40, 'replay_fill': 8 / 80, 'samples_per_insert': 16 / 8}
  servers[1].stop()
  assert replay.statistics(clients) == {}
  servers[0].stop()


@pytest.mark.slow
def test_real_pong_is_rebuilt_across_an_episode_start():
  environment = games.EnvironmentConfig('pong', frame_size=42).make(2, seed=0)
  config = make_config(sequence_length=20, samples_per_insert=1., batch_size=2,
                       queue_capacity=100)
  spec = specs.make_environment_spec(environment)
  server = reverb.Server(replay.make_tables(spec, config))
  adder = make_adder(server, config)
  rng = np.random.default_rng(0)
  timestep = environment.reset()
  adder.add_first(timestep)
  seen, resets = [], 0
  extras = dict(behaviour_logits=np.zeros((2, 6), np.float32),
                policy_version=np.int64(0))
  for _ in range(55 * 20 + 1):
    seen.append(timestep.observation)
    resets += (timestep.step_type == dm_env.StepType.LAST).sum()
    action = rng.integers(6, size=2, dtype=np.int32)
    timestep = environment.step(action)
    adder.add(action, timestep, extras)
  adder.reset()
  assert resets >= 2
  for item, batch in enumerate(take(55, [server], config)):
    expected = np.stack(seen[item * 20:item * 20 + 21], axis=1)
    np.testing.assert_array_equal(batch.observation, expected)


def test_plain_observations_are_stored_as_they_are():
  config = make_config(frame_stack=1, samples_per_insert=1., batch_size=1)
  spec = make_spec()._replace(observations=specs.Array((5,), np.float32))
  server = reverb.Server(replay.make_tables(spec, config))
  adder = make_adder(server, config)
  observations = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float32)
  zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
  adder.add_first(dm_env.TimeStep(np.array([dm_env.StepType.FIRST], np.int32),
                                  zero, zero, observations[:1]))
  extras = dict(behaviour_logits=np.zeros((1, NUM_ACTIONS), np.float32),
                policy_version=np.int64(0))
  for observation in observations[1:]:
    adder.add(np.array([1], np.int32),
              dm_env.TimeStep(np.array([dm_env.StepType.MID], np.int32), one, one,
                              observation[None]), extras)
  adder.reset()
  batch, = take(1, [server], config)
  np.testing.assert_array_equal(batch.observation[0], observations[:5])
  assert batch.observation.dtype == tf.float32


def test_stacks_that_cannot_be_rebuilt_are_refused():
  config = make_config()
  server = make_server(config)
  adder = make_adder(server, config)
  observation = np.ones((1, SIZE, SIZE, 4), np.uint8)
  first = np.array([dm_env.StepType.FIRST])
  with pytest.raises(ValueError, match='set frame_stack to 1'):
    adder.add_first(dm_env.TimeStep(first, None, None, observation))

  # So are those of a later episode, of any of the environments.
  stream = Stream(2)
  adder.add_first(stream.first())
  action, extras, timestep = stream.next()
  adder.add(action, timestep, extras)
  again = timestep._replace(
      step_type=np.array([dm_env.StepType.MID, dm_env.StepType.FIRST], np.int32),
      observation=np.ones((2, SIZE, SIZE, 4), np.uint8))
  with pytest.raises(ValueError, match='set frame_stack to 1'):
    adder.add(action, again, extras)
  adder.reset()
  server.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
@pytest.mark.parametrize('sizes', [
    dict(prefetch_size=0, batch_size=48), dict(prefetch_size=1, batch_size=48),
    dict(prefetch_size=0, batch_size=48, replay_sampler='fifo', replay_capacity=25),
    dict(prefetch_size=2, batch_size=48, replay_sampler='fifo', replay_capacity=25,
         queue_capacity=1),
    dict(prefetch_size=0, batch_size=60, samples_per_insert=1.5),
], ids=str)
def test_one_environment_and_a_learner_do_not_wait_for_each_other(sizes):
  config = make_config(**{'queue_capacity': 1, 'sequence_length': 2, **sizes})
  server = make_server(config)
  adder = make_adder(server, config)
  stream = Stream(1)
  adder.add_first(stream.first())
  taken = threading.Event()

  def act():
    while not taken.is_set():
      action, extras, timestep = stream.next()
      adder.add(action, timestep, extras)

  actor = threading.Thread(target=act, daemon=True)
  actor.start()
  batches: list = []
  learner = threading.Thread(
      target=lambda: batches.extend(take(4, [server], config)), daemon=True)
  learner.start()
  learner.join(60.)
  taken.set()
  adder.reset()  # Makes a write fail that still waits.
  actor.join(10.)
  assert len(batches) == 4


def write_without_samples(config, server, caplog, monkeypatch):
  """Returns what an adder says that waits for somebody to sample."""
  monkeypatch.setattr(adders, '_SAY_SECONDS', 1.)
  adder = make_adder(server, config)
  stream = Stream(2)
  adder.add_first(stream.first())

  def write():
    for _ in range(1 + 3 * config.sequence_length):
      action, extras, timestep = stream.next()
      adder.add(action, timestep, extras)

  thread = threading.Thread(target=write, daemon=True)
  with caplog.at_level(logging.WARNING):
    thread.start()
    deadline = time.monotonic() + 30.
    while len(caplog.messages) < 2 and time.monotonic() < deadline:
      time.sleep(0.1)
  assert thread.is_alive()
  said = list(caplog.messages)
  adder.reset()  # Makes the write fail.
  thread.join(10.)
  return said


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
@pytest.mark.parametrize('full, fits, sizes', [
    ('queue', 1, dict(queue_capacity=1)),
    ('replay', 2, dict(replay_sampler='fifo', replay_capacity=2,
                       samples_per_insert=4.)),
])
def test_a_write_that_waits_says_for_what(full, fits, sizes, caplog, monkeypatch):
  config = make_config(**sizes)
  server = make_server(config)
  said = write_without_samples(config, server, caplog, monkeypatch)
  server.stop()
  assert len(said) == 2  # It goes on saying so.
  for message in said:
    assert (f"table '{full}' waits for samples: {fits} items were inserted and "
            '0 sampled') in message
    other, = {'queue', 'replay'} - {full}
    assert f"'{other}'" not in message


@pytest.mark.slow
def test_a_server_that_is_gone_is_what_a_write_waits_for():
  config = make_config()
  server = make_server(config)
  client = reverb.Client(f'localhost:{server.port}')
  server.stop()
  assert 'does not answer' in replay.why_full(client, ['queue'])
