"""What tests of programs in processes share."""

import contextlib
import random
import socket
import time


def free_ports(number: int) -> int:
  """Returns the first of so many neighbouring ports that nobody listens on."""
  while True:
    first = random.randrange(20_000, 32_000)  # Below what the system hands out.
    with contextlib.ExitStack() as stack:
      try:
        for port in range(first, first + number):
          stack.enter_context(socket.socket()).bind(('', port))
      except OSError:
        continue
    return first


def wait_for(condition, what, seconds=120., every_seconds=0.2):
  """Returns the first true result of a function that is called again and again."""
  deadline = time.monotonic() + seconds
  while True:
    result = condition()
    if result:
      return result
    assert time.monotonic() < deadline, f'{what}: not within {seconds} seconds'
    time.sleep(every_seconds)
