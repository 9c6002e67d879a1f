"""The example: one process, Acme's loop, and the same losses every time."""

import importlib.util
import pathlib

import numpy as np
import pytest

from agents import games
from agents.impala_ppo import ImpalaPPOConfig

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


@pytest.mark.slow
@pytest.mark.parametrize('game, learner_steps', [
    ('tests.catch:Catch-v0', 40),  # An episode has 7 steps, a batch 8 new ones.
    ('CartPole-v1', 40), ('pong', 150),  # Into a second episode.
])
def test_the_same_seed_gives_the_same_losses(game, learner_steps):
  first = run(game, 0, learner_steps)
  assert first.shape == (learner_steps,) and len(set(first)) == learner_steps
  np.testing.assert_array_equal(first, run(game, 0, learner_steps))


@pytest.mark.slow
def test_another_seed_gives_other_losses():
  first, other = (run('tests.catch:Catch-v0', seed, 10) for seed in (0, 1))
  assert (first != other).all()
