"""Commands: they parse, check and start, and leave the work to `programs`."""

from typing import Any, TYPE_CHECKING

import agents  # noqa: F401  Before anything else loads TensorFlow.

if TYPE_CHECKING:
  from launch.policies import load as load_policy

__all__ = ('load_policy',)


def __getattr__(name: str) -> Any:
  # Loads TensorFlow, for which --help need not wait.
  if name == 'load_policy':
    from launch import policies
    return policies.load
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
