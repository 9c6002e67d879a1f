"""IMPALA with a PPO loss, distributed replay and an auto-encoded latent."""

from agents.impala_ppo.acting import SingleEnvironmentActor
from agents.impala_ppo.builder import ImpalaPPOBuilder
from agents.impala_ppo.config import ImpalaPPOConfig

__all__ = ('ImpalaPPOBuilder', 'ImpalaPPOConfig', 'SingleEnvironmentActor')
