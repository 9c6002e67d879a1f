"""Who is restarted, and when to give up; the same for every engine."""

import collections
import dataclasses
import signal
import time
from typing import Callable, Optional

_FAILURES = 3
_FAILURE_WINDOW_SECONDS = 60.
_STARTS = 5
_START_SECONDS = 10.


def describe_exit(code: int) -> str:
  """Says how a process ended, by what `subprocess` gives as its return code."""
  if code < 0:
    return f'was killed by signal {-code} ({signal.strsignal(-code)})'
  return f'ended with exit code {code}'


@dataclasses.dataclass
class _History:
  starts: int = 0
  started_at: float = 0.
  early_ends: int = 0
  failures: collections.deque = dataclasses.field(
      default_factory=collections.deque)


class RestartPolicy:
  """Restarts nodes, but not those that fail again and again.

  What fails by itself, three times within a minute, would go on doing so; and
  what ends five times in a row while it starts has never worked. Nodes that
  were killed are otherwise restarted without limit.
  """

  def __init__(self, restarts: bool = True,
               clock: Callable[[], float] = time.monotonic):
    """Makes a policy.

    Args:
      restarts: whether anything is restarted.
      clock: tells seconds.
    """
    self._restarts = restarts
    self._clock = clock
    self._nodes: dict[str, _History] = {}

  def started(self, node: str) -> int:
    """Takes note of a start; returns how many there were before."""
    history = self._nodes.setdefault(node, _History())
    history.started_at = self._clock()
    history.starts += 1
    return history.starts - 1

  def reason_to_give_up(self, node: str, code: int) -> Optional[str]:
    """Returns why the node is not to be restarted, or None if it is.

    Args:
      node: that has ended by itself.
      code: its return code.
    """
    if not self._restarts:
      return 'nodes are not restarted'
    history, now = self._nodes[node], self._clock()
    is_early = now - history.started_at < _START_SECONDS
    history.early_ends = history.early_ends + 1 if is_early else 0
    if code >= 0:
      history.failures.append(now)
    while history.failures and now - history.failures[0] > _FAILURE_WINDOW_SECONDS:
      history.failures.popleft()
    if len(history.failures) >= _FAILURES:
      return (f'it failed {_FAILURES} times within '
              f'{_FAILURE_WINDOW_SECONDS:.0f} seconds')
    if history.early_ends >= _STARTS:
      return f'it ended {_STARTS} times in a row while it was starting'
    return None
