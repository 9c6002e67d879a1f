"""The agent in one process, driven by Acme's own loop: no Launchpad.

    python docs/single_process.py --game pong --seed 0 --learner_steps 200

Prints the loss of each learner step. The same seed gives the same losses:
acting and learning take turns, and replay is of the kind that draws no random
numbers, since Reverb's random selectors take no seed.
"""

import agents  # noqa: F401, I001  Before TensorFlow, for its fast CPU kernels.

import argparse
from typing import List

import acme
from acme import core
from acme import specs
from acme.utils import loggers
import dm_env
import reverb

from agents import environments
from agents import games
from agents.impala_ppo import ImpalaPPOBuilder
from agents.impala_ppo import ImpalaPPOConfig
from agents.impala_ppo import SingleEnvironmentActor


class Agent(core.Actor):
  """Takes a learner step whenever there is a new batch for it."""

  def __init__(self, actor: core.Actor, learner: core.Learner,
               config: ImpalaPPOConfig):
    self._actor = actor
    self._learner = learner
    self._config = config
    self._observations = 0
    self._learner_steps = 0
    self.losses: List[float] = []

  def select_action(self, observation):
    return self._actor.select_action(observation)

  def observe_first(self, timestep: dm_env.TimeStep):
    # An episode that follows another is recorded by way of a reset step.
    self._observations += 1
    self._actor.observe_first(timestep)

  def observe(self, action, next_timestep: dm_env.TimeStep):
    self._observations += 1
    self._actor.observe(action, next_timestep)

  def update(self, wait: bool = False):
    # The first observation begins no step, and a trajectory is complete with
    # the step after it.
    trajectories = (self._observations - 2) // self._config.sequence_length
    while (self._learner_steps <
           trajectories // self._config.online_batch_size):
      self._learner.step()
      self._learner_steps += 1
      self.losses.append(self._learner.metrics()['loss'])
      self._actor.update(wait=True)


def train(game: str, seed: int, learner_steps: int,
          config: ImpalaPPOConfig) -> List[float]:
  """Trains on one environment and returns the losses, one a learner step."""
  environment = environments.SingleEnvironment(
      games.EnvironmentConfig(game).make(num_envs=1, seed=seed))
  environment_spec = specs.make_environment_spec(environment)

  builder = ImpalaPPOBuilder(config)
  networks = builder.make_networks(environment_spec)
  server = reverb.Server(builder.make_replay_tables(environment_spec))
  client = reverb.Client(f'localhost:{server.port}')
  learner = builder.make_learner(
      seed, networks, builder.make_dataset_iterator(client), client)
  policy = builder.make_policy(networks, environment_spec)
  actor = SingleEnvironmentActor(builder.make_actor(
      seed, policy, builder.make_adder(client), learner))
  agent = Agent(actor, learner, config)

  loop = acme.EnvironmentLoop(environment, agent, logger=loggers.NoOpLogger())
  while len(agent.losses) < learner_steps:
    loop.run_episode()
  server.stop()
  return agent.losses[:learner_steps]


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--game', default='pong')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--learner_steps', type=int, default=200)
  flags = parser.parse_args()
  config = ImpalaPPOConfig(
      frame_stack=games.EnvironmentConfig(flags.game).frame_stack,
      sequence_length=16, batch_size=4, samples_per_insert=2.,
      replay_sampler='fifo', queue_capacity=64, variable_update_period=1)
  losses = train(flags.game, flags.seed, flags.learner_steps, config)
  for step, loss in enumerate(losses):
    print(f'{step} {loss:.9g}')


if __name__ == '__main__':
  main()
