"""Settling a node into its process."""

import os
import threading

from absl import logging
import tensorflow as tf


def settle_in() -> bool:
  """Quiets libraries; returns whether this node has a process of its own."""
  logging.set_verbosity(logging.WARNING)
  # Under the threaded launchers, every node is a thread of one process.
  return threading.current_thread() is threading.main_thread()


def use_one_core(niceness: int) -> None:
  """Keeps an acting process off the learner's GPUs and cores."""
  os.nice(niceness)
  tf.config.set_visible_devices([], 'GPU')
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)
