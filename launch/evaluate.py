"""Evaluates the checkpoints of runs: `python -m launch.evaluate --run_dir D`."""

# ruff: noqa: E402
import signal
import sys

if __name__ == '__main__':
  # Ctrl-C ends it silently; there is nothing to save.
  signal.signal(signal.SIGINT, signal.SIG_DFL)

import contextlib
import dataclasses
import json
import os
from typing import Annotated, Any, Optional, Sequence

from pydantic import Field

from agents import validation
from launch import errors
from launch import flags
from launch import settings as settings_lib
from programs import config as run_config

_EPISODES = 30


@dataclasses.dataclass
class EvaluateCommand:
  """What to evaluate, and how.

  Attributes:
    run_dir: the directories of one or more training runs.
    pretrained: a policy that comes with the package, in place of runs: pong.
    episodes: how many episodes to play of each run; by default 30, or 1 with
      --video.
    seed: seeds the environments, and the actions of --sampled.
    sampled: whether to draw actions from the policy, as in training, rather than
      take the most likely ones.
    sticky: the probability that Atari repeats the previous action; by default as
      in the run.
    checkpoint: a checkpoint of the runs, such as 12 or ckpt-12; by default the
      newest whole one.
    max_episode_steps: timesteps after which an episode is cut; by default as in
      the run.
    json: whether to print all returns and figures as JSON, for scripts.
    video: an MP4 file to record the episodes of a run to, at 60 frames a second:
      the game in colour, what the agent sees of it, its reconstruction, value
      and action probabilities.
  """
  run_dir: Annotated[tuple[run_config.Directory, ...], Field(min_length=1)]
  pretrained: Optional[Annotated[str, Field(min_length=1, max_length=100)]] = None
  episodes: Optional[Annotated[int, Field(ge=1, le=1_000_000)]] = None
  seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 1
  sampled: bool = False
  sticky: Optional[Annotated[float, Field(ge=0, le=1)]] = None
  checkpoint: Optional[Annotated[str, Field(min_length=1, max_length=100)]] = None
  max_episode_steps: Optional[run_config.Steps] = None
  json: bool = False
  video: Optional[run_config.Directory] = None

  def __post_init__(self):
    validation.check(self)
    self.run_dir = tuple(map(os.path.expanduser, self.run_dir))
    if self.episodes is None:
      self.episodes = _EPISODES if self.video is None else 1
    if self.video is not None:
      self.video = os.path.expanduser(self.video)
      if not self.video.lower().endswith('.mp4'):
        raise ValueError('video must be the name of an .mp4 file, not '
                         f'{validation.shown(self.video)}.')
      if len(self.run_dir) > 1:
        raise ValueError('--video is of one run; give one --run_dir.')


FLAGS = flags.Flags(
    'python -m launch.evaluate', 'Evaluates the checkpoints of runs.',
    {'command': EvaluateCommand}, derived={'run_dir': 'none, with --pretrained'})


def parse(argv: Sequence[str]) -> EvaluateCommand:
  """Reads the flags of the evaluation command.

  Args:
    argv: the flags; `--help` prints the help and exits.

  Returns:
    The command.

  Raises:
    ValueError: for a bad flag; the message is one line.
  """
  given = FLAGS.parse(argv)['command']
  if given.get('pretrained') is not None:
    if 'run_dir' in given:
      raise ValueError('--pretrained is in place of --run_dir; give one of them.')
    given['run_dir'] = [settings_lib.pretrained(given['pretrained'])]
  if not given.get('run_dir'):
    raise ValueError('--run_dir is missing; give the directory of a run.')
  return EvaluateCommand(**given)


if __name__ == '__main__':
  # Neither --help nor a bad flag waits for the imports below.
  with errors.in_one_line():
    parse(sys.argv[1:])

import numpy as np
from rich import console
from rich import table as rich_table

from agents import environments
from agents import games
from agents import screens
from agents.impala_ppo import builder as builder_lib
from launch import cells
from launch import policies
from launch.views import thoughts
from launch.views import video
from programs.nodes import evaluator
from programs.runtime import checkpoints

_MAX_ENVS = 16
_RESAMPLES = 10_000


def _say(line: str) -> None:
  print(f'evaluate: {line}', file=sys.stderr, flush=True)


def bootstrap_interval(returns: Sequence[float]) -> Optional[tuple[float, float]]:
  """Returns a 95% interval of the mean, or None for a single return.

  It is a percentile bootstrap of 10,000 resamples, with a fixed seed.
  """
  if len(returns) < 2:
    return None
  rng = np.random.default_rng(0)
  values, counts = np.unique(returns, return_counts=True)
  # Draws how often each value occurs, for one resample at a time, as there may be
  # a million episodes.
  means = [rng.multinomial(len(returns), counts / len(returns)) @ values /
           len(returns) for _ in range(_RESAMPLES)]
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)


