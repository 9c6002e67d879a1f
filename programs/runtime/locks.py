"""A lock on a run's directory, so that it has one writer; and where it has gone."""

import contextlib
import fcntl
import os
import socket
import sys
from typing import Iterator

import psutil

FILE = 'lock'


@contextlib.contextmanager
def held(run_dir: str) -> Iterator[int]:
  """Locks a run's directory, which must exist, for this process.

  Processes that inherit the file descriptor hold the lock, too. The system
  releases it when the last of them ends, however that happens.

  Args:
    run_dir: a run's directory.

  Yields:
    The file descriptor.

  Raises:
    ValueError: if another run holds it, in one line that names its process.
  """
  file = os.open(os.path.join(run_dir, FILE), os.O_RDWR | os.O_CREAT, 0o644)
  try:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(_in_use(run_dir, os.pread(file, 1000, 0))) from None
    except OSError as e:  # Some network file systems have no locks.
      print(f'warning: {run_dir} cannot be locked ({e.strerror}); see to it that '
            'no other run uses it.', file=sys.stderr)
    os.ftruncate(file, 0)
    os.pwrite(file, f'{os.getpid()} {_where()}'.encode(), 0)
    yield file
  finally:
    os.close(file)


class Directory:
  """A directory, which somebody may remove or move.

  Attributes:
    path: where it was.
  """

  def __init__(self, path: str):
    self.path = path
    # While it is open, no other can be taken for it.
    self._open = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

  def has_gone(self) -> bool:
    """Tells whether its path now leads to nothing, or to another."""
    try:
      return not os.path.samestat(os.fstat(self._open), os.stat(self.path))
    except (FileNotFoundError, NotADirectoryError):
      return True
    except OSError:
      return False  # A network's storage may be out of reach for a while.


def _where() -> str:
  """Returns the host, and the part of it, in which process ids mean the same."""
  return f'{socket.gethostname()} {os.readlink("/proc/self/ns/pid")}'


def _in_use(run_dir: str, content: bytes) -> str:
  pid, _, where = content.decode(errors='replace').strip().partition(' ')
  is_here = where in ('', _where())
  if is_here and pid.isdecimal() and not psutil.pid_exists(int(pid)):
    return (f'{run_dir} is still held by nodes of process {pid}, which has ended; '
            'they end within seconds, so try again.')
  host = '' if is_here else f' on {where.partition(" ")[0]}, or in a container there'
  return (f'{run_dir} is in use by the run of process {pid}{host}; wait for its '
          'end, or give another --run_dir.')
