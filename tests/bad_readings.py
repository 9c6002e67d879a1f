"""Environments that give a number that is not finite, one kind each.

As Gymnasium ids: tests.bad_readings:NanReward-v0, and so on.
"""

import gymnasium
import numpy as np

EPISODE_STEPS = 5


class Misbehaving(gymnasium.Env):
  """Pays 1 a step; episodes are of 5 steps.

  Observations are [3] float32: the episode, the step within it, and 7.

  Attributes:
    resets: how many there were.
  """

  observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
  action_space = gymnasium.spaces.Discrete(2)

  def __init__(self, bad_steps=(), reward=1., element=7.):
    """Makes an environment.

    Args:
      bad_steps: the steps, over all episodes and counting resets, at which it
        misbehaves.
      reward: that it then pays.
      element: what it then observes last.
    """
    self._bad_steps = bad_steps
    self._bad = reward, element
    self._time = -1
    self.resets = 0

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._step = 0
    self.resets += 1
    return self._next()[0], {}

  def step(self, action):
    self._step += 1
    observation, reward = self._next()
    return observation, reward, self._step == EPISODE_STEPS, False, {}

  def _next(self):
    self._time += 1
    reward, element = self._bad if self._time in self._bad_steps else (1., 7.)
    return np.array([self.resets - 1, self._step, element], np.float32), reward


KINDS = {
    'NanReward': {'reward': np.nan},
    'InfReward': {'reward': np.inf},
    'HugeReward': {'reward': -1e300},  # No float32.
    'NanObservation': {'element': np.nan},
    'InfObservation': {'element': -np.inf},
}

for _name, _kwargs in KINDS.items():
  # The first time at step 2 of a copy's 51st episode.
  gymnasium.register(f'{_name}-v0', entry_point=Misbehaving,
                     kwargs={'bad_steps': range(302, 10**9, 302), **_kwargs})
gymnasium.register('Behaving-v0', entry_point=Misbehaving)
