"""What a run needs, and that it is refused where there is less."""

import math

from acme import specs
import numpy as np
import pytest

from agents import games
from agents.impala_ppo import config as agent_config
from agents.impala_ppo import networks as networks_lib
from programs import config as run_config
from programs import sizes
from programs.runtime import machine

GIB = 2**30
PIXELS = specs.EnvironmentSpec(
    observations=specs.Array((42, 42, 4), np.uint8),
    actions=specs.DiscreteArray(6), rewards=specs.Array((), np.float32),
    discounts=specs.Array((), np.float32))
VECTOR = PIXELS._replace(observations=specs.Array((10,), np.float32))


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
  monkeypatch.setattr(machine, 'cores', lambda: 2)
  monkeypatch.setattr(machine, 'memory', lambda: 16 * GIB)


def part_of(needs, name):
  part, = (size for what, size in needs.items() if what.startswith(name))
  return part


def estimate(spec=VECTOR, run=None, **agent):
  agent = agent_config.ImpalaPPOConfig(**agent)
  return sizes.estimate(agent, run_config.RunConfig('x', **(run or {})), spec,
                        sizes.of_variables(agent, spec)[1])


def check(agent, run, spec, **kwargs):
  sizes.check(agent, run, spec, sizes.of_variables(agent, spec)[1], **kwargs)


def test_replay_of_vectors_takes_what_its_items_hold():
  run = {'num_actors': 3, 'num_replay_shards': 2, 'envs_per_actor': 5}
  needs = estimate(run=run, sequence_length=7, replay_capacity=100,
                   num_fetch_workers=4)
  # Observation, is_first, action, reward, discount, mask, logits, version.
  row = 10 * 4 + 1 + 4 + 4 + 4 + 1 + 6 * 4 + 8
  items = 2 * 100 + 2 * 4  # Stored, and on their way, by shards.
  assert part_of(needs, 'the replay') == items * 8 * row * 5


def test_replay_of_pixels_is_compressed():
  size = part_of(estimate(PIXELS, frame_stack=4, replay_capacity=10_000),
                 'the replay')
  frames = 10_000 * 4 * 36 * 42 * 42
  assert frames / 10 < size < frames / 5


def test_without_replay_only_the_queue_holds_items():
  settings = {'samples_per_insert': 1., 'queue_capacity': 2}
  assert part_of(estimate(replay_capacity=10, **settings), 'the replay') == (
      part_of(estimate(replay_capacity=1000, **settings), 'the replay'))


def test_batches():
  needs = estimate(PIXELS, batch_size=6, sequence_length=9, prefetch_size=2)
  assert part_of(needs, 'batches') == 6 * 10 * 42 * 42 * 4 * (1 + 2 + 4)


@pytest.mark.parametrize('spec', [PIXELS, VECTOR])
@pytest.mark.parametrize('autoencoder', [True, False])
def test_weights(spec, autoencoder):
  settings = {'latent_size': 17, 'autoencoder': autoencoder}
  needs = estimate(spec, {'num_actors': 4}, **settings)
  networks = networks_lib.make_networks(
      spec, agent_config.ImpalaPPOConfig(**settings))
  networks.create_variables()
  numbers = sum(variable.numpy().size for variable in networks.trainable_variables)
  assert part_of(needs, 'weights') == 4 * numbers * (3 + 4 + 1)


def test_defaults_fit():
  check(agent_config.ImpalaPPOConfig(frame_stack=4),
        run_config.RunConfig('x', num_actors=2), PIXELS)


@pytest.mark.parametrize('run, agent, told', [
    ({'num_actors': 201}, {}, 'num_actors must be at most 200'),
    ({}, {'num_fetch_workers': 201}, 'num_fetch_workers must be at most 200'),
    ({'num_actors': 199}, {}, 'are for processes (num_actors'),
    ({}, {'replay_capacity': 10**8}, 'are for the replay (replay_capacity'),
    ({}, {'queue_capacity': 10**8}, 'queue_capacity'),
    ({}, {'sequence_length': 10**6}, 'sequence_length'),
    ({}, {'batch_size': 3 * 10**5}, 'are for batches (batch_size'),
    ({}, {'latent_size': 65_536, 'conv_channels': (16, 4096)},
     'are for weights (latent_size'),
    ({'envs_per_actor': 10_000}, {'replay_capacity': 1000}, 'envs_per_actor'),
    # As large as settings may be.
    ({'envs_per_actor': 10**9}, {}, 'envs_per_actor'),
    ({}, {'replay_capacity': 10**18}, 'replay_capacity'),
    ({}, {'latent_size': 10**12}, 'latent_size'),
    ({}, {'sequence_length': 10**12}, 'sequence_length'),
])
def test_what_does_not_fit_is_refused(run, agent, told):
  agent = agent_config.ImpalaPPOConfig(**{'frame_stack': 4, **agent})
  run = run_config.RunConfig('x', **{'num_actors': 2, **run})
  with pytest.raises(ValueError) as error:
    check(agent, run, PIXELS)
  message = str(error.value)
  assert told in message and '\n' not in message
  if 'GiB' in message:
    assert 'there are 16.0' in message
  else:
    assert 'for each core that may be used' in message


def test_threads_need_no_processes():
  run = run_config.RunConfig('x', num_actors=150)
  agent = agent_config.ImpalaPPOConfig()
  with pytest.raises(ValueError, match='processes'):
    check(agent, run, VECTOR)
  check(agent, run, VECTOR, threads=True)


def test_the_largest_frames_are_refused(monkeypatch):
  config = games.EnvironmentConfig(frame_size=1024)
  agent = agent_config.ImpalaPPOConfig(frame_stack=4)
  spec = config.try_out(0)
  needs = estimate(spec, {'num_actors': 2}, frame_stack=4)
  assert part_of(needs, 'batches') == 6 * 33 * math.prod((1024, 1024, 4)) * 6
  monkeypatch.setattr(machine, 'memory', lambda: 4 * GIB)
  with pytest.raises(ValueError, match='GiB'):
    check(agent, run_config.RunConfig('x', num_actors=2), spec)


def test_a_cluster_has_the_cores_and_the_memory_of_all_its_hosts():
  agent = agent_config.ImpalaPPOConfig()
  run = run_config.RunConfig('x', num_actors=300)
  with pytest.raises(ValueError, match='num_actors must be at most 200'):
    check(agent, run, VECTOR)
  check(agent, run, VECTOR, cores=4, memory=200 * GIB)
  with pytest.raises(ValueError, match='of memory would be needed'):
    check(agent, run, VECTOR, cores=4, memory=1 * GIB)
