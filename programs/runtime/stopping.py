"""Stops a worker in time, whatever it waits for."""

import threading
from typing import Callable

# Failures while the program is stopping come from servers that have gone; this
# long after a failure, it is known whether the program is stopping.
_GRACE_SECONDS = 2.
_AT_ONCE_SECONDS = 0.5


def run_until_stopped(function: Callable[[], None],
                      should_stop: threading.Event,
                      patience_seconds: float = 3.,
                      interrupt: Callable[[], None] = lambda: None) -> None:
  """Calls a function in a thread; returns when it ends or has to end.

  Python handles signals in the main thread, between two of its instructions:
  a main thread that waits in Reverb, Courier or TensorFlow, none of which can
  be interrupted, would not notice that the program is to stop. So the calling
  thread only waits for that.

  Args:
    function: does the work; should return soon after `should_stop` is set.
    should_stop: set when the program stops.
    patience_seconds: how long the function may take to return then; after
      that it is left behind, waiting.
    interrupt: called if the function does not return at once; makes the call
      that blocks it fail.

  Raises:
    Exception: what the function raised, unless the program was stopping.
  """
  errors: list[BaseException] = []

  def call():
    try:
      function()
    except Exception as e:
      errors.append(e)

  thread = threading.Thread(target=call, daemon=True)
  thread.start()
  while thread.is_alive() and not should_stop.wait(0.05):
    pass
  thread.join(_AT_ONCE_SECONDS)
  if thread.is_alive():
    interrupt()
    thread.join(patience_seconds)
  if errors and not should_stop.wait(_GRACE_SECONDS):
    raise errors[0]
