"""Counts what a run has done, writes it down, and says when it is enough."""

import collections
import csv
import os
import threading
import time
from typing import Any, Callable, Dict, Mapping, Optional, Sequence

from acme.utils import counting
import numpy as np

PROGRESS_FILE = 'progress.csv'
COLUMNS = (
    'timesteps', 'walltime_seconds', 'episodes', 'episode_return_mean_100',
    'timesteps_per_second', 'learner_steps', 'learner_frames_per_second',
    'policy_lag', 'learner_wait_fraction', 'loss', 'policy_loss', 'value_loss',
    'entropy', 'reconstruction_loss', 'clip_fraction', 'approximate_kl',
    'gradient_norm', 'learning_rate')
_EPISODES_IN_MEAN = 100
# How long to stay for the learner's last checkpoint after the program is told
# to stop; Launchpad kills what is left after ten seconds.
_FAREWELL_SECONDS = 8.


class RunProgress(counting.Counter):
  """Acme's counter for a whole run, with returns and a progress file.

  Counts are `actor_steps` (timesteps), `actor_episodes`, `learner_steps` and
  `walltime` (seconds, over all resumptions).
  """

  def __init__(
      self,
      run_dir: str,
      max_timesteps: int,
      target_return: Optional[float] = None,
      period_seconds: float = 5.,
      stop_program: Callable[[], None] = lambda: None,
      should_stop: Optional[threading.Event] = None,
      verbose: bool = False,
  ):
    """Makes a counter at zero.

    Args:
      run_dir: where `progress.csv` goes; rows are appended.
      max_timesteps: when to stop the program.
      target_return: also stop once the mean return of the last 100 training
        episodes reaches this.
      period_seconds: time between rows.
      stop_program: stops the program.
      should_stop: set when the program stops.
      verbose: whether to print each row, too.
    """
    super().__init__()
    self._max_timesteps = max_timesteps
    self._target_return = target_return
    self._period_seconds = period_seconds
    self._stop_program = stop_program
    self._should_stop = should_stop or threading.Event()
    self._verbose = verbose
    self._path = os.path.join(run_dir, PROGRESS_FILE)
    self._returns = collections.deque(maxlen=_EPISODES_IN_MEAN)
    self._learner_metrics: Dict[str, float] = {}
    self._learner_done = threading.Event()
    self._start = time.monotonic()
    self._walltime_before = 0.
    self._last_row = (self._start, 0)
    self._saved: Mapping[str, Any] = {}

  def record_acting(self, timesteps: int, returns: Sequence[float]):
    """Adds timesteps, and the raw returns of episodes that have ended."""
    with self._lock:
      self._returns.extend(returns)
    self.increment(actor_steps=timesteps, actor_episodes=len(returns))

  def record_learning(self, steps: int, metrics: Mapping[str, float]):
    """Adds learner steps, and replaces the learner's metrics."""
    self._learner_metrics = dict(metrics)
    self.increment(learner_steps=steps)

  def learner_done(self):
    """Tells that the learner has saved its last checkpoint."""
    self._learner_done.set()

  def get_counts(self) -> Dict[str, counting.Number]:
    return {**super().get_counts(), 'walltime': self._walltime()}

  def save(self) -> Mapping[str, Any]:
    self._saved = self._state()
    return self._saved

  def restore(self, state: Mapping[str, Any]):
    with self._lock:
      self._counts = dict(state['counts'])
      self._returns.extend(state['returns'])
      self._walltime_before = state['walltime']
      self._start = time.monotonic()
      self._last_row = (self._start, self._timesteps())

  def run(self):
    """Writes rows until the program stops, and stops it when it is done."""
    next_row = time.monotonic() + self._period_seconds
    while not self._should_stop.wait(0.1):
      if self._timesteps() == 0:
        continue  # Nodes are still starting.
      if time.monotonic() >= next_row:
        self._write_row(self._state())
        next_row += self._period_seconds
      if self._is_finished():
        self._stop_program()
        break
    self._should_stop.wait()
    if self._timesteps():
      # A resumed run goes on from the checkpoint, so the last row is as that.
      saved = self._learner_done.wait(_FAREWELL_SECONDS) and self._saved
      self._write_row(saved or self._state())

  def _state(self) -> Mapping[str, Any]:
    with self._lock:
      return {'counts': dict(self._counts), 'returns': list(self._returns),
              'walltime': self._walltime()}

  def _timesteps(self) -> int:
    return self._counts.get('actor_steps', 0)

  def _walltime(self) -> float:
    return self._walltime_before + time.monotonic() - self._start

  def _is_finished(self) -> bool:
    if self._timesteps() >= self._max_timesteps:
      return True
    return (self._target_return is not None and
            len(self._returns) == _EPISODES_IN_MEAN and
            _mean(self._state()['returns']) >= self._target_return)

  def _write_row(self, state: Mapping[str, Any]):
    counts = state['counts']
    timesteps = counts.get('actor_steps', 0)
    now = time.monotonic()
    last_time, last_timesteps = self._last_row
    self._last_row = (now, timesteps)
    metrics = dict(self._learner_metrics)
    row = {
        'timesteps': timesteps,
        'walltime_seconds': round(state['walltime'], 2),
        'episodes': counts.get('actor_episodes', 0),
        'episode_return_mean_100': round(_mean(state['returns']), 4),
        'timesteps_per_second': round(
            (timesteps - last_timesteps) / max(now - last_time, 1e-6), 1),
        'learner_steps': counts.get('learner_steps', 0),
        'learner_frames_per_second': round(
            metrics.pop('frames_per_second', 0.), 1),
        'learner_wait_fraction': round(metrics.pop('wait_fraction', 1.), 4),
        **{name: f'{value:.6g}' for name, value in metrics.items()},
    }
    is_new = not os.path.exists(self._path)
    with open(self._path, 'a', newline='') as f:
      writer = csv.DictWriter(f, COLUMNS, restval='nan')
      if is_new:
        writer.writeheader()
      writer.writerow(row)
    if self._verbose:
      print(f'{timesteps:>11,} timesteps  {row["walltime_seconds"]:>8.0f} s  '
            f'{row["timesteps_per_second"]:>7,.0f}/s  '
            f'return {row["episode_return_mean_100"]:>9.2f}  '
            f'({row["episodes"]:,} episodes, {row["learner_steps"]:,} learner '
            f'steps, waiting {row["learner_wait_fraction"]:.0%})', flush=True)


def _mean(returns: Sequence[float]) -> float:
  return float(np.mean(returns)) if returns else float('nan')
