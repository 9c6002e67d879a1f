"""How fast the learner alone is: `python -m benchmarks.learner --device gpu`.

Learns from real trajectories of Pong in the host's memory, which go through a
pipeline as they do after Reverb. For each batch size, frame size and trunk, prints
the time of a step, the timesteps learned in a second, and the fraction of time that
the learner waits for data; then the same for two replicas, and for batches that are
not copied to the device ahead. On a GPU it also measures large batches in half
precision and tells, from a profile of one cell, how much of the copying is hidden
behind computing.

What would not fit into `--minutes` is left out and listed. The Atari ROMs are
ale-py's own: nothing is fetched or shown.
"""

import ctypes
import dataclasses
import glob
import itertools
import tempfile
import time
from typing import Any, Iterator, Optional, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.core.profiler.protobuf import xplane_pb2

from agents import cuda
from agents.impala_ppo import ImpalaPPOBuilder
from agents.impala_ppo import learning
from agents.impala_ppo import replay
from agents.impala_ppo import trajectories
from benchmarks import common
from benchmarks import parts
from launch import settings as settings_lib

_BATCHES = (12, 48, 192, 768)
_FRAMES = (42, 84)
_TRUNKS = {'small': (), 'nature': ('--conv_channels', '32,64,64',
                                   '--latent_size', '512')}
# Also measured with two replicas, batches copied late and half precision.
_COMPARED = ((42, 'small'), (84, 'nature'))
_COMPARED_BATCH = {'cpu': 12, 'gpu': 192}
_HALF_PRECISION_BATCHES = {'cpu': (), 'gpu': (192, 768)}
_WARM_UP_STEPS = 3
_CELL_SECONDS = 2.
_MIN_STEPS = 3
_PROFILED_STEPS = 10
# The fraction of a card's memory for each of two logical GPUs on it.
_MEMORY_SHARE = 0.4


@dataclasses.dataclass(frozen=True)
class Cell:
  """What to measure.

  Attributes:
    batch_size: trajectories in a batch.
    frame_size: side of the square frames, in pixels.
    trunk: a key of `_TRUNKS`.
    replicas: devices that share each batch.
    prefetch: whether batches are copied to the device ahead.
    compute_dtype: of the agent's configuration.
  """
  batch_size: int
  frame_size: int
  trunk: str
  replicas: int = 1
  prefetch: bool = True
  compute_dtype: str = 'float32'

  def settings(self) -> settings_lib.Settings:
    return settings_lib.from_train_flags([
        '--game', 'pong', '--frame_size', str(self.frame_size),
        '--batch_size', str(self.batch_size),
        '--compute_dtype', self.compute_dtype, *_TRUNKS[self.trunk]])


# With a CUDA 13 driver, TensorFlow 2.8 can profile a process only once.
_PROFILED = Cell(192, 84, 'nature')


def cells(device: str) -> Iterator[Cell]:
  """Yields the cells to measure, cheaper ones first."""
  for batch_size, frame_size, trunk in itertools.product(
      _BATCHES, _FRAMES, _TRUNKS):
    yield Cell(batch_size, frame_size, trunk)
    if (frame_size, trunk) not in _COMPARED:
      continue
    if batch_size == _COMPARED_BATCH[device]:
      yield Cell(batch_size, frame_size, trunk, prefetch=False)
      yield Cell(batch_size, frame_size, trunk, replicas=2)
    if batch_size in _HALF_PRECISION_BATCHES[device]:
      yield Cell(batch_size, frame_size, trunk, compute_dtype='float16')


def split_devices(device: str) -> list[str]:
  """Makes two devices of a kind, and returns their names."""
  physical = tf.config.list_physical_devices(device.upper())
  if not physical:
    raise ValueError('TensorFlow finds no GPU: '
                     f'{cuda.why_unusable() or "there is none"}.')
  if len(physical) == 1:
    configuration = tf.config.LogicalDeviceConfiguration(
        None if device == 'cpu' else _MEMORY_SHARE * _memory_mib())
    tf.config.set_logical_device_configuration(physical[0], [configuration] * 2)
  return [f'/{device}:0', f'/{device}:1']


