"""The parts and settings that every node of a program needs."""

import dataclasses
from typing import Callable

from acme import specs

from agents import environments
from agents.impala_ppo import acting
from agents.impala_ppo import builder as builder_lib
from programs import config as config_lib

# Makes `num_envs` environments from a seed.
EnvironmentFactory = Callable[[int, int], environments.VectorEnvironment]


@dataclasses.dataclass
class Setup:
  """The parts and settings that every node of a program needs.

  Attributes:
    builder: makes the agent's parts.
    environment_factory: called with a number of environments and a seed.
    environment_spec: of one environment.
    config: how to run.
  """
  builder: builder_lib.ImpalaPPOBuilder
  environment_factory: EnvironmentFactory
  environment_spec: specs.EnvironmentSpec
  config: config_lib.RunConfig

  def make_policy(self, evaluation: bool = False) -> acting.Policy:
    """Makes a policy with its own networks."""
    networks = self.builder.make_networks(self.environment_spec)
    return self.builder.make_policy(networks, self.environment_spec, evaluation)
