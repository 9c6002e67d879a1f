"""CartPole that misbehaves, once a copy has taken a number of steps.

As Gymnasium ids: tests.misbehaving:Raises-v0, Hangs-v0, Exits-v0.
"""

import os
import time

import gymnasium
from gymnasium.envs.classic_control import cartpole

# Of each copy, from when its process starts.
STEPS_BEFORE = 100


class _Misbehaving(cartpole.CartPoleEnv):
  _steps = 0

  def step(self, action):
    self._steps += 1
    if self._steps == STEPS_BEFORE:
      self.misbehave()
    return super().step(action)


class Raises(_Misbehaving):

  def misbehave(self):
    raise RuntimeError('the simulator lost its licence')


class Hangs(_Misbehaving):

  def misbehave(self):
    time.sleep(1e6)


class Exits(_Misbehaving):

  def misbehave(self):
    os._exit(3)


for _class in (Raises, Hangs, Exits):
  gymnasium.register(f'{_class.__name__}-v0', entry_point=_class)
