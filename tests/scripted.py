"""A vector environment whose episodes are written down."""

from acme import core
import dm_env
import numpy as np


class ScriptedEnvironment:
  """Plays each environment's episodes in turn, over and over.

  Observations are [E, 2] float32: the episode's number and the step within it.
  It resets as `environments.VectorEnvironment` does.

  Attributes:
    is_closed: whether it was closed.
  """

  def __init__(self, episodes):
    """Makes environments.

    Args:
      episodes: for each environment its episodes, lists of rewards.
    """
    self._episodes = episodes
    self.num_envs = len(episodes)
    self.is_closed = False

  def reset(self):
    self._episode, self._step = np.zeros((2, self.num_envs), int)
    self._step_type = np.full(self.num_envs, dm_env.StepType.FIRST)
    return self._timestep(np.zeros(self.num_envs))

  def step(self, action):
    assert np.shape(action) == (self.num_envs,)
    rewards = np.zeros(self.num_envs)
    for i, episodes in enumerate(self._episodes):
      episode = episodes[self._episode[i] % len(episodes)]
      if self._step_type[i] == dm_env.StepType.LAST:
        self._step_type[i] = dm_env.StepType.FIRST
        self._episode[i] += 1
        self._step[i] = 0
        continue
      rewards[i] = episode[self._step[i]]
      self._step[i] += 1
      self._step_type[i] = (
          dm_env.StepType.LAST if self._step[i] == len(episode)
          else dm_env.StepType.MID)
    return self._timestep(rewards)

  def close(self):
    self.is_closed = True

  def _timestep(self, rewards):
    return dm_env.TimeStep(
        step_type=self._step_type.astype(np.int32),
        reward=rewards.astype(np.float32),
        discount=(self._step_type == dm_env.StepType.MID).astype(np.float32),
        observation=np.stack([self._episode, self._step], 1).astype(np.float32))


class ScriptedActor(core.Actor):
  """Acts by counting, and keeps what it is told.

  Attributes:
    calls: (method, argument) in order.
  """

  def __init__(self):
    self.calls = []

  def select_action(self, observation):
    self.calls.append(('select_action', observation))
    return np.full(len(observation), len(self.calls), np.int32)

  def observe_first(self, timestep):
    self.calls.append(('observe_first', timestep))

  def observe(self, action, next_timestep):
    self.calls.append(('observe', (action, next_timestep)))

  def update(self, wait=False):
    self.calls.append(('update', wait))
