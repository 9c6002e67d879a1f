"""IMPALA with a PPO loss, distributed replay and an auto-encoded latent."""

from typing import Any, TYPE_CHECKING

from agents.impala_ppo.config import ImpalaPPOConfig

if TYPE_CHECKING:
  from agents.impala_ppo.builder import ImpalaPPOBuilder

__all__ = ('ImpalaPPOBuilder', 'ImpalaPPOConfig')


def __getattr__(name: str) -> Any:
  # Loads TensorFlow, for which those who only read settings need not wait.
  if name == 'ImpalaPPOBuilder':
    from agents.impala_ppo import builder
    return builder.ImpalaPPOBuilder
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
