"""What a process may use of its machine."""

import os

import psutil
import pytest

from programs.runtime import machine

V1 = '5:cpuset:/\n4:memory:/jobs/mine\n3:cpu,cpuacct:/jobs/mine\n'
V2 = '0::/jobs/mine\n'


@pytest.fixture
def groups(tmp_path, monkeypatch):
  """Poses as the kernel: what groups this process is in, and their files."""
  monkeypatch.setattr(machine, '_OWN_GROUPS', str(tmp_path / 'own'))
  monkeypatch.setattr(machine, '_GROUPS', str(tmp_path))
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(8)))

  def make(own, **files):
    (tmp_path / 'own').write_text(own)
    for path, text in files.items():
      folder, _, name = path.replace('__', '/').rpartition('/')
      (tmp_path / folder).mkdir(parents=True, exist_ok=True)
      (tmp_path / folder / name.replace('-', '.')).write_text(text + '\n')

  return make


@pytest.mark.parametrize('own, files, cores', [
    ('', {}, 8),
    (V2, {'jobs__mine__cpu-max': 'max 100000'}, 8),
    (V2, {'jobs__mine__cpu-max': '200000 100000'}, 2),
    (V2, {'jobs__mine__cpu-max': '150000 100000'}, 2),
    (V2, {'jobs__mine__cpu-max': '20000 100000'}, 1),
    (V2, {'jobs__mine__cpu-max': '9900000 100000'}, 8),
    # The narrowest of those around counts.
    (V2, {'jobs__mine__cpu-max': '600000 100000',
          'jobs__cpu-max': '300000 100000'}, 3),
    # A container sees its own group as the root.
    (V2, {'cpu-max': '400000 100000'}, 4),
    (V1, {'cpu__jobs__mine__cpu-cfs_quota_us': '-1',
          'cpu__jobs__mine__cpu-cfs_period_us': '100000'}, 8),
    (V1, {'cpu__jobs__mine__cpu-cfs_quota_us': '50000',
          'cpu__jobs__mine__cpu-cfs_period_us': '10000'}, 5),
    (V1, {'cpu__cpu-cfs_quota_us': '300000',
          'cpu__cpu-cfs_period_us': '100000'}, 3),
])
def test_cores(groups, own, files, cores):
  groups(own, **files)
  assert machine.cores() == cores


@pytest.mark.parametrize('own, files, limit', [
    ('', {}, None),
    (V2, {'jobs__mine__memory-max': 'max'}, None),
    (V2, {'jobs__mine__memory-max': '1000000', 'memory-max': '2000000'}, 10**6),
    (V1, {'memory__jobs__memory-limit_in_bytes': '3000000'}, 3 * 10**6),
    (V1, {'memory__memory-limit_in_bytes': '9223372036854771712'}, None),
])
def test_memory(groups, own, files, limit):
  groups(own, **files)
  assert machine.memory() == (limit or psutil.virtual_memory().total)


def test_cores_of_a_process_that_is_kept_to_one():
  before = os.sched_getaffinity(0)
  try:
    os.sched_setaffinity(0, {min(before)})
    assert machine.cores() == 1
  finally:
    os.sched_setaffinity(0, before)