class _Run:
  """A run's checkpoint, ready to be played."""

  def __init__(self, run_dir: str, command: EvaluateCommand):
    """Restores it, or raises ValueError with a one-line message."""
    self._run_dir = run_dir
    self._command = command
    self._settings = settings_lib.load(run_dir)
    if command.sticky is not None:
      environment = self._settings.environment
      if games.atari_rom(environment.game) is None:
        raise ValueError(f'sticky is for Atari; {environment.game} has no sticky '
                         'actions.')
      self._settings.environment = dataclasses.replace(
          environment, repeat_action_probability=command.sticky)
    path = self._path = checkpoints.existing(run_dir, _say) if (
        command.checkpoint is None) else checkpoints.named(
            run_dir, command.checkpoint)
    self._spec = self._settings.environment.try_out(command.seed)
    self._builder = builder_lib.ImpalaPPOBuilder(self._settings.agent)
    self._networks = policies.restored(self._builder, self._spec, path,
                                       with_decoder=command.video is not None)
    # Read now: a run that goes on training replaces its checkpoints.
    self._learner_steps = checkpoints.learner_steps(path)
    self._screens = (None if command.video is None else screens.make(
        self._settings.environment, command.seed))

  def play(self) -> dict[str, Any]:
    """Plays episodes and returns the results that `--json` prints."""
    command = self._command
    assert command.episodes is not None
    actor = self._builder.make_actor(command.seed, self._builder.make_policy(
        self._networks, self._spec, evaluation=not command.sampled))
    environment = self._environment()
    try:
      returns = evaluator.play_episodes(
          environment, actor, command.episodes, command.max_episode_steps or
          self._settings.run.max_episode_steps)
    finally:
      environment.close()
    return {
        'run_dir': self._run_dir,
        'game': self._settings.environment.game,
        'checkpoint': os.path.basename(self._path),
        'learner_steps': self._learner_steps,
        'actions': 'sampled' if command.sampled else 'greedy',
        'sticky': self._settings.environment.repeat_action_probability,
        'seed': command.seed,
        'episodes': len(returns),
        'mean': float(np.mean(returns)),
        'interval_95': bootstrap_interval(returns),
        'standard_deviation': float(np.std(returns)),
        'min': min(returns),
        'max': max(returns),
        'returns': returns,
    }

  def _environment(self) -> environments.Playable:
    command = self._command
    assert command.episodes is not None
    if self._screens is None or command.video is None:
      return self._settings.environment.make(
          min(command.episodes, _MAX_ENVS), command.seed)
    environment, shown = self._screens
    if shown.why_not:
      _say(f'{shown.why_not}; its observations are drawn instead.')
    return video.Recorder(
        command.video, environment, shown, thoughts.Thinker(self._networks),
        self._settings.agent.frame_stack,
        f'{self._settings.environment.game}, after {self._learner_steps:,} learner '
        'steps', _say)


def _line(result: dict[str, Any]) -> str:
  interval = result['interval_95']
  return (f'{result["game"]}, {result["run_dir"]}, {result["checkpoint"]}, '
          f'{result["actions"]}, {result["episodes"]} '
          f'episode{"s" if result["episodes"] > 1 else ""}: mean '
          f'{result["mean"]:.2f}' + (
              f' (95% interval {interval[0]:.2f} to {interval[1]:.2f})'
              if interval else '') +
          f', standard deviation {result["standard_deviation"]:.2f}, min '
          f'{result["min"]:g}, max {result["max"]:g}')


def _table(results: Sequence[dict[str, Any]]) -> rich_table.Table:
  table = rich_table.Table(box=None, pad_edge=False)
  for column in ('run', 'game', 'checkpoint'):
    table.add_column(column, overflow='fold')
  for column in ('episodes', 'mean', '95% interval', 'std', 'min', 'max'):
    table.add_column(column, justify='right', no_wrap=True)
  for result in results:
    interval = result['interval_95']
    table.add_row(
        result['run_dir'], result['game'], result['checkpoint'],
        str(result['episodes']), f'{result["mean"]:.2f}',
        f'{interval[0]:.2f} to {interval[1]:.2f}' if interval else '',
        f'{result["standard_deviation"]:.2f}', f'{result["min"]:g}',
        f'{result["max"]:g}')
  return table


def main(argv: Optional[Sequence[str]] = None) -> int:
  """Plays episodes of each run and prints the results; returns the exit code."""
  with errors.in_one_line():
    command = parse(sys.argv[1:] if argv is None else argv)
    with contextlib.redirect_stdout(sys.stderr):  # Games print to stdout, too.
      runs = [_Run(run_dir, command) for run_dir in command.run_dir]
    if command.video is not None:
      folder = os.path.dirname(os.path.abspath(command.video))
      os.makedirs(folder, exist_ok=True)
      with open(command.video, 'ab'):
        pass  # Fails here rather than after a first timestep.
      # On Ctrl-C, what has been recorded is kept.
      signal.signal(signal.SIGINT, signal.default_int_handler)
      cells.end_on_signals()
      _say(f'recording into {command.video}; an episode takes as long as it is '
           'shown, or longer.')
  try:
    with contextlib.redirect_stdout(sys.stderr):
      results = [run.play() for run in runs]
  except environments.BadNumberError as e:
    _say(f'error: {e}')
    return 1
  except OSError as e:
    why, *_ = str(e).splitlines() or [type(e).__name__]
    what = 'evaluating failed' if command.video is None else (
        'the video cannot be written')
    _say(f'error: {what} ({why}).')
    return 1
  except KeyboardInterrupt:
    _say('stopped; the video ends there.')
    return 130
  with errors.in_one_line():
    if command.json:
      print(json.dumps(results))
    elif len(results) == 1:
      print(_line(results[0]))
    else:
      # Outside a terminal, rows are not wrapped. A path is no markup.
      console.Console(width=None if sys.stdout.isatty() else 1000, markup=False,
                      emoji=False).print(_table(results))
  return 0


if __name__ == '__main__':
  sys.exit(main())
