"""What benchmarks.learner reads from a profile, and what it leaves out."""

import itertools
import math

import pytest
from tensorflow.core.profiler.protobuf import xplane_pb2

from benchmarks import learner as benchmark


def profile_of(*streams, plane='/device:GPU:0'):
  """A profile of streams of (name, first ms, last ms)."""
  space = xplane_pb2.XSpace()
  made = space.planes.add(name=plane)
  numbers = {}
  for events in streams:
    line = made.lines.add(timestamp_ns=7_000_000)
    for name, first, last in events:
      number = numbers.setdefault(name, len(numbers) + 1)
      made.event_metadata[number].name = name
      line.events.add(metadata_id=number, offset_ps=int(first * 1e9),
                      duration_ps=int((last - first) * 1e9))
  return space


@pytest.mark.parametrize('kernels, hidden', [
    ([], 0.),
    ([('conv', 0, 10)], 1.),
    ([('conv', 0, 3)], 1 / 4),  # The copies are from 2 to 4 and from 6 to 8.
    ([('conv', 0, 3), ('relu', 2.5, 3.5), ('adam', 7, 20)], 5 / 8),
    ([('Memset', 0, 10), ('MemcpyD2D', 0, 10)], 0.),  # Which compute nothing.
])
def test_copying_is_hidden_while_kernels_run(kernels, hidden):
  copies = [('MemcpyH2D', 2, 4), ('MemcpyH2D', 6, 8), ('MemcpyD2H', 0, 9)]
  assert benchmark.hidden_copying(profile_of(kernels, copies)) == pytest.approx(
      (4., hidden))


def test_what_is_not_on_a_gpu_is_not_counted():
  milliseconds, hidden = benchmark.hidden_copying(
      profile_of([('MemcpyH2D', 0, 1)], plane='/host:CPU'))
  assert milliseconds == 0. and math.isnan(hidden)


@pytest.mark.parametrize('device', ['cpu', 'gpu'])
def test_cells_are_all_sizes_and_each_comparison_twice(device):
  cells = list(benchmark.cells(device))
  plain = [c for c in cells if c.replicas == 1 and c.prefetch and
           c.compute_dtype == 'float32']
  assert {(c.batch_size, c.frame_size, c.trunk) for c in plain} == set(
      itertools.product((12, 48, 192, 768), (42, 84), ('small', 'nature')))
  assert len(plain) == 16 and len(cells) == {'cpu': 20, 'gpu': 24}[device]
  assert [c.batch_size for c in cells] == sorted(c.batch_size for c in cells)


def test_a_cell_is_expected_to_take_as_long_as_its_like():
  small = benchmark.Cell(12, 42, 'small')
  assert benchmark._expected_seconds(small, []) == 0.
  results = [{'batch_size': 12, 'frame_size': 42, 'trunk': 'small',
              'first_step_seconds': 5., 'step_milliseconds': 1000.}]
  results.insert(0, {**results[0], 'trunk': 'nature', 'first_step_seconds': 95.})
  # The first step, and then seven of four times the size.
  assert benchmark._expected_seconds(
      benchmark.Cell(48, 42, 'small'), results) == 5. + 7 * 4.
  assert benchmark._expected_seconds(benchmark.Cell(48, 84, 'small'), results) == 0.
