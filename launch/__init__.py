"""Commands, which parse, check and start; `programs` does the work."""

from typing import Any, TYPE_CHECKING

import agents  # noqa: F401  Must come before TensorFlow is loaded.

if TYPE_CHECKING:
  from launch.policies import load as load_policy

__all__ = ('load_policy',)


def __getattr__(name: str) -> Any:
  # Imported lazily: it loads TensorFlow, which --help need not wait for.
  if name == 'load_policy':
    from launch import policies
    return policies.load
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
