"""CleanRL's PPO on EnvPool, with the script's own settings, on Pong.

    python cleanrl_ppo.py PROGRESS_CSV SEED
"""

import os
import runpy
import sys

import cleanrl
import envpool
import gym
import numpy as np
from recorder import Recorder

_make = envpool.make


class OldInterface(gym.Env):
  """Gives EnvPool's environments the interface that the script was written for.

  EnvPool has since followed Gymnasium: a reset returns two values, a step five.
  """

  def __init__(self, envs, recorder: Recorder):
    self._envs = envs
    self._recorder = recorder
    self._timesteps = 0
    self.action_space = gym.spaces.Discrete(int(envs.action_space.n))
    self.observation_space = envs.observation_space

  def reset(self, **kwargs):
    self._returns = np.zeros(self.num_envs)  # The script sets `num_envs`.
    return self._envs.reset(**kwargs)[0]

  def step(self, action):
    observation, reward, terminated, truncated, info = self._envs.step(action)
    done = np.logical_or(terminated, truncated)
    self._timesteps += self.num_envs
    self._returns += info['reward']
    finished = np.logical_and(done, info['lives'] == 0)
    self._recorder.record(self._timesteps, self._returns[finished])
    self._returns[finished] = 0.
    return observation, reward, done, info


def main(path: str, seed: str):
  envpool.make = lambda *args, **kwargs: OldInterface(
      _make(*args, **kwargs), Recorder(path))
  script = os.path.join(list(cleanrl.__path__)[0], 'ppo_atari_envpool.py')
  sys.argv = [script, '--env-id', 'Pong-v5', '--seed', seed]
  runpy.run_path(script, run_name='__main__')


if __name__ == '__main__':
  main(*sys.argv[1:])
