"""The counter node: counts what a run has done, and writes its records."""

import collections
import functools
import json
import math
import threading
import time
from typing import Any, Callable, Iterable, Mapping, Optional, Sequence

from acme import core
from acme.utils import counting
from acme.utils import loggers
import numpy as np
import reverb

from programs import config as config_lib
from programs.nodes import limiter as limiter_lib
from programs.runtime import collectors
from programs.runtime import processes
from programs.runtime import records
from programs.runtime import servers

# How long to wait for the learner's last checkpoint once the program is told to
# stop; some seconds later, the engines kill the remaining processes.
_FAREWELL_SECONDS = 8.
_POLL_SECONDS = 0.1
# While nodes are starting, a line at this interval says what they wait for.
_START_SECONDS = 60.


def _tell_launcher(waits_for: Mapping[str, str]) -> None:
  print(records.STARTING + json.dumps(waits_for), flush=True)


def _tell_nobody(waits_for: Mapping[str, str]) -> None:
  del waits_for


class ReturnsWindow:
  """The raw returns of the last finished training episodes."""

  def __init__(self, size: int = records.EPISODES_IN_MEAN):
    self._returns: collections.deque[float] = collections.deque(maxlen=size)

  def extend(self, returns: Iterable[float]) -> None:
    self._returns.extend(returns)

  def tolist(self) -> list[float]:
    return list(self._returns)

  @property
  def is_full(self) -> bool:
    return len(self._returns) == self._returns.maxlen

  def mean(self) -> float:
    """Returns the mean, or NaN if there are no returns."""
    return float(np.mean(self.tolist())) if self._returns else float('nan')

  def full_mean(self) -> Optional[float]:
    """Returns the mean of a full window, or None while it is not full."""
    return self.mean() if self.is_full else None


def _window(state: Mapping[str, Any]) -> ReturnsWindow:
  """Returns the window of a counter's state."""
  window = ReturnsWindow()
  window.extend(state['returns'])
  return window