def _memory_mib() -> float:
  """Returns the memory of the first GPU, as its driver reports it."""
  driver = ctypes.CDLL('libcuda.so.1')
  size = ctypes.c_size_t()
  if driver.cuInit(0) or driver.cuDeviceTotalMem_v2(ctypes.byref(size), 0):
    raise RuntimeError('the driver does not tell the memory of the GPU.')
  return size.value / 2**20


def _pipeline(recorded: trajectories.Trajectories,
              batch_size: int) -> tf.data.Dataset:
  """Draws batches from trajectories that are in memory."""
  num_recorded = len(recorded.key)

  def draw(seed: tf.Tensor) -> trajectories.Trajectories:
    chosen = tf.random.stateless_uniform(
        [batch_size], [seed, 0], 0, num_recorded, tf.int32)
    return tf.nest.map_structure(lambda x: tf.gather(x, chosen), recorded)

  return tf.data.Dataset.range(2**40).map(draw, num_parallel_calls=1).prefetch(1)


def make_learner(cell: Cell, devices: Sequence[str],
                 recorded: trajectories.Trajectories,
                 environment_spec: Any) -> learning.ImpalaPPOLearner:
  """Makes the learner of a cell, with its data."""
  devices = devices[:cell.replicas]
  builder = ImpalaPPOBuilder(cell.settings().agent, devices)
  dataset = _pipeline(recorded, cell.batch_size)
  iterator = (replay.distribute(dataset, learning.make_strategy(devices))
              if cell.prefetch else iter(dataset))
  return builder.make_learner(
      0, builder.make_networks(environment_spec), iterator)


def _wait_for(learner: learning.ImpalaPPOLearner) -> None:
  """Waits for a GPU to finish its work."""
  learner.metrics()


def measure(learner: learning.ImpalaPPOLearner, cell: Cell,
            seconds: float) -> dict[str, float]:
  """Steps for some seconds; returns figures, including the first step's time."""
  start = time.perf_counter()
  learner.step()
  _wait_for(learner)
  first = time.perf_counter() - start
  for _ in range(_WARM_UP_STEPS):
    learner.step()
  _wait_for(learner)
  times: list[float] = []
  start = time.perf_counter()
  while len(times) < _MIN_STEPS or time.perf_counter() - start < seconds:
    began = time.perf_counter()
    learner.step()
    # Reading metrics waits for a GPU, so it is done as seldom as in training.
    times.append(time.perf_counter() - began)
  metrics = learner.metrics()
  elapsed = time.perf_counter() - start
  length = cell.settings().agent.sequence_length
  return {'first_step_seconds': first, 'steps': len(times),
          'step_milliseconds': 1e3 * elapsed / len(times),
          'timesteps_per_second': cell.batch_size * length * len(times) / elapsed,
          'wait_fraction': metrics['wait_fraction']}


def hidden_copying(space: xplane_pb2.XSpace) -> tuple[float, float]:
  """Reads a profile of one GPU.

  Args:
    space: what TensorFlow's profiler writes.

  Returns:
    The milliseconds in which memory was copied from the host, and the fraction of
    them in which the device computed too; NaN if nothing was copied.
  """
  copying, computing = [], []
  for plane in space.planes:
    if not plane.name.startswith('/device:GPU'):
      continue
    for line in plane.lines:
      for event in line.events:
        name = plane.event_metadata[event.metadata_id].name.lower()
        begin = line.timestamp_ns * 1000 + event.offset_ps
        span = (begin, begin + event.duration_ps)
        if 'memcpyh2d' in name:
          copying.append(span)
        elif not name.startswith('mem'):
          computing.append(span)
  copying, computing = _merged(copying), _merged(computing)
  total = sum(end - begin for begin, end in copying)
  hidden = sum(max(0, min(end, other_end) - max(begin, other_begin))
               for begin, end in copying for other_begin, other_end in computing)
  return total / 1e9, hidden / total if total else float('nan')


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
  """Returns the same times as spans in order that do not overlap."""
  merged: list[tuple[int, int]] = []
  for begin, end in sorted(spans):
    if merged and begin <= merged[-1][1]:
      merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
    else:
      merged.append((begin, end))
  return merged


