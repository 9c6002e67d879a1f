"""The runs of a sweep: trained one after the other, and resumed."""

import dataclasses
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Callable, Optional, Sequence

from launch import settings as settings_lib
from programs.runtime import records

_POLL_SECONDS = 1.
# Says that a run has come to its end, so that it need not be asked.
_DONE_FILE = 'done'

# Is given a run's rows so far, and says whether to stop it.
Watch = Callable[[Sequence[records.Row]], bool]


@dataclasses.dataclass(frozen=True)
class Cell:
  """A run of a sweep.

  Attributes:
    run_dir: its directory.
    flags: of the training command, without `--run_dir` and `--resume`.
  """
  run_dir: str
  flags: Sequence[str]

  def settings(self) -> settings_lib.Settings:
    """Returns what it is to be trained with; raises ValueError in one line."""
    return settings_lib.parse_train([*self.flags, '--run_dir', self.run_dir])[1]

  def is_done(self) -> bool:
    return os.path.exists(os.path.join(self.run_dir, _DONE_FILE))

  def rows(self) -> list[records.Row]:
    """Returns its progress so far."""
    return records.read(os.path.join(self.run_dir, records.PROGRESS_FILE))

  def check(self) -> None:
    """Checks that what is there of it is of the same settings.

    Raises:
      ValueError: where it is not, in one line.
    """
    wanted = self.settings()
    if not os.path.exists(os.path.join(self.run_dir, settings_lib.CONFIG_FILE)):
      return
    found = settings_lib.load(self.run_dir)
    found.run.run_dir = wanted.run.run_dir  # The whole may have been moved.
    for section in settings_lib.SECTIONS:
      ours, theirs = (vars(getattr(settings, section))
                      for settings in (wanted, found))
      for name, value in ours.items():
        if theirs[name] != value:
          raise ValueError(
              f'{self.run_dir} holds a run with {name} {theirs[name]}, not {value}; '
              'give the flags that the sweep was begun with, or another --out.')

  def train(self, watch: Optional[Watch] = None) -> int:
    """Trains it to its end, from where it was stopped before.

    Args:
      watch: is asked every second; it may stop the run, which then is done.

    Returns:
      The exit code of the training command.

    Raises:
      KeyboardInterrupt: if this process was told to stop, after the run has.
    """
    how = ['--run_dir', self.run_dir]
    folder = pathlib.Path(self.run_dir)
    if list(folder.glob('checkpoints/*.index')):
      how.append('--resume')
    elif (folder / settings_lib.CONFIG_FILE).exists():
      shutil.rmtree(folder)  # It was stopped before it had learned anything.
    command = [sys.executable, '-m', 'launch.train', *self.flags, *how, '--plain']
    # In a process group of its own: Ctrl-C in a terminal is for this process,
    # which tells the run once. Asked twice, that would not save what it has.
    training = subprocess.Popen(command, preexec_fn=os.setpgrp,
                                env=_environment())
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
    """Tells a run that has done enough from one that was told to stop."""
    run, rows = self.settings().run, self.rows()
    if not rows:
      return False
    target = run.target_return
    return (rows[-1]['timesteps'] >= run.max_timesteps or
            target is not None and
            rows[-1].get('episode_return_mean_100', -math.inf) >= target)


def _wait(training: subprocess.Popen, rows: Callable[[], list[records.Row]],
          watch: Optional[Watch]) -> tuple[int, bool]:
  """Returns the exit code, and whether the watch has stopped it."""
  if watch is None:
    return training.wait(), False
  while training.poll() is None:
    if watch(rows()):
      training.terminate()
      return training.wait(), True
    time.sleep(_POLL_SECONDS)
  return training.returncode, False


def _environment() -> dict[str, str]:
  # The run imports this package from wherever it was imported here.
  root = str(pathlib.Path(__file__).resolve().parents[1])
  path = os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH')]))
  return {**os.environ, 'PYTHONPATH': path}


def end_on_signals() -> None:
  """Makes SIGTERM and SIGHUP do what Ctrl-C does: the run that is on ends too."""
  for number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, signal.default_int_handler)
