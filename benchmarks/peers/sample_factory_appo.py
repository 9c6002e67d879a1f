"""Sample Factory's APPO, with its Atari example's settings, on Pong.

    python sample_factory_appo.py PROGRESS_CSV SEED
"""

import os
import sys
from typing import Dict

from recorder import Recorder
from sample_factory.algo.runners.runner import AlgoObserver
from sample_factory.algo.runners.runner import Runner
from sample_factory.algo.utils.misc import EPISODIC
from sample_factory.train import make_runner
from sf_examples.atari import train_atari

# Two workers with many environments each use two cores best; the example's eight
# with one each are for more cores.
_SMALL_MACHINE = ['--num_workers=2', '--num_envs_per_worker=16',
                  '--worker_num_splits=2', '--async_rl=True', '--device=cpu',
                  '--decorrelate_experience_max_seconds=0']


class Observer(AlgoObserver):
  """Passes the runner's counts on.

  Environments first play at random for up to 1,920 timesteps each, so that they
  do not move in step; the runner does not count these. Games begun then are
  reported whole, like all others, which the runner's own sums do not do.
  """

  def __init__(self, path: str):
    self._path = path
    self._timesteps = 0

  def on_start(self, runner: Runner):
    self._recorder = Recorder(self._path)
    runner.policy_msg_handlers[EPISODIC].append(self._on_episode)

  def on_training_step(self, runner: Runner, training_iteration_since_resume: int):
    del training_iteration_since_resume
    self._timesteps = sum(runner.env_steps.values())
    self._recorder.record(self._timesteps)

  def _on_episode(self, runner: Runner, message: Dict, policy_id: int):
    del runner, policy_id
    self._recorder.record(self._timesteps, [
        message[EPISODIC]['RecordEpisodeStatistics_reward']])


def main(path: str, seed: str):
  train_atari.register_atari_components()
  directory = os.path.dirname(os.path.abspath(path))
  config = train_atari.parse_atari_args([
      '--env=atari_pong', '--experiment=pong', f'--train_dir={directory}',
      f'--seed={seed}',
      # Counts agent actions rather than emulator frames.
      '--summaries_use_frameskip=False', *_SMALL_MACHINE])
  config, runner = make_runner(config)
  runner.register_observer(Observer(path))
  runner.init()
  runner.run()


if __name__ == '__main__':
  main(*sys.argv[1:])
