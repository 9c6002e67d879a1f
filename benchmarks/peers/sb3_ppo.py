"""Stable-Baselines3's PPO, with its zoo's settings for Atari.

    python sb3_ppo.py PROGRESS_CSV SEED GAME
"""

import sys

import ale_py
import gymnasium
from recorder import Recorder
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecFrameStack

_TIMESTEPS = 10_000_000


class Record(BaseCallback):
  """Passes on the counts of the monitors, which are below all other wrappers."""

  def __init__(self, path: str):
    super().__init__()
    self._path = path

  def _on_training_start(self) -> None:
    self._recorder = Recorder(self._path)

  def _on_step(self) -> bool:
    finished = [info['episode']['r'] for info in self.locals['infos']
                if 'episode' in info]
    self._recorder.record(self.num_timesteps, finished)
    return True


def main(path: str, seed: str, game: str):
  gymnasium.register_envs(ale_py)
  name = ''.join(word.capitalize() for word in game.split('_'))
  envs = make_atari_env(
      f'ALE/{name}-v5', n_envs=8, seed=int(seed),
      # SB3's wrapper repeats actions; the zoo's NoFrameskip-v4 does not.
      env_kwargs={'frameskip': 1, 'repeat_action_probability': 0.})
  PPO('CnnPolicy', VecFrameStack(envs, 4), n_steps=128, n_epochs=4, batch_size=256,
      learning_rate=LinearSchedule(2.5e-4, 0., 1.),
      clip_range=LinearSchedule(0.1, 0., 1.), vf_coef=0.5, ent_coef=0.01,
      seed=int(seed)).learn(_TIMESTEPS, callback=Record(path))


if __name__ == '__main__':
  main(*sys.argv[1:])
