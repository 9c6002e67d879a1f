"""Reports of nodes to the counter, sent without waiting for it.

A counter that is being restarted holds nobody up.
"""

from concurrent import futures
import threading
from typing import Any, Callable, Mapping, Optional, Sequence

from acme import core
from acme.utils import loggers

# A last checkpoint must not wait longer for the counter: a node that has lost
# its launcher has only some seconds.
_STATE_SECONDS = 1.


class Background:
  """Makes calls in daemon threads, which do not delay the end of a process."""

  def __init__(self):
    self._call: Optional[futures.Future] = None

  @property
  def is_busy(self) -> bool:
    return self._call is not None and not self._call.done()

  @property
  def has_failed(self) -> bool:
    """Whether the last call is over and raised an exception."""
    return (self._call is not None and self._call.done() and
            self._call.exception() is not None)

  def start(self, function: Callable[..., Any], *args: Any) -> None:
    """Begins a call, which replaces the previous one."""
    call = self._call = futures.Future()

    def run():
      try:
        call.set_result(function(*args))
      except Exception as e:
        call.set_exception(e)

    threading.Thread(target=run, daemon=True).start()

  def wait(self, seconds: float) -> None:
    if self._call is not None:
      futures.wait([self._call], seconds)

  def result(self, seconds: float) -> Any:
    """Returns what the last call returns, or raises what it raises.

    Raises:
      futures.TimeoutError: if that takes longer.
    """
    assert self._call is not None
    return self._call.result(seconds)


class ActingReporter:
  """Reports timesteps and returns; sends again what did not arrive."""

  def __init__(self, counter: Any):
    """Makes a reporter to a `RunCounter`, or to a client of one."""
    self._counter = counter
    self._background = Background()
    self._timesteps = 0
    self._returns: list[float] = []
    self._bad_numbers = 0
    self._sent: tuple[int, Sequence[float], int] = (0, (), 0)

  def add(self, timesteps: int, returns: Sequence[float],
          bad_numbers: int = 0) -> None:
    """Adds new counts, with the arguments of `RunCounter.record_acting`."""
    self._timesteps += timesteps
    self._returns.extend(returns)
    self._bad_numbers += bad_numbers

  def send(self) -> None:
    """Sends what was added, unless the previous call is unanswered."""
    if self._background.is_busy:
      return
    if self._background.has_failed:
      timesteps, returns, bad_numbers = self._sent
      self._timesteps += timesteps
      self._returns = [*returns, *self._returns]
      self._bad_numbers += bad_numbers
    self._sent = self._timesteps, self._returns, self._bad_numbers
    self._background.start(self._counter.record_acting, *self._sent)
    self._timesteps, self._returns, self._bad_numbers = 0, [], 0

  def close(self, seconds: float = 1.) -> None:
    """Sends the rest, if the counter answers in time."""
    self._background.wait(seconds)
    self.send()
    self._background.wait(seconds)


class EvaluationReporter(loggers.Logger):
  """Reports the mean return of evaluations; one that does not arrive is lost."""

  def __init__(self, counter: Any):
    """Makes a reporter to a `RunCounter`, or to a client of one."""
    self._counter = counter
    self._background = Background()

  def write(self, data: loggers.LoggingData) -> None:
    self._background.start(self._counter.record_evaluation, data['return_mean'])

  def close(self) -> None:
    pass


class CounterState:
  """The counter's state for a checkpoint; the last known if it does not answer.

  Like Acme's `Saveable`, for a counter in another process.
  """

  def __init__(self, counter: core.Saveable):
    self._counter = counter
    self._background = Background()
    self._last: Mapping[str, Any] = {'counts': {}, 'returns': [], 'walltime': 0.}

  def save(self) -> Mapping[str, Any]:
    self._background.start(self._counter.save)
    try:
      self._last = self._background.result(_STATE_SECONDS)
    except Exception as e:
      print('learner: the counter does not answer '
            f'({str(e) or f"within {_STATE_SECONDS:g} s"}); the checkpoint holds '
            'what it said last.', flush=True)
    return self._last

  def restore(self, state: Mapping[str, Any]) -> None:
    self._last = state
    self._counter.restore(state)
