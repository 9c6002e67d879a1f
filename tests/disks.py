"""Disks without room."""

import contextlib
import resource
from typing import Iterator


@contextlib.contextmanager
def full(most_bytes: int) -> Iterator[None]:
  """Has this process write no file beyond so many bytes, but so much of it."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