def profile(learner: learning.ImpalaPPOLearner) -> dict[str, float]:
  """Profiles some steps on a GPU."""
  with tempfile.TemporaryDirectory() as directory:
    tf.profiler.experimental.start(directory)
    for _ in range(_PROFILED_STEPS):
      learner.step()
    _wait_for(learner)
    tf.profiler.experimental.stop()
    path, = glob.glob(f'{directory}/**/*.xplane.pb', recursive=True)
    with open(path, 'rb') as f:
      milliseconds, hidden = hidden_copying(xplane_pb2.XSpace.FromString(f.read()))
  return {'copy_milliseconds': milliseconds / _PROFILED_STEPS,
          'copy_hidden_fraction': hidden}


def _expected_seconds(cell: Cell, results: Sequence[dict[str, Any]]) -> float:
  """Estimates a cell's time from similar cells with smaller batches."""
  like = [r for r in results if r['frame_size'] == cell.frame_size and
          r['trunk'] == cell.trunk]
  if not like:
    return 0.
  step = 1e-3 * like[-1]['step_milliseconds'] * (
      cell.batch_size / like[-1]['batch_size'])
  steps = 1 + _WARM_UP_STEPS + _MIN_STEPS
  # The very first one may compile kernels, too.
  first = min(r['first_step_seconds'] for r in results)
  return first + max(_CELL_SECONDS, steps * step)


def main(argv: Optional[Sequence[str]] = None) -> int:
  """Measures all cells that there is time for, and prints a table."""
  parser = common.Parser('learner', __doc__)
  parser.add_argument('--device', choices=('gpu', 'cpu'), required=True)
  parser.add_argument('--minutes', type=common.positive(float), default=4.,
                      help='for all of it (default: %(default)s)')
  parser.add_json()
  flags = parser.parse_args(argv)
  try:
    devices = split_devices(flags.device)
  except ValueError as e:
    parser.error(str(e))
  end = time.monotonic() + 60. * flags.minutes
  recorded: dict[int, Any] = {}
  results: list[dict[str, Any]] = []
  common.print_header(['batch', 'frames', 'trunk', 'replicas', 'copied ahead',
                       'type', 'first step, s', 'step, ms', 'timesteps/s', 'waiting',
                       'copying, ms', 'of it hidden'])
  left_out = []
  for cell in cells(flags.device):
    if time.monotonic() + _expected_seconds(cell, results) > end:
      left_out.append(f'{cell.batch_size} of {cell.frame_size}x{cell.frame_size} '
                      f'({cell.trunk})')
      continue
    if cell.frame_size not in recorded:
      recorded[cell.frame_size] = parts.real_batch(
          Cell(12, cell.frame_size, 'small').settings(), ('/cpu:0',))
    environment_spec, batch = recorded[cell.frame_size]
    learner = make_learner(cell, devices, batch, environment_spec)
    result: dict[str, Any] = {
        **dataclasses.asdict(cell), **measure(learner, cell, _CELL_SECONDS)}
    if flags.device == 'gpu' and cell == _PROFILED:
      result |= profile(learner)
    results.append(result)
    common.print_row([
        cell.batch_size, f'{cell.frame_size}x{cell.frame_size}', cell.trunk,
        cell.replicas, 'yes' if cell.prefetch else 'no',
        cell.compute_dtype,
        f'{result["first_step_seconds"]:.1f}', f'{result["step_milliseconds"]:.2f}',
        f'{result["timesteps_per_second"]:,.0f}', f'{result["wait_fraction"]:.1%}',
        f'{result.get("copy_milliseconds", np.nan):.2f}',
        f'{result.get("copy_hidden_fraction", np.nan):.0%}'])
  if left_out:
    print(f'left out for want of time: {", ".join(dict.fromkeys(left_out))}.')
  common.write_json(flags.json, {'device': _name_of(flags.device),
                                 'cells': results, 'left_out': left_out})
  return 0


def _name_of(device: str) -> str:
  physical = tf.config.list_physical_devices(device.upper())[0]
  if device == 'cpu':
    return 'cpu'
  return tf.config.experimental.get_device_details(physical)['device_name']


if __name__ == '__main__':
  common.run(main)
