"""The runs of a sweep, each trained and resumed by the training command."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import Callable, Iterator, Mapping, Optional, Sequence

from launch import settings as settings_lib
from launch.engines import child
from launch.engines import pausing
from programs.nodes import limiter
from programs.runtime import locks
from programs.runtime import records

_POLL_SECONDS = 1.
# Marks a run as finished, so that it need not be checked again.
_DONE_FILE = 'done'
_LOG_FILE = 'train.log'

# Takes a run's rows so far; returns whether to stop it.
Watch = Callable[[Sequence[records.Row]], bool]


@dataclasses.dataclass(frozen=True)
class Cell:
  """A run of a sweep.

  Attributes:
    run_dir: the run's directory.
    flags: the training command's flags, without `--run_dir` and `--resume`.
  """
  run_dir: str
  flags: Sequence[str]

  def settings(self) -> settings_lib.Settings:
    """Returns the settings; raises ValueError with a one-line message."""
    return settings_lib.parse_train([*self.flags, '--run_dir', self.run_dir])[1]

  def is_done(self) -> bool:
    return os.path.exists(os.path.join(self.run_dir, _DONE_FILE))

  @property
  def log(self) -> str:
    """The file that `train(to_log=True)` writes its output to."""
    return os.path.join(self.run_dir, settings_lib.LOGS, _LOG_FILE)

  def rows(self) -> list[records.Row]:
    """Returns the rows of its progress so far."""
    return records.read(os.path.join(self.run_dir, records.PROGRESS_FILE))

  def check(self) -> None:
    """Checks that a run already in the directory has the same settings.

    Raises:
      ValueError: if it does not; the message is one line.
    """
    wanted = self.settings()
    if not os.path.exists(os.path.join(self.run_dir, settings_lib.CONFIG_FILE)):
      return
    found = settings_lib.load(self.run_dir)
    found.run.run_dir = wanted.run.run_dir  # The sweep may have been moved.
    for section in settings_lib.SECTIONS:
      ours, theirs = (vars(getattr(settings, section))
                      for settings in (wanted, found))
      for name, value in ours.items():
        if theirs[name] != value:
          raise ValueError(
              f'{self.run_dir} holds a run with {name} {theirs[name]}, not {value}; '
              'give the flags that the sweep was begun with, or another --out.')

  def train(self, watch: Optional[Watch] = None, to_log: bool = False,
            variables: Optional[Mapping[str, str]] = None) -> int:
    """Trains the run to its end, resuming it if it was stopped before.

    Args:
      watch: called every second; if it returns True, the run stops and is done.
      to_log: whether its output goes to `log`.
      variables: environment variables, in addition to those of this process.

    Returns:
      The exit code of the training command.

    Raises:
      KeyboardInterrupt: if this process is told to stop, once the run has ended.
      ValueError: if another process is training it; the message is one line.
    """
    how = ['--run_dir', self.run_dir]
    folder = pathlib.Path(self.run_dir)
    if settings_lib.can_resume(self.run_dir):
      how.append('--resume')
    elif (folder / settings_lib.CONFIG_FILE).exists():
      with locks.held(self.run_dir):  # Raises if somebody is training it.
        _empty(folder)  # It was stopped before it had learned anything.
    command = [sys.executable, '-m', 'launch.train', *self.flags, *how, '--plain']
    with contextlib.ExitStack() as stack:
      output = None
      if to_log:
        os.makedirs(os.path.dirname(self.log), exist_ok=True)
        output = stack.enter_context(open(self.log, 'a'))
      training = subprocess.Popen(
          command, preexec_fn=_be_told_of_our_end,
          env=child.environment(variables or {}), stdout=output,
          stderr=output and subprocess.STDOUT)
    try:
      code, was_stopped = _wait(training, self.rows, watch)
    except KeyboardInterrupt:
      training.terminate()
      training.wait()
      raise
    if code == 0 and (was_stopped or self._has_ended()):
      pathlib.Path(self.run_dir, _DONE_FILE).touch()
    return code

  def _has_ended(self) -> bool:
    """Tells a run that reached its budget or target from one told to stop."""
    run = self.settings().run
    return any(
        limiter.is_budget_spent({'actor_steps': row['timesteps']},
                                 run.max_timesteps) or
        row['episodes'] >= records.EPISODES_IN_MEAN and
        limiter.is_target_reached(row['episode_return_mean_100'],
                                   run.target_return)
        for row in self.rows())


def _empty(folder: pathlib.Path) -> None:
  """Empties a run's directory, except for its lock."""
  for path in folder.iterdir():
    if path.name == locks.FILE:
      continue
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _wait(training: subprocess.Popen, rows: Callable[[], list[records.Row]],
          watch: Optional[Watch]) -> tuple[int, bool]:
  """Returns the exit code, and whether the watch stopped the run."""
  pause = pausing.Pause()
  while True:
    pause.take_if_due(lambda: _paused(training))
    try:
      # With a timeout: Ray interrupts a task only between two instructions.
      return training.wait(_POLL_SECONDS), False
    except subprocess.TimeoutExpired:
      if watch is not None and watch(rows()):
        training.terminate()
        return training.wait(), True


@contextlib.contextmanager
def _paused(training: subprocess.Popen) -> Iterator[None]:
  try:
    training.send_signal(signal.SIGTSTP)  # It pauses its nodes too.
    yield
  finally:  # Whoever is told to stop while it stands still has to go on first.
    training.send_signal(signal.SIGCONT)


def _be_told_of_our_end() -> None:
  """Makes a starting run stop, with a checkpoint, if this process is killed."""
  # In a process group of its own: Ctrl-C in a terminal reaches only this process,
  # which tells the run once. Told twice, the run would not save what it has.
  os.setpgrp()
  child.end_with_parent(signal.SIGTERM)


def end_on_signals() -> None:
  """Makes SIGTERM and SIGHUP act like Ctrl-C, so that the current run ends too."""
  for number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, signal.default_int_handler)
