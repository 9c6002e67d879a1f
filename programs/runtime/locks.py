"""A lock on a run's directory, so that it has one writer."""

import contextlib
import fcntl
import os
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
      raise ValueError(_in_use(run_dir, os.pread(file, 20, 0))) from None
    except OSError as e:  # Some network file systems have no locks.
      print(f'warning: {run_dir} cannot be locked ({e.strerror}); see to it that '
            'no other run uses it.', file=sys.stderr)
    os.ftruncate(file, 0)
    os.pwrite(file, str(os.getpid()).encode(), 0)
    yield file
  finally:
    os.close(file)


def _in_use(run_dir: str, content: bytes) -> str:
  pid = content.decode(errors='replace').strip()
  if pid.isdecimal() and not psutil.pid_exists(int(pid)):
    return (f'{run_dir} is still held by nodes of process {pid}, which has ended; '
            'they end within seconds, so try again.')
  return (f'{run_dir} is in use by the run of process {pid}; wait for its end, or '
          'give another --run_dir.')
