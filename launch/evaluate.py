"""Evaluates a run's newest checkpoint: `python -m launch.evaluate --run_dir D`."""

# ruff: noqa: E402
import signal
import sys

if __name__ == '__main__':
  # Ctrl-C ends it silently; there is nothing to save.
  signal.signal(signal.SIGINT, signal.SIG_DFL)

from launch import settings as settings_lib

if __name__ == '__main__':
  # Neither --help nor a bad flag waits for the imports below.
  with settings_lib.errors_in_one_line():
    settings_lib.parse_evaluate(sys.argv[1:])

from typing import Optional, Sequence

import numpy as np

from agents import environments
from agents.impala_ppo import builder as builder_lib
from programs.nodes import evaluator
from programs.runtime import checkpoints

_MAX_ENVS = 16


def main(argv: Optional[Sequence[str]] = None) -> int:
  """Plays greedy episodes and prints a line; returns the exit code."""
  with settings_lib.errors_in_one_line():
    command = settings_lib.parse_evaluate(sys.argv[1:] if argv is None else argv)
    settings = settings_lib.load(command.run_dir)
    path = checkpoints.latest(
        command.run_dir, lambda line: print(f'evaluate: {line}', file=sys.stderr))
    if path is None:
      raise ValueError(f'{command.run_dir} holds no whole checkpoint.')
    environment_spec = settings.environment.try_out(command.seed)
    environment = settings.environment.make(
        min(command.episodes, _MAX_ENVS), command.seed)
    builder = builder_lib.ImpalaPPOBuilder(settings.agent)
    networks = builder.make_networks(environment_spec)
    networks.create_variables()
    checkpoints.check_matches(path, networks.actor_critic.variables,
                              'actor_critic')

  checkpoints.restore(path, checkpoints.checkpoint_of(
      {'actor_critic': networks.actor_critic}))
  policy = builder.make_policy(networks, environment_spec, evaluation=True)
  actor = builder.make_actor(command.seed, policy)
  try:
    returns = evaluator.play_episodes(
        environment, actor, command.episodes,
        command.max_episode_steps or settings.run.max_episode_steps)
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
