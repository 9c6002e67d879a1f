"""The example: one process, Acme's loop, and the same losses every time."""

import functools
import importlib.util
import pathlib

import numpy as np
import pytest

from agents import games
from agents.impala_ppo import ImpalaPPOConfig

# Into a second episode of each game: a batch has 8 new timesteps, and Breakout is
# lost after some 150 at random.
NUM_STEPS = 40
EXAMPLE = pathlib.Path(__file__).parents[2] / 'docs' / 'single_process.py'


def load_example():
  spec = importlib.util.spec_from_file_location('single_process', EXAMPLE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def run(game, seed, learner_steps):
  config = ImpalaPPOConfig(
      frame_stack=games.EnvironmentConfig(game).frame_stack,
      sequence_length=4, batch_size=4, samples_per_insert=2.,
      replay_sampler='fifo', queue_capacity=64, variable_update_period=1,
      latent_size=32)
  return np.array(load_example().train(game, seed, learner_steps, config))


@functools.cache
def first_run(game):
  return run(game, 0, NUM_STEPS)


@pytest.mark.slow
@pytest.mark.parametrize('game', ['tests.catch:Catch-v0', 'CartPole-v1', 'breakout'])
def test_the_same_seed_gives_the_same_losses(game):
  first = first_run(game)
  assert first.shape == (NUM_STEPS,) and len(set(first)) == NUM_STEPS
  np.testing.assert_array_equal(first, run(game, 0, NUM_STEPS))


@pytest.mark.slow
def test_another_seed_gives_other_losses():
  game = 'tests.catch:Catch-v0'
  assert (first_run(game)[:10] != run(game, 1, 10)).all()