class RunCounter(core.Worker, core.Saveable):
  """Takes the reports of all nodes, and writes rows of progress.

  Counts are `actor_steps` (timesteps), `actor_episodes`, `bad_numbers` (numbers
  that were not finite), `learner_steps` and `walltime` (seconds, over all
  resumptions).
  """

  def __init__(
      self,
      logger: loggers.Logger,
      limiter: limiter_lib.Limiter,
      period_seconds: float = 5.,
      should_stop: Optional[threading.Event] = None,
      keep: Callable[[Mapping[str, Any]], None] = lambda state: None,
      count_restarts: Callable[[], int] = lambda: 0,
      nodes: Sequence[str] = (),
      announce: Callable[[Mapping[str, str]], None] = _tell_nobody,
  ):
    """Makes a counter at zero.

    Args:
      logger: gets the rows: `records.PROGRESS_COLUMNS`, and the learner's
        other metrics.
      limiter: ends the program.
      period_seconds: time between rows.
      should_stop: set when the program stops.
      keep: called with the state at each row, to `restore` it after a restart.
      count_restarts: returns how many nodes of the run were restarted.
      nodes: those that have to start before there are timesteps.
      announce: called with what starting nodes wait for, whenever that changes.
    """
    self._announce = announce
    self._logger = logger
    self._limiter = limiter
    self._keep = keep
    self._count_restarts = count_restarts
    self._period_seconds = period_seconds
    self._should_stop = should_stop or threading.Event()
    self._lock = threading.Lock()
    self._counter = counting.Counter()
    self._returns = ReturnsWindow()
    self._learner_metrics: dict[str, float] = {}
    # Values that have come since the last row, and that only some rows have.
    self._extras: dict[str, Any] = {}
    self._learner_done = threading.Event()
    self._waits_for = dict.fromkeys(nodes, 'a first sign of life')
    self._start = time.monotonic()
    self._walltime_before = 0.
    self._first_timesteps = 0
    self._last_row = (self._start, 0)
    self._saved: Optional[Mapping[str, Any]] = None

  def record_start(self, node: str, waits_for: str) -> None:
    """Records what a starting node waits for."""
    self._waits_for[node] = waits_for

  def record_acting(self, timesteps: int, returns: Sequence[float],
                    bad_numbers: int = 0) -> None:
    """Adds an actor's new timesteps and returns.

    Args:
      timesteps: how many are new.
      returns: the raw returns of episodes that have ended. Those that are not
        finite count as bad numbers, and are left out of means.
      bad_numbers: episodes that were cut at a number that was not finite.
    """
    finite = [value for value in returns if math.isfinite(value)]
    with self._lock:
      self._returns.extend(finite)
      self._counter.increment(
          actor_steps=timesteps, actor_episodes=len(returns),
          bad_numbers=bad_numbers + len(returns) - len(finite))

  def record_learning(self, num_steps: int, metrics: Mapping[str, float]) -> None:
    """Records the learner's steps so far, and its latest metrics.

    A restarted learner may have fewer steps than before.
    """
    self._learner_done.clear()  # It may have ended before, and be back.
    with self._lock:
      self._learner_metrics = dict(metrics)
      before = self._counter.get_counts().get('learner_steps', 0)
      self._counter.increment(learner_steps=num_steps - before)

  def record_picture(self, png: bytes) -> None:
    """Takes a picture of reconstructions, for the next row."""
    self._extras[records.PICTURE] = png

  def record_evaluation(self, return_mean: float) -> None:
    """Takes the mean return of an evaluation, for the next row."""
    self._extras[records.EVALUATION] = return_mean

  def learner_done(self, num_steps: int, metrics: Mapping[str, float]) -> None:
    """Takes the learner's last report, after it saved its last checkpoint."""
    self.record_learning(num_steps, metrics)
    self._learner_done.set()

  def get_counts(self) -> dict[str, counting.Number]:
    return {**self._counter.get_counts(), 'walltime': self._walltime()}

  def save(self) -> Mapping[str, Any]:
    self._saved = self._state()
    return self._saved

  def restore(self, state: Mapping[str, Any]) -> None:
    """Continues from a state, unless this counter has timesteps already."""
    with self._lock:
      if self._timesteps():
        return  # It was not restarted.
      self._counter.restore({'counts': dict(state['counts']), 'cache': {}})
      self._returns.extend(state['returns'])
      self._walltime_before = state['walltime']
      self._start = time.monotonic()
      self._first_timesteps = self._timesteps()
    # Even before the first row: the learner restores this only once.
    self._keep(self._state())

  def run(self) -> None:
    """Writes rows until the program stops, and lets the limiter stop it."""
    self._wait_for_start()
    self._write_rows()
    if not self._is_starting():
      self._write_last_row()
    self._logger.close()

  def _wait_for_start(self) -> None:
    """Waits for the first timesteps, and says what nodes wait for."""
    began = time.monotonic()
    next_word = began + _START_SECONDS
    announced: Mapping[str, str] = {}
    while self._is_starting() and not self._should_stop.wait(_POLL_SECONDS):
      now = time.monotonic()
      self._last_row = (now, self._first_timesteps)
      if announced != self._waits_for:
        announced = dict(self._waits_for)
        self._announce(announced)
      if now >= next_word:
        print(f'counter: no timestep after {now - began:.0f} s; waiting for '
              f'{records.what_is_missing(self._waits_for)}.', flush=True)
        next_word += _START_SECONDS

  def _write_rows(self) -> None:
    """Writes a row at each period, and when the limiter ends the run."""
    next_row = self._last_row[0] + self._period_seconds
    while not self._should_stop.wait(_POLL_SECONDS):
      state = self._state()
      # What ends a run has its row: the mean may fall again until the run has ended.
      ends = self._limiter.check(state['counts'], _window(state).full_mean())
      if ends or time.monotonic() >= next_row:
        self._logger.write(self._row(state))
        self._keep(state)
        # After a standstill there is one row, not one for each that was missed.
        next_row = max(next_row, time.monotonic() - self._period_seconds)
        next_row += self._period_seconds

  def _write_last_row(self) -> None:
    """Writes what the last checkpoint holds, once the learner has saved it."""
    is_done = self._learner_done.wait(_FAREWELL_SECONDS)
    state = self._state()
    if is_done and self._saved:
      # A resumed run continues from the checkpoint, so the last row matches it.
      # The learner reports its number of steps only after it has saved.
      counts = {**self._saved['counts'],
                'learner_steps': state['counts'].get('learner_steps', 0)}
      state = {**self._saved, 'counts': counts}
    self._logger.write(self._row(state))
    self._keep(state)  # If only this node was told to stop, it will be back.

  def _state(self) -> Mapping[str, Any]:
    with self._lock:
      return {'counts': self._counter.get_counts(),
              'returns': self._returns.tolist(), 'walltime': self._walltime()}

  def _is_starting(self) -> bool:
    with self._lock:
      return self._timesteps() == self._first_timesteps

  def _timesteps(self) -> int:
    return int(self._counter.get_counts().get('actor_steps', 0))

  def _walltime(self) -> float:
    return self._walltime_before + time.monotonic() - self._start

  def _row(self, state: Mapping[str, Any]) -> dict[str, Any]:
    counts = state['counts']
    timesteps = counts.get('actor_steps', 0)
    now = time.monotonic()
    last_time, last_timesteps = self._last_row
    self._last_row = (now, timesteps)
    metrics = dict(self._learner_metrics)
    learner_rate = metrics.pop('timesteps_per_second', 0.)
    wait_fraction = metrics.pop('wait_fraction', 1.)
    extras, self._extras = self._extras, {}
    return {
        # First, as a custom loss may give its metrics any name.
        **metrics,
        **extras,
        'timesteps': timesteps,
        'walltime_seconds': round(state['walltime'], 2),
        'episodes': counts.get('actor_episodes', 0),
        'episode_return_mean_100': round(_window(state).mean(), 4),
        'timesteps_per_second': round(
            (timesteps - last_timesteps) / max(now - last_time, 1e-6), 1),
        'learner_steps': counts.get('learner_steps', 0),
        'learner_timesteps_per_second': round(learner_rate, 1),
        'learner_wait_fraction': round(wait_fraction, 4),
        'restarts': self._count_restarts(),
        'bad_numbers': counts.get('bad_numbers', 0),
        records.RETURNS: state['returns'],
    }


