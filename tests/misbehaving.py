"""CartPole that misbehaves, once a copy has taken a number of steps.

As Gymnasium ids: tests.misbehaving:Raises-v0, Hangs-v0, Exits-v0; and others,
which are odd from the start.
"""

import ctypes
import os

import gymnasium
from gymnasium.envs.classic_control import cartpole
import numpy as np

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
    print('the simulator hangs', flush=True)
    # As C code that keeps Python's lock, so that none of its threads runs.
    ctypes.PyDLL(None).sleep(10**6)


class Exits(_Misbehaving):

  def misbehave(self):
    os._exit(3)


class BadConstructor(cartpole.CartPoleEnv):

  def __init__(self):
    raise RuntimeError('no display\nfound')


class BadReset(cartpole.CartPoleEnv):

  def reset(self, **kwargs):
    raise RuntimeError('no map')


class BadStep(cartpole.CartPoleEnv):

  def step(self, action):
    return super().step(action)[:4]  # As of old.


class OddInfos(cartpole.CartPoleEnv):
  """Tells what does not batch."""

  def step(self, action):
    *step, _ = super().step(action)
    length = self.np_random.integers(1, 4)
    return *step, {'path': np.zeros(length), 'why': 'hit' if length == 1 else 0}


class Pixels(gymnasium.Env):
  """Shows its own number of channels, one of which is lit."""

  action_space = gymnasium.spaces.Discrete(2)

  def __init__(self, shape):
    self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)

  def _observation(self):
    observation = np.zeros(self.observation_space.shape, np.uint8)
    observation[1] = 255
    return observation

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    return self._observation(), {}

  def step(self, action):
    return self._observation(), 0., False, False, {}


gymnasium.register('ChannelsFirst-v0', Pixels, kwargs={'shape': (5, 20, 30)})
gymnasium.register('ChannelsLast-v0', Pixels, kwargs={'shape': (20, 30, 5)})
gymnasium.register('Empty-v0', Pixels, kwargs={'shape': (0,)})

for _class in (Raises, Hangs, Exits, BadConstructor, BadReset, BadStep, OddInfos):
  gymnasium.register(f'{_class.__name__}-v0', entry_point=_class)
