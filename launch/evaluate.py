"""Evaluates a run's newest checkpoint: `python -m launch.evaluate --run_dir D`."""

# ruff: noqa: E402
import signal
import sys

if __name__ == '__main__':
  # Ctrl-C ends it silently; there is nothing to save.
  signal.signal(signal.SIGINT, signal.SIG_DFL)

import dataclasses
import os
from typing import Annotated, Optional, Sequence

from pydantic import Field

from agents import validation
from launch import flags
from launch import settings as settings_lib
from programs import config as run_config


@dataclasses.dataclass
class EvaluateCommand:
  """What to evaluate.

  Attributes:
    run_dir: the directory of a training run.
    episodes: how many episodes to play.
    seed: seeds the environments.
    max_episode_steps: timesteps after which an episode is cut; by default as in
      the run.
  """
  run_dir: run_config.Directory
  episodes: Annotated[int, Field(ge=1, le=1_000_000)] = 30
  seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 1
  max_episode_steps: Optional[run_config.Steps] = None

  def __post_init__(self):
    validation.check(self)


FLAGS = flags.Flags(
    'python -m launch.evaluate', "Evaluates a run's newest checkpoint.",
    {'command': EvaluateCommand})


def parse(argv: Sequence[str]) -> EvaluateCommand:
  """Reads the flags of the evaluation command.

  Args:
    argv: the flags; `--help` among them is an exit.

  Returns:
    The command.

  Raises:
    ValueError: for a bad flag, in one line.
  """
  given = FLAGS.parse(argv)['command']
  if 'run_dir' not in given:
    raise ValueError('--run_dir is missing; give the directory of a run.')
  command = EvaluateCommand(**given)
  command.run_dir = os.path.expanduser(command.run_dir)
  return command


if __name__ == '__main__':
  # Neither --help nor a bad flag waits for the imports below.
  with flags.errors_in_one_line():
    parse(sys.argv[1:])

import numpy as np

from agents import environments
from agents.impala_ppo import builder as builder_lib
from programs.nodes import evaluator
from programs.runtime import checkpoints

_MAX_ENVS = 16


def main(argv: Optional[Sequence[str]] = None) -> int:
  """Plays greedy episodes and prints a line; returns the exit code."""
  with flags.errors_in_one_line():
    command = parse(sys.argv[1:] if argv is None else argv)
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

  checkpoints.Checkpoint({'actor_critic': networks.actor_critic}).restore(path)
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
