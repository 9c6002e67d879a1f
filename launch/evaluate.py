"""Evaluates a run's newest checkpoint: `python -m launch.evaluate --run_dir D`."""

# ruff: noqa: E402
import signal

if __name__ == '__main__':
  # Ctrl-C ends it silently; there is nothing to save.
  signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys
from typing import List, Optional

from acme import specs
import numpy as np

from agents import environments
from agents.impala_ppo import builder as builder_lib
from launch import settings as settings_lib
from programs.nodes import evaluator
from programs.runtime import checkpoints

_MAX_ENVS = 16


def main(argv: Optional[List[str]] = None) -> int:
  """Plays greedy episodes and prints a line; returns the exit code."""
  parser = settings_lib.Parser(prog='python -m launch.evaluate',
                               description=__doc__, allow_abbrev=False)
  parser.add_argument('--run_dir', required=True,
                      help='the directory of a training run')
  parser.add_argument('--episodes', type=int, default=30,
                      help='how many episodes to play. Default: 30.')
  parser.add_argument('--seed', type=int, default=1,
                      help='seeds the environments. Default: 1.')
  flags = parser.parse_args(argv)
  try:
    if flags.episodes < 1:
      raise ValueError(f'episodes must be positive, not {flags.episodes}.')
    if flags.seed < 0:
      raise ValueError(f'seed must not be negative, not {flags.seed}.')
    settings = settings_lib.load(flags.run_dir)
    path = checkpoints.latest(
        flags.run_dir, lambda line: print(f'evaluate: {line}', file=sys.stderr))
    if path is None:
      raise ValueError(f'{flags.run_dir} holds no whole checkpoint.')
    environment = settings.environment.make(
        min(flags.episodes, _MAX_ENVS), flags.seed)
    environment_spec = specs.make_environment_spec(environment)
    builder = builder_lib.ImpalaPPOBuilder(settings.agent)
    networks = builder.make_networks(environment_spec)
    networks.create_variables()
    checkpoints.check_matches(path, networks.actor_critic.variables,
                              'actor_critic')
  except (ValueError, OSError) as e:
    settings_lib.fail(str(e))

  checkpoints.restore(path, checkpoints.checkpoint_of(
      {'actor_critic': networks.actor_critic}))
  policy = builder.make_policy(networks, environment_spec, evaluation=True)
  actor = builder.make_actor(flags.seed, policy)
  try:
    returns = evaluator.play_episodes(environment, actor, flags.episodes)
  except environments.BadNumberError as e:
    print(f'evaluate: error: {e}', file=sys.stderr)
    return 1
  environment.close()
  print(f'{settings.environment.game}, {path}, {len(returns)} episodes: '
        f'mean {np.mean(returns):.2f}, standard deviation '
        f'{np.std(returns):.2f}, min {np.min(returns):g}, max '
        f'{np.max(returns):g}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
