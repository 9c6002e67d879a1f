"""What has to be set before any test loads or starts TensorFlow."""

import agents  # noqa: F401, I001  Sets TensorFlow's variables; has to come first.

import tensorflow as tf

# Two replicas can be tested without a GPU: one CPU poses as two. TensorFlow
# takes this only before anything has used a device.
_cpu, = tf.config.list_physical_devices('CPU')
tf.config.set_logical_device_configuration(
    _cpu, [tf.config.LogicalDeviceConfiguration() for _ in range(2)])
