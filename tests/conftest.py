"""What has to be set before any test loads or starts TensorFlow."""

import agents  # noqa: F401, I001  Sets TensorFlow's variables; has to come first.

import os
import signal

import hypothesis
import pytest
import tensorflow as tf

# Two replicas can be tested without a GPU: one CPU poses as two. TensorFlow
# takes this only before anything has used a device.
_cpu, = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(
    _cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(2)])

# TensorFlow 2.8's tuner of datasets sleeps for up to a minute at a time, and an
# iterator that is freed waits for it with Python's lock held. There is nothing to
# tune in tests.
_Options = tf.data.Options


def _untuned_options():
  options = _Options()
  options.autotune.enabled = False
  return options


tf.data.Options = _untuned_options

# On a busy machine a test may stand still for longer than Hypothesis allows.
hypothesis.settings.register_profile(
    'unhurried', deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile('unhurried')

# Tests that run in the background, or under nohup, would pass their deafness on.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

_LAYERS = ('unit', 'pipeline', 'commands')


# A command that runs within a test closes the doors of all that it starts later.
_DOORS = ('LD_PRELOAD', 'IMPALA_PPO_LISTEN')
_OURS = {name: os.environ.get(name) for name in _DOORS}


@pytest.fixture(autouse=True)
def doors_as_they_were():
  for name, value in _OURS.items():
    os.environ.pop(name, None)
    if value is not None:
      os.environ[name] = value


def pytest_collection_modifyitems(items):
  """Fast tests first, and among them the layer that points closest to a fault.

  Where workers share the files, those with slow tests come first, of the layer that
  takes longest, for workers to end at the same time.
  """
  def place(item):
    layer = item.path.parent.name
    return _LAYERS.index(layer) if layer in _LAYERS else len(_LAYERS)

  def is_slow(item):
    return item.get_closest_marker('slow') is not None

  slow_files = {item.path for item in items if is_slow(item)} if (
      'PYTEST_XDIST_WORKER' in os.environ) else set()

  def order(item):
    if item.path in slow_files:
      return 0, -place(item), item.path, is_slow(item)
    return 1, is_slow(item), -place(item) if is_slow(item) else place(item)

  items.sort(key=order)
