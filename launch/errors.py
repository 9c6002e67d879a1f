"""Errors that a user can mend, in one line."""

import contextlib
import difflib
import os
import signal
import sys
from typing import Iterable, Iterator, NoReturn, Optional


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
  """Turns errors that a user can fix into one line and an exit with code 2.

  If the reader of the output has gone, as in `| head`, it exits silently.
  """
  for name in ('stdout', 'stderr'):
    if getattr(sys, name) is None:  # Closed by whoever started this, as by `>&-`.
      setattr(sys, name, open(os.devnull, 'w'))
  try:
    try:
      yield
    finally:
      sys.stdout.flush()
  except BrokenPipeError:
    end_unread()
  except SystemExit as e:
    if isinstance(e.__context__, BrokenPipeError):  # Rich exits this way.
      end_unread()
    raise
  except (ValueError, OSError) as e:
    fail(str(e))


def end_unread() -> NoReturn:
  """Exits silently, as a command does whose output nobody reads any more."""
  # Or Python would complain about unflushed output.
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  sys.exit(128 + signal.SIGPIPE)


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
  """Turns a failed import into a ValueError that names our extra to install."""
  try:
    yield
  except ImportError as e:
    what = (f'{e.name} is missing' if isinstance(e, ModuleNotFoundError) else
            f'{e.name or name} cannot be imported ({e})')
    raise ValueError(f'{what}; `pip install "impala-ppo[{name}]"` installs it.'
                     ) from None


def fail(message: str) -> NoReturn:
  """Prints one line and exits with code 2."""
  program = os.path.splitext(os.path.basename(sys.argv[0]))[0]
  message = ' '.join(message.splitlines())
  print(f'{program}: error: {message}', file=sys.stderr)
  sys.exit(2)


def nearest(name: str, known: Iterable[str]) -> Optional[str]:
  """Returns the known name that was probably meant, if any is close."""
  known = list(known)
  begun = [candidate for candidate in known if candidate.startswith(name)]
  close = difflib.get_close_matches(name, known, n=1)
  return next(iter(close + begun), None)