def make(config: config_lib.RunConfig, shards: Sequence[reverb.Client],
         launcher: processes.Process, verbose: bool,
         stop_program: Callable[[], None],
         should_stop: threading.Event) -> RunCounter:
  """Makes the counter of a program.

  Args:
    config: of the run.
    shards: of the replay; their addresses go to the run's directory.
    launcher: of the program.
    verbose: whether rows are printed.
    stop_program: ends the program.
    should_stop: set when the program stops.
  """
  if processes.has_own_process():
    processes.use_no_gpus()
  servers.write(config.run_dir, [shard.server_address for shard in shards],
                launcher)
  limiter = limiter_lib.Limiter(config.max_timesteps, config.target_return,
                                stop_program)
  kept = records.KeptState(config.run_dir)
  counter = RunCounter(
      collectors.progress_logger(config.run_dir, verbose, config.track), limiter,
      config.progress_seconds, should_stop, kept.write,
      functools.partial(records.count_restarts, config.run_dir),
      ['learner', *(f'actor/{i}' for i in range(config.num_actors))],
      _tell_launcher if verbose and processes.is_supervised() else _tell_nobody)
  if processes.restarts():
    state = kept.read()
    if state is not None:
      counter.restore(state)
    processes.say_if_back(
        'counter', f'counts since {"its last row" if state else "the start"}')
  return counter
