"""Acme's own TensorFlow IMPALA on our Pong.

    python acme_impala.py PROGRESS_CSV SEED
"""

import functools
import sys

# First, as it enables TensorFlow's fast kernels, for Acme too.
from agents import environments  # isort: skip
from agents import games  # isort: skip

import acme
from acme import specs
from acme import wrappers
from acme.agents.tf import impala
from acme.datasets import reverb as datasets
from acme.tf import networks
from acme.utils import loggers
from recorder import Recorder
import reverb
import tensorflow as tf

_trajectory_writer = reverb.Client.trajectory_writer


def trajectory_writer(client: reverb.Client, num_keep_alive_refs: int,
                      get_signature_timeout_ms=None) -> reverb.TrajectoryWriter:
  """Accepts an argument of Acme's adders that Reverb 0.7 does not know."""
  del get_signature_timeout_ms
  return _trajectory_writer(client, num_keep_alive_refs)


class FloatPixels(wrappers.EnvironmentWrapper):
  """Scales pixels to [0, 1] float32, which Acme's network expects."""

  def _scaled(self, timestep):
    return timestep._replace(
        observation=timestep.observation.astype('float32') / 255.)

  def reset(self):
    return self._scaled(self._environment.reset())

  def step(self, action):
    return self._scaled(self._environment.step(action))

  def observation_spec(self):
    spec = self._environment.observation_spec()
    return specs.Array(spec.shape, 'float32', spec.name)


def main(path: str, seed: str):
  reverb.Client.trajectory_writer = trajectory_writer
  # By default each of twelve streams waits for a batch of its own, while the
  # actor, in the same thread, waits for the learner.
  impala.agent.datasets.make_reverb_dataset = functools.partial(
      datasets.make_reverb_dataset, num_parallel_calls=1)
  tf.random.set_seed(int(seed))
  environment = wrappers.SinglePrecisionWrapper(
      wrappers.ObservationActionRewardWrapper(FloatPixels(
          environments.SingleEnvironment(games.EnvironmentConfig(
              'pong', frame_size=84).make(1, int(seed))))))
  environment_spec = acme.make_environment_spec(environment)
  agent = impala.IMPALA(
      environment_spec,
      networks.IMPALAAtariNetwork(environment_spec.actions.num_values),
      # The length that Acme's own configurations of IMPALA have; the rest are
      # the agent's defaults.
      sequence_length=20, sequence_period=20, logger=loggers.NoOpLogger())
  loop = acme.EnvironmentLoop(environment, agent, logger=loggers.NoOpLogger())
  recorder = Recorder(path)
  timesteps = 0
  while True:
    result = loop.run_episode()
    timesteps += result['episode_length']
    recorder.record(timesteps, [result['episode_return']])


if __name__ == '__main__':
  main(*sys.argv[1:])
