"""Games that wait in each step, as the Gymnasium id tests.unhurried:SlowCatch-v0.

For tests that look at a run while it goes on: it leaves the cores to others.
"""

import time

import gymnasium

from tests import catch

_SECONDS = 0.002


class Unhurried(gymnasium.Wrapper):
  """Takes two milliseconds for each step."""

  def step(self, action):
    time.sleep(_SECONDS)
    return self.env.step(action)


gymnasium.register('SlowCatch-v0', entry_point=lambda: Unhurried(catch.Catch()))
gymnasium.register('SlowCartPole-v0',
                   entry_point=lambda: Unhurried(gymnasium.make('CartPole-v1')))
