"""The limiter: ends a program at its budget or target."""

from typing import Callable, Mapping, Optional


def is_budget_spent(counts: Mapping[str, float], max_timesteps: int) -> bool:
  """Tells whether a run with these counts has spent its timesteps."""
  return counts.get('actor_steps', 0) >= max_timesteps


def is_target_reached(mean_return: Optional[float],
                       target_return: Optional[float]) -> bool:
  """Tells whether a mean return reaches the target; either may be None."""
  return (target_return is not None and mean_return is not None and
          mean_return >= target_return)


class Limiter:
  """Like Acme's `StepsLimiter`, with a target return besides the budget.

  It lives in the process of the counter, which polls it.
  """

  def __init__(self, max_timesteps: int, target_return: Optional[float],
               stop_program: Callable[[], None]):
    """Makes a limiter.

    Args:
      max_timesteps: the budget.
      target_return: also ends the program, once the mean return reaches it.
      stop_program: called once.
    """
    self._max_timesteps = max_timesteps
    self._target_return = target_return
    self._stop_program = stop_program
    self._has_stopped = False

  def check(self, counts: Mapping[str, float],
            mean_return: Optional[float]) -> bool:
    """Ends the program if the budget is spent or the target reached.

    Args:
      counts: with `actor_steps`, the timesteps.
      mean_return: of the last training episodes; None while there are too few.

    Returns:
      Whether this call has ended the program.
    """
    ends = not self._has_stopped and (
        is_budget_spent(counts, self._max_timesteps) or
        is_target_reached(mean_return, self._target_return))
    if ends:
      self._has_stopped = True
      self._stop_program()
    return ends
