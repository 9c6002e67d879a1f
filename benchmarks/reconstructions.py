"""Draws frames beside their reconstructions, from a trained checkpoint.

    python -m benchmarks.reconstructions --run_dir runs/pong --out picture.png

Plays the newest policy of the run and takes frames spread over the play.
Needs matplotlib.
"""

from acme import specs
import numpy as np

from agents.impala_ppo import ImpalaPPOBuilder
from benchmarks import common
from launch import policies
from launch import settings as settings_lib
from programs.runtime import checkpoints

_ENVS = 8


def main() -> None:
  parser = common.Parser('reconstructions', __doc__)
  parser.add_argument('--run_dir', required=True)
  parser.add_argument('--out', required=True, help='the PNG to write')
  parser.add_argument('--steps', type=common.positive(int), default=200,
                      help='timesteps to play first, in each environment')
  parser.add_argument('--seed', type=int, default=1)
  flags = parser.parse_args()
  import matplotlib  # Only for drawing.
  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  try:
    settings = settings_lib.load(flags.run_dir)
    path = checkpoints.existing(flags.run_dir)
    environment = settings.environment.make(_ENVS, flags.seed)
    environment_spec = specs.make_environment_spec(environment)
    builder = ImpalaPPOBuilder(settings.agent)
    networks = policies.restored(builder, environment_spec, path, with_decoder=True)
    if networks.decoder is None or settings.agent.frame_stack == 1:
      raise ValueError(f'{flags.run_dir} reconstructs no frames.')
  except ValueError as e:
    parser.error(str(e))
  actor = builder.make_actor(flags.seed,
                             builder.make_policy(networks, environment_spec))
  timestep = environment.reset()
  for _ in range(flags.steps):
    timestep = environment.step(actor.select_action(timestep.observation))
  environment.close()

  observation = timestep.observation
  reconstruction = networks.reconstruct(networks.actor_critic.encoder(observation))
  figure, axes = plt.subplots(2, _ENVS, figsize=(1.6 * _ENVS, 3.6))
  for row, (name, images) in enumerate((
      ('frame', observation), ('reconstruction', reconstruction.numpy()))):
    for axis, image in zip(axes[row], images):
      axis.imshow(np.clip(image[..., -1], 0, 255), cmap='gray', vmin=0, vmax=255)
      axis.set_xticks([])
      axis.set_yticks([])
    axes[row, 0].set_ylabel(name)
  figure.suptitle(f'{settings.environment.game}, after '
                  f'{checkpoints.learner_steps(path):,} learner steps')
  figure.tight_layout()
  figure.savefig(flags.out, dpi=110)


if __name__ == '__main__':
  common.run(main)
