"""CleanRL's PPO on EnvPool, with the script's own settings.

    python cleanrl_ppo.py PROGRESS_CSV SEED GAME FRAME_SIZE

Frames are of 84 pixels, as in the script, or of 42. In that case the first
convolution has half the size and stride, so that all that follows is unchanged.
"""

import pathlib
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


def main(path: str, seed: str, game: str, frame_size: str):
  size = int(frame_size)
  envpool.make = lambda *args, **kwargs: OldInterface(
      _make(*args, img_height=size, img_width=size, **kwargs), Recorder(path))
  script = pathlib.Path(list(cleanrl.__path__)[0], 'ppo_atari_envpool.py')
  source = script.read_text()
  if size == 42:
    first = 'nn.Conv2d(4, 32, 8, stride=4)'
    assert source.count(first) == 1
    source = source.replace(first, 'nn.Conv2d(4, 32, 4, stride=2)')
  name = ''.join(word.capitalize() for word in game.split('_'))
  sys.argv = [str(script), '--env-id', f'{name}-v5', '--seed', seed]
  exec(compile(source, script, 'exec'), {'__name__': '__main__',
                                         '__file__': str(script)})


if __name__ == '__main__':
  main(*sys.argv[1:])
