"""Numbers that are not finite never change the learner, whoever sends them."""

import threading

from absl import logging
from acme import specs
import numpy as np
import pytest
import reverb
import tensorflow as tf

from agents.impala_ppo import builder as builder_lib
from agents.impala_ppo import config as config_lib
from agents.impala_ppo import replay
from agents.impala_ppo import trajectories

B, T, A, D = 4, 5, 3, 6


def make_spec():
  return specs.EnvironmentSpec(
      observations=specs.Array((D,), np.float32),
      actions=specs.DiscreteArray(A, dtype=np.int32),
      rewards=specs.Array((), np.float32),
      discounts=specs.BoundedArray((), np.float32, 0., 1.))


def make_config(**kwargs):
  defaults = dict(sequence_length=T, batch_size=B, samples_per_insert=2.,
                  latent_size=16, autoencoder=False, replay_capacity=50,
                  queue_capacity=50, prefetch_size=1, num_fetch_workers=1)
  return config_lib.ImpalaPPOConfig(**{**defaults, **kwargs})


def make_batch(seed=0):
  rng = np.random.default_rng(seed)
  return trajectories.Trajectories(
      observation=rng.normal(0, 3, (B, T + 1, D)).astype(np.float32),
      action=rng.integers(0, A, (B, T)).astype(np.int32),
      reward=rng.normal(0, 2, (B, T)).astype(np.float32),
      discount=np.ones((B, T), np.float32), mask=np.ones((B, T), bool),
      behaviour_logits=rng.normal(0, 1, (B, T, A)).astype(np.float32),
      policy_version=np.zeros((B, T), np.int64),
      key=np.arange(B, dtype=np.uint64), shard=np.zeros(B, np.int32))


def spoil(batch, column, value=np.nan):
  columns = batch._asdict()
  columns[column] = columns[column].copy()
  columns[column][B - 1, 2] = value
  return trajectories.Trajectories(**columns)


@pytest.fixture(autouse=True)
def says_all(monkeypatch):
  """What is said at most once a minute is said in each test."""
  monkeypatch.setattr(logging, '_log_timer_per_token', {})


class ReplayClient:
  """Takes priorities as Reverb does."""

  def __init__(self):
    self.updates = {}

  def mutate_priorities(self, table, updates):
    self.updates = updates if table == replay.REPLAY_TABLE else {}


def make_learner(batches, devices=('/cpu:0',), client=None, **kwargs):
  builder = builder_lib.ImpalaPPOBuilder(make_config(**kwargs), devices)
  dataset = tf.data.Dataset.from_tensor_slices(
      tf.nest.map_structure(lambda *x: np.stack(x), *batches))
  iterator = replay.distribute(dataset, builder._get_strategy())
  return builder.make_learner(
      0, builder.make_networks(make_spec()), iterator,
      () if client is None else [client])


def trained(learner):
  """What updates change: weights, and the optimiser's moments and step."""
  state = learner.state
  variables = [*state['actor_critic'].trainable_variables, state['optimizer'].step,
               *state['optimizer'].m, *state['optimizer'].v]
  return [variable.numpy() for variable in variables]


def assert_finite(learner):
  for variable in learner.state['actor_critic'].variables:
    assert np.isfinite(variable.numpy()).all(), variable.name
  for variable in learner.state['optimizer'].variables:
    assert np.isfinite(variable.numpy()).all(), variable.name


@pytest.mark.parametrize('column, value, num_devices, plain', [
    ('reward', np.nan, 1, False),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        ('discount', np.inf, 1, True), ('behaviour_logits', np.nan, 2, False),
        ('behaviour_logits', -np.inf, 2, True)])])
def test_a_gradient_that_is_not_finite_is_not_applied(
    column, value, num_devices, plain, monkeypatch):
  if plain:
    monkeypatch.setenv('IMPALA_PPO_PLAIN_OPS', '1')
  bad = spoil(make_batch(2), column, value)
  learner = make_learner([make_batch(0), bad, make_batch(1)],
                         [f'/cpu:{i}' for i in range(num_devices)])
  learner.step()
  before = trained(learner)
  learner.step()
  for x, y in zip(before, trained(learner)):
    np.testing.assert_array_equal(x, y)
  assert learner.num_steps == 2
  assert learner.metrics()['skipped_updates'] == 1
  learner.step()
  assert learner.metrics()['skipped_updates'] == 1
  assert_finite(learner)
  assert all((x != y).any() for x, y in zip(before, trained(learner)))


