"""The cores and the memory that this process may use."""

import math
import os
from typing import Iterator

import psutil

_OWN_GROUPS = '/proc/self/cgroup'
_GROUPS = '/sys/fs/cgroup'


def cores() -> int:
  """Returns how many cores this process may use, by affinity and cgroup quota."""
  quotas = [float(quota) / float(period) for quota, period in (
      *(text.split() for text in _limits('', 'cpu.max')),
      *zip(_limits('cpu', 'cpu.cfs_quota_us'), _limits('cpu', 'cpu.cfs_period_us'))
  ) if quota not in ('max', '-1')]
  return max(1, math.ceil(min([len(os.sched_getaffinity(0)), *quotas])))


def memory() -> int:
  """Returns the bytes of memory that this process may use, by cgroup limit."""
  limits = [*_limits('', 'memory.max'),
            *_limits('memory', 'memory.limit_in_bytes')]
  return min([psutil.virtual_memory().total,
              *(int(limit) for limit in limits if limit != 'max')])


def _limits(controller: str, file: str) -> Iterator[str]:
  """Yields the content of a file for each cgroup of this process.

  Args:
    controller: of cgroup v1; empty for v2.
    file: the file's name.
  """
  try:
    with open(_OWN_GROUPS) as f:
      lines = f.read().splitlines()
  except OSError:
    return
  for line in lines:
    _, controllers, path = line.split(':', 2)
    if controller not in controllers.split(','):
      continue
    # In a container, the mounted root may be a group further down.
    while True:
      folder = os.path.join(_GROUPS, controller, path.strip('/'))
      if os.path.exists(os.path.join(folder, file)):
        with open(os.path.join(folder, file)) as f:
          yield f.read().strip()
      if path == '/':
        break
      path = os.path.dirname(path)
