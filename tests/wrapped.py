"""Wrappers of environments, as users would write them."""

import gymnasium
import numpy as np


def short(env):
  """Truncates episodes after three steps."""
  return gymnasium.wrappers.TimeLimit(env, 3)


def cropped(env):
  """Shows every fourth pixel of the middle of an Atari screen, in colour."""
  return gymnasium.wrappers.TransformObservation(
      env, lambda screen: np.ascontiguousarray(screen[34:194:4, ::4]),
      gymnasium.spaces.Box(0, 255, (40, 40, 3), np.uint8))


NO_FUNCTION = 3
