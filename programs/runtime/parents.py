"""Tells whether the parent of a node is alive; imports nothing slow."""

import os

_VARIABLE = 'IMPALA_PPO_STARTED_BY'


def of_children() -> dict[str, str]:
  """Returns the environment variables that this process's children need."""
  return {_VARIABLE: str(os.getpid())}


def is_known() -> bool:
  """Tells whether this process was started by an engine's process."""
  return _VARIABLE in os.environ


def has_gone() -> bool:
  """Tells whether the engine's process that started this one has ended."""
  return os.getppid() != int(os.environ[_VARIABLE])
