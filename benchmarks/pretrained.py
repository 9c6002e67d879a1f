"""Makes a run's policy one that comes with the package.

    python -m benchmarks.pretrained --run_dir runs/pong --name pong

Evaluates the greedy policy of the run's newest checkpoint, and writes its weights,
the run's settings and a model card to `launch/pretrained/<name>/`.
"""

import json
import os
import shutil

import numpy as np

from benchmarks import common
from launch import curves
from launch import policies
from launch import settings as settings_lib
from programs.nodes import evaluator
from programs.runtime import checkpoints

_ENVS = 16
_MOST_BYTES = 3_000_000


def _card(config, row, returns, low, high, seed) -> str:
  environment, agent, run = (
      config[name] for name in ('environment', 'agent', 'run'))
  return f"""# {environment['game']}: a policy that comes with the package

A policy for the Atari game {environment['game']}, learned from
{environment['frame_size']}x{environment['frame_size']} pixels.

| | |
| --- | --- |
| made by | `python -m launch.train --game {environment['game']} --seed \
{run['seed']}`, its settings in `config.json` |
| commit | {config['commit']}{', with changes' if config['dirty'] else ''} |
| machine | {config['cores']} cores of {config['processor']} |
| trained for | {row['timesteps']:,.0f} timesteps, {row['learner_steps']:,.0f} learner \
steps, {row['walltime_seconds'] / 60:.1f} minutes |
| return while training | {row[curves.RETURN]:.1f}, the mean of the last 100 episodes |
| greedy return | {np.mean(returns):.2f} (95% interval {low:.2f} to {high:.2f}), from \
{min(returns):g} to {max(returns):g}, over {len(returns)} whole games |
| measured by | `python -m launch.evaluate --pretrained \
{environment['game']} --episodes {len(returns)} --seed {seed}` |

Observations are four frames, each the maximum of a timestep's last two screens, grey
and shrunk; an action is repeated for four screens, and games begin with up to 30
no-ops. Actions were followed with probability \
{1 - environment['repeat_action_probability']:g}: with sticky actions, other versions of
the game, or another preprocessing it was never tried. It is of one run, with one
seed, made to be tried out and to test with.

The weights are of an encoder of convolutions {agent['conv_channels']} to a latent of \
{agent['latent_size']}, of a policy head and
a value head; the decoder and the optimiser are left out. Apache-2.0, as the package.
"""


def main() -> None:
  parser = common.Parser('pretrained', __doc__)
  parser.add_argument('--run_dir', required=True)
  parser.add_argument('--name', required=True)
  parser.add_argument('--episodes', type=common.positive(int), default=100)
  parser.add_argument('--seed', type=int, default=1)
  flags = parser.parse_args()
  try:
    policy = policies.load(flags.run_dir)
    run = curves.read(flags.run_dir)
  except ValueError as e:
    parser.error(str(e))
  settings = policy.settings
  environment = settings.environment.make(_ENVS, flags.seed)
  returns = evaluator.play_episodes(
      environment, policy.actor, flags.episodes, settings.run.max_episode_steps)
  environment.close()

  directory = common.CHECKOUT / 'launch' / 'pretrained' / flags.name
  shutil.rmtree(directory, ignore_errors=True)
  policies.save_weights(
      policy.networks.actor_critic, checkpoints.learner_steps(policy.checkpoint),
      str(directory))
  with open(os.path.join(flags.run_dir, settings_lib.CONFIG_FILE)) as f:
    config = json.load(f)
  config['run']['run_dir'] = flags.name
  config['agent']['autoencoder'] = False  # Its decoder is left out.
  common.write_json(directory / settings_lib.CONFIG_FILE, config)
  _, low, high = curves.interval(np.array(returns))
  card = _card(config, run.rows[-1], returns, low, high, flags.seed)
  (directory / 'README.md').write_text(card)
  size = sum(path.stat().st_size for path in directory.rglob('*') if path.is_file())
  print(f'{card}\n{directory}: {size:,} bytes')
  if size > _MOST_BYTES:
    parser.error(f'{directory} has more than {_MOST_BYTES:,} bytes.')


if __name__ == '__main__':
  main()
