"""The example: one process, Acme's loop, and the same losses every time."""

import importlib.util
import pathlib

import numpy as np

from agents import environments
from agents.impala_ppo import ImpalaPPOConfig

EXAMPLE = pathlib.Path(__file__).parents[2] / 'docs' / 'single_process.py'


def load_example():
  spec = importlib.util.spec_from_file_location('single_process', EXAMPLE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def run(game, seed, learner_steps):
  config = ImpalaPPOConfig(
      frame_stack=environments.EnvironmentConfig(game).frame_stack,
      sequence_length=4, batch_size=4, samples_per_insert=2.,
      replay_sampler='fifo', queue_capacity=64, variable_update_period=1)
  return np.array(load_example().train(game, seed, learner_steps, config))


def test_the_same_seed_gives_the_same_losses_for_200_steps():
  first = run('pong', 0, 200)
  np.testing.assert_array_equal(first, run('pong', 0, 200))
  other = run('pong', 1, 20)
  assert (first[:20] != other).all()


def test_vectors_train_too():
  losses = run('CartPole-v1', 0, 20)
  assert np.isfinite(losses).all()
