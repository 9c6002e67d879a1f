"""RLlib's APPO, with its tuned settings for Pong.

    python rllib_appo.py PROGRESS_CSV SEED
"""

import sys

import ale_py
import gymnasium
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.connectors.env_to_module import frame_stacking as acting
from ray.rllib.connectors.learner import frame_stacking as learning
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.wrappers import atari_wrappers
from ray.tune import register_env
from recorder import Recorder

_FRAME_STACK = 4
_FRAME_SIZE = 64  # As in RLlib's tuned settings.


def make_environment(env_config) -> gymnasium.Env:
  del env_config
  gymnasium.register_envs(ale_py)
  return atari_wrappers.wrap_atari_for_new_api_stack(
      gymnasium.make('ALE/Pong-v5', frameskip=1, repeat_action_probability=0.,
                     render_mode='rgb_array'), dim=_FRAME_SIZE)


def main(path: str, seed: str):
  register_env('pong', make_environment)
  # rllib/tuned_examples/appo/pong_appo.py of Ray 2.48, with its environments on
  # two processes; two more aggregators would leave them no core.
  algorithm = (
      APPOConfig()
      .environment('pong', clip_rewards=True)
      .env_runners(
          num_env_runners=2, num_envs_per_env_runner=2, num_cpus_per_env_runner=0.5,
          env_to_module_connector=lambda env=None, spaces=None, device=None: (
              acting.FrameStackingEnvToModule(num_frames=_FRAME_STACK)))
      .learners(num_learners=0, num_aggregator_actors_per_learner=0)
      .training(
          learner_connector=lambda observation_space=None, action_space=None: (
              learning.FrameStackingLearner(num_frames=_FRAME_STACK)),
          train_batch_size_per_learner=500, target_network_update_freq=2,
          lr=5e-4, vf_loss_coeff=1., entropy_coeff=[[0, 0.01], [3_000_000, 0.]],
          broadcast_interval=5, circular_buffer_num_batches=4,
          circular_buffer_iterations_per_batch=2)
      .rl_module(model_config=DefaultModelConfig(
          vf_share_layers=True, conv_activation='relu', head_fcnet_hiddens=[256],
          conv_filters=[(16, 4, 2), (32, 4, 2), (64, 4, 2), (128, 4, 2)]))
      .reporting(min_time_s_per_iteration=5)
      .debugging(seed=int(seed))
      .build_algo())
  recorder = Recorder(path)
  while True:
    result = algorithm.train()['env_runners']
    recorder.record_mean(
        int(result.get('num_env_steps_sampled_lifetime', 0)),
        int(result.get('num_episodes_lifetime', 0)),
        float(result.get('episode_return_mean', 'nan')))


if __name__ == '__main__':
  main(*sys.argv[1:])
