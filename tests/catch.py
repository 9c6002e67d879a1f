"""Catch: a tiny game in pixels, as the Gymnasium id tests.catch:Catch-v0."""

import gymnasium
import numpy as np

GRID = 8
PIXELS_PER_CELL = 2


class Catch(gymnasium.Env):
  """A ball falls; the paddle has to be below it when it lands.

  Observations are [16, 16, 1] uint8, actions left, stay and right. An episode
  is one ball and returns 1 if it was caught, or else -1; a random policy
  catches about one in four.
  """

  observation_space = gymnasium.spaces.Box(
      0, 255, (GRID * PIXELS_PER_CELL, GRID * PIXELS_PER_CELL, 1), np.uint8)
  action_space = gymnasium.spaces.Discrete(3)

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self._row = 0
    self._column = int(self.np_random.integers(GRID))
    self._paddle = int(self.np_random.integers(GRID))
    return self._observation(), {}

  def step(self, action):
    self._paddle = int(np.clip(self._paddle + action - 1, 0, GRID - 1))
    self._row += 1
    landed = self._row == GRID - 1
    reward = 0.
    if landed:
      reward = 1. if self._paddle == self._column else -1.
    return self._observation(), reward, landed, False, {}

  def _observation(self):
    board = np.zeros((GRID, GRID), np.uint8)
    board[self._row, self._column] = 255
    board[GRID - 1, self._paddle] = 255
    return np.kron(board, np.ones((PIXELS_PER_CELL,) * 2, np.uint8))[..., None]


gymnasium.register('Catch-v0', entry_point=Catch)
