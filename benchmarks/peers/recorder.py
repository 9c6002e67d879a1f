"""Records what every peer reports, in the same format; needs nothing but Python."""

import collections
import csv
import time
from typing import Iterable

_ROW_SECONDS = 5.


class Recorder:
  """Writes a row every few seconds, in the columns of our `progress.csv`.

  The clock starts when it is made: just before the first timestep.
  """

  def __init__(self, path: str):
    """Starts the file at `path`."""
    self._file = open(path, 'w', newline='')
    self._writer = csv.writer(self._file, lineterminator='\n')
    self._writer.writerow(['timesteps', 'walltime_seconds', 'episodes',
                           'episode_return_mean_100'])
    self._returns: collections.deque[float] = collections.deque(maxlen=100)
    self._episodes = 0
    self._started = self._next_row = time.monotonic()

  def record(self, timesteps: int, finished_returns: Iterable[float] = ()):
    """Takes the timesteps so far and the returns of newly finished episodes."""
    for value in finished_returns:
      self._returns.append(float(value))
      self._episodes += 1
    mean = (sum(self._returns) / len(self._returns) if self._returns
            else float('nan'))
    self.record_mean(timesteps, self._episodes, mean)

  def record_mean(self, timesteps: int, episodes: int, mean: float):
    """Takes the mean return of the last 100 episodes as a peer computes it."""
    now = time.monotonic()
    if now < self._next_row:
      return
    self._writer.writerow([timesteps, round(now - self._started, 2), episodes,
                           round(mean, 4)])
    self._file.flush()
    self._next_row = now + _ROW_SECONDS