@pytest.mark.slow
def test_an_observation_that_is_not_finite_changes_no_statistics_of_it():
  good = [make_batch(0), make_batch(1)]
  learner = make_learner([good[0], spoil(make_batch(2), 'observation'), good[1]],
                         reconstruction_period=1)
  normalizer = learner.state['actor_critic'].encoder.normalizer
  for _ in range(3):
    learner.step()
  assert_finite(learner)
  # As by the two good batches, with the weights that they have in a mean of
  # three of which the second is missing.
  first, second = (batch.observation.reshape(-1, D).astype(np.float64).mean(0)
                   for batch in good)
  np.testing.assert_allclose(normalizer.mean.numpy(),
                             2 / 3 * first + 1 / 3 * second, rtol=1e-4, atol=1e-5)


def test_priorities_that_are_not_finite_are_none():
  client = ReplayClient()
  batch = spoil(make_batch(), 'reward')
  learner = make_learner([batch], client=client, replay_sampler='prioritized')
  learner.step()
  # Of the batch's second half, the replayed one, the last is spoilt.
  assert np.isfinite(list(client.updates.values())).all()
  assert client.updates[B - 1] == 0. and client.updates[B - 2] > 0.


def insert(client, item, config):
  """Inserts [rows, E, ...] columns as any stranger could."""
  rows = len(item['action'])
  with client.trajectory_writer(rows) as writer:
    for row in range(rows):
      writer.append({name: column[row] for name, column in item.items()})
    for table in (replay.QUEUE_TABLE, replay.REPLAY_TABLE):
      writer.create_item(table, 1., {
          name: column[-rows:] for name, column in writer.history.items()})
    writer.flush()


def make_item(config, seed, num_envs=2):
  rng = np.random.default_rng(seed)
  item = {}
  for name, column in trajectories.signature(make_spec(), config).items():
    shape = [num_envs if size is None else size for size in column.shape]
    item[name] = rng.integers(0, 2, shape).astype(column.dtype.as_numpy_dtype)
  return item


FOREIGN = [('frame', np.nan), ('frame', np.inf), ('reward', np.nan),
           ('reward', -np.inf), ('discount', np.nan), ('behaviour_logits', np.nan),
           ('action', A), ('action', -1), ('action', 2**31 - 1)]


@pytest.mark.slow
@pytest.mark.parametrize('sampler', ('fifo', 'prioritized'))
def test_what_strangers_insert_does_not_reach_the_learner(sampler, caplog):
  config = make_config(replay_sampler=sampler)
  server = reverb.Server(replay.make_tables(make_spec(), config))
  client = reverb.Client(f'localhost:{server.port}')
  for seed in range(20):
    item = make_item(config, seed)
    # One trajectory of two is the actor's index in its rewards.
    item['reward'][...] = seed
    insert(client, item, config)
    column, value = FOREIGN[seed % len(FOREIGN)]
    foreign = make_item(config, seed)
    foreign[column][2, 1] = value  # And the other one is as good as any.
    foreign['reward'][:, 0] = 1000. + seed
    if column != 'reward':
      foreign['reward'][:, 1] = -1e6
    insert(client, foreign, config)

  builder = builder_lib.ImpalaPPOBuilder(config, ['/cpu:0'])
  seen = []

  def batches():
    for batch in builder.make_dataset_iterator(client):
      seen.extend(batch.reward.numpy()[:config.online_batch_size, 0])
      yield batch

  learner = builder.make_learner(0, builder.make_networks(make_spec()),
                                 batches(), client)
  for _ in range(20):
    learner.step()
  assert learner.metrics()['skipped_updates'] == 0
  assert_finite(learner)
  # From the queue come, in order, all the others.
  order = [value for seed in range(20) for value in (seed, seed, 1000. + seed)]
  assert seen == order[:len(seen)]
  assert 'Trajectories in shard 0 are passed over' in caplog.text
  server.stop()


class Away:
  """A shard that was killed."""
  server_address = 'localhost:1'
  asked = 0

  def mutate_priorities(self, table, updates):
    self.asked += 1
    raise RuntimeError('Socket closed')


class Hanging(Away):
  """A shard that stands still."""

  def __init__(self):
    self.answers = threading.Event()

  def mutate_priorities(self, table, updates):
    self.asked += 1
    self.answers.wait()


@pytest.mark.slow
@pytest.mark.parametrize('client, asked', [(Away(), 3), (Hanging(), 1)])
def test_a_shard_that_does_not_answer_holds_no_learner_up(client, asked, caplog,
                                                          monkeypatch):
  monkeypatch.setattr(replay, '_ANSWER_SECONDS', .5)
  learner = make_learner([make_batch()] * 3, client=client,
                         replay_sampler='prioritized')
  for _ in range(3):
    learner.step()
  assert learner.num_steps == 3 and client.asked == asked
  assert 'Shard localhost:1: priorities stay as they are' in caplog.text
