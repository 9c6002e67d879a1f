"""Adds a run's policy to those that come with the package.

    python -m benchmarks.pretrained --run_dir runs/pong --name pong

Evaluates the greedy policy of the run's newest checkpoint, and writes its weights,
the run's settings and a model card to `launch/pretrained/<name>/`.
"""

import json
import math
import os
import shutil
import textwrap
from typing import Any, Mapping, Sequence

import numpy as np

from benchmarks import common
from launch import evaluate
from launch import policies
from launch import settings as settings_lib
from launch.views import curves
from programs.nodes import evaluator
from programs.runtime import checkpoints

_ENVS = 16
_MOST_BYTES = 3_000_000


def _card(name: str, config: Mapping[str, Any], had_decoder: bool,
          row: Mapping[str, float], returns: Sequence[float], seed: int) -> str:
  low, high = evaluate.bootstrap_interval(returns) or (math.nan, math.nan)
  environment, agent, run = (
      config[name] for name in ('environment', 'agent', 'run'))
  game, size = environment['game'], environment['frame_size']
  # `config` is of what is left.
  with_decoder = ' but with `--autoencoder`' if had_decoder else ''
  changed = ', with changes' if config['dirty'] else ''
  stopped = ('' if row['timesteps'] >= run['max_timesteps'] else
             '; stopped then, by hand or by its target')
  facts = {
      'made by': f'`python -m launch.train --game {game} --seed {run["seed"]}`, '
                 f'with the settings of `config.json`{with_decoder}',
      'commit': f'{config["commit"]}{changed}',
      'machine': f'{config["cores"]} cores of {config["processor"]}',
      'trained for': f'{row["timesteps"]:,.0f} timesteps, '
                     f'{row["learner_steps"]:,.0f} learner steps, '
                     f'{row["walltime_seconds"] / 60:.1f} minutes{stopped}',
      'return while training': f'{row[curves.RETURN]:.1f}, the mean of the last 100 '
                               'episodes',
      'greedy return': f'{np.mean(returns):.2f} (95% interval {low:.2f} to '
                       f'{high:.2f}), from {min(returns):g} to {max(returns):g}, '
                       f'over {len(returns)} whole games',
      'measured by': f'`python -m launch.evaluate --pretrained {name} --episodes '
                     f'{len(returns)} --seed {seed}`',
  }
  text = (
      f'Observations are four frames of {size}x{size} pixels, each the maximum of a '
      "timestep's last two screens, grey and shrunk. An action is repeated for four "
      'screens, games begin with up to 30 no-ops, and actions were followed with '
      f'probability {1 - environment["repeat_action_probability"]:g}. With sticky '
      'actions, other versions of the game, or another preprocessing it was not '
      'tried. It is of one run with one seed, to be tried out and to test with.')
  weights = (
      'The weights are those of the encoder, convolutions of '
      f'{" and ".join(map(str, agent["conv_channels"]))} channels to a latent of '
      f'{agent["latent_size"]}, of the policy head and of the value head; decoder '
      'and optimiser are left out. Apache-2.0, as the package.')
  return '\n'.join([
      f'# A policy for {game}', '', '| | |', '| --- | --- |',
      *(f'| {name} | {fact} |' for name, fact in facts.items()), '',
      textwrap.fill(text, 88), '', textwrap.fill(weights, 88), ''])


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
  had_decoder = config['agent']['autoencoder']
  config['agent']['autoencoder'] = False  # Its decoder is left out.
  common.write_json(directory / settings_lib.CONFIG_FILE, config)
  card = _card(flags.name, config, had_decoder, run.rows[-1], returns, flags.seed)
  (directory / 'README.md').write_text(card)
  size = sum(path.stat().st_size for path in directory.rglob('*') if path.is_file())
  print(f'{card}\n{directory}: {size:,} bytes')
  if size > _MOST_BYTES:
    parser.error(f'{directory} has more than {_MOST_BYTES:,} bytes.')


if __name__ == '__main__':
  common.run(main)
