"""The auto-encoder on real frames of Pong: the ball survives."""

from acme import specs
import numpy as np
import pytest
import tensorflow as tf

from agents import games
from agents.impala_ppo import builder as builder_lib
from agents.impala_ppo import config as config_lib
from agents.impala_ppo import trajectories

FRAME_SIZE = 42
NUM_ENVS = 8
T = 8


def play(num_steps, seed):
  """Returns observations [num_steps, E, H, W, 4] of random play."""
  environment = games.EnvironmentConfig(
      'pong', frame_size=FRAME_SIZE).make(NUM_ENVS, seed)
  rng = np.random.default_rng(seed)
  timestep = environment.reset()
  observations = []
  for step in range(num_steps):
    action = rng.integers(6, size=NUM_ENVS, dtype=np.int32)
    timestep = environment.step(action)
    if step > 4:  # The stack is full.
      observations.append(timestep.observation.copy())
  return np.stack(observations), specs.make_environment_spec(environment)


def batches(observations, batch_size, seed=0):
  rng = np.random.default_rng(seed)
  while True:
    starts = rng.integers(len(observations) - T, size=batch_size)
    envs = rng.integers(NUM_ENVS, size=batch_size)
    shape = (batch_size, T)
    yield trajectories.Trajectories(
        observation=np.stack([observations[s:s + T + 1, e]
                              for s, e in zip(starts, envs)]),
        action=np.zeros(shape, np.int32), reward=np.zeros(shape, np.float32),
        discount=np.ones(shape, np.float32), mask=np.ones(shape, bool),
        behaviour_logits=np.zeros((*shape, 6), np.float32),
        policy_version=np.zeros(shape, np.int64),
        key=np.zeros(batch_size, np.uint64), shard=np.zeros(batch_size, np.int32))


def ball_contrasts(observations, reconstructions):
  """Returns how much of the ball's contrast is left, one a frame with a ball.

  Between the paddles and the walls nothing moves but the ball, so what
  differs there from the empty table is it.
  """
  frames = observations[..., -1].astype(np.float32)
  table = np.median(frames, axis=0)
  rows = slice(int(FRAME_SIZE * 0.2), int(FRAME_SIZE * 0.9))
  columns = slice(int(FRAME_SIZE * 0.25), int(FRAME_SIZE * 0.75))
  left = []
  for frame, reconstruction in zip(frames, reconstructions):
    ball = (frame - table)[rows, columns]
    where = np.unravel_index(np.argmax(np.abs(ball)), ball.shape)
    if abs(ball[where]) > 40:  # Else it is out of play.
      drawn = (reconstruction - table)[rows, columns]
      left.append(drawn[where] / ball[where])
  return np.array(left)


@pytest.mark.slow
def test_the_ball_survives_reconstruction_on_frames_never_seen():
  config = config_lib.ImpalaPPOConfig(
      frame_stack=4, sequence_length=T, batch_size=16, samples_per_insert=1.,
      reconstruction_cost=1., reconstruction_period=1, learning_rate=1e-3)
  observations, spec = play(700, seed=0)
  builder = builder_lib.ImpalaPPOBuilder(config, devices=('/cpu:0',))
  networks = builder.make_networks(spec)
  learner = builder.make_learner(0, networks, batches(observations, 16))
  for _ in range(200):
    learner.step()

  held_out = play(160, seed=1)[0].reshape(-1, FRAME_SIZE, FRAME_SIZE, 4)
  encoder = networks.actor_critic.encoder
  normalized = networks.decoder(encoder(held_out))
  pixels = encoder.normalizer.denormalize(
      tf.repeat(normalized, 4, axis=-1))[..., -1].numpy()
  left = ball_contrasts(held_out, pixels)
  assert len(left) > 100
  # An empty table would leave nothing of the ball.
  assert np.median(left) > 0.4
  assert np.mean(left > 0.25) > 0.75
