"""IMPALA with a PPO loss, distributed replay and an auto-encoded latent."""

import importlib
from typing import Any, TYPE_CHECKING

from agents.impala_ppo.config import ImpalaPPOConfig

if TYPE_CHECKING:
  from agents.impala_ppo.acting import SingleEnvironmentActor
  from agents.impala_ppo.builder import ImpalaPPOBuilder

__all__ = ('ImpalaPPOBuilder', 'ImpalaPPOConfig', 'SingleEnvironmentActor')

_MODULES = {'ImpalaPPOBuilder': 'builder', 'SingleEnvironmentActor': 'acting'}


def __getattr__(name: str) -> Any:
  # Lazy: code that only reads settings need not wait for TensorFlow to load.
  if name in _MODULES:
    return getattr(importlib.import_module(f'{__name__}.{_MODULES[name]}'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
