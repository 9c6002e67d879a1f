"""The checkpoints of a run: saved, found, checked and restored here.

A checkpoint holds `learner`, the learner's state, and `progress`, the
counter's. The newest three are kept.
"""

import os
import time
from typing import Any, Iterable, Mapping, Optional

from acme import core
from acme.tf import savers
import tensorflow as tf

SUBDIRECTORY = 'checkpoints'


def directory(run_dir: str) -> str:
  return os.path.join(run_dir, SUBDIRECTORY)


def latest(run_dir: str) -> Optional[str]:
  """Returns the newest checkpoint of a run that is whole, or None.

  Every tensor is read, checksums included, so that one which was being
  written when the machine went down is passed over for the one before it.
  """
  state = tf.train.get_checkpoint_state(directory(run_dir))
  if state is None:
    return None
  for path in reversed(state.all_model_checkpoint_paths):
    try:
      reader = tf.train.load_checkpoint(path)
      for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)
      return path
    except (tf.errors.OpError, ValueError, RuntimeError, IndexError):
      continue
  return None


def discard_broken(run_dir: str) -> Optional[str]:
  """Makes the newest whole checkpoint the one that training resumes from.

  Args:
    run_dir: a run's directory.

  Returns:
    That checkpoint's path, or None where there is none.
  """
  path = latest(run_dir)
  state = tf.train.get_checkpoint_state(directory(run_dir))
  if path is not None and state.model_checkpoint_path != path:
    paths = list(state.all_model_checkpoint_paths)
    tf.compat.v1.train.update_checkpoint_state(
        directory(run_dir), path, paths[:paths.index(path) + 1])
  return path


def checkpoint_of(learner: Mapping[str, Any],
                  counter: Optional[core.Saveable] = None) -> tf.train.Checkpoint:
  """Returns what is saved and restored.

  Args:
    learner: the learner's state or a part of it, such as its `actor_critic`;
      all of its variables have to exist.
    counter: the counter, or None to leave it out.
  """
  parts = {'learner': tf.train.Checkpoint(**learner)}
  if counter is not None:
    parts['progress'] = savers.SaveableAdapter(counter)
  return tf.train.Checkpoint(**parts)


def restore(path: str, checkpoint: tf.train.Checkpoint) -> None:
  """Restores everything that a checkpoint is made of.

  Args:
    path: of a whole checkpoint, as `latest` returns it.
    checkpoint: from `checkpoint_of`.

  Raises:
    AssertionError: where something is not in the file.
  """
  status = checkpoint.restore(path)
  status.assert_existing_objects_matched().expect_partial()


class Saver:
  """Saves checkpoints, and deletes all but the newest three."""

  def __init__(self, checkpoint: tf.train.Checkpoint, run_dir: str,
               period_minutes: float):
    """Makes a saver.

    Args:
      checkpoint: from `checkpoint_of`.
      run_dir: gets the folder `checkpoints`.
      period_minutes: time between two saves that are not asked for.
    """
    self._manager = tf.train.CheckpointManager(
        checkpoint, directory(run_dir), max_to_keep=3)
    self._period_seconds = 60. * period_minutes
    self._saved_at = -float('inf')

  def save_if_due(self) -> None:
    """Saves if the last time is long enough ago, and at first."""
    if time.monotonic() - self._saved_at >= self._period_seconds:
      self.save()

  def save(self) -> None:
    self._manager.save()
    self._saved_at = time.monotonic()


def check_matches(path: str, variables: Iterable[tf.Variable], key: str):
  """Checks that a checkpoint has the variables of a network.

  Args:
    path: of the checkpoint.
    variables: of the network, in any order.
    key: the network's name among the learner's state.

  Raises:
    ValueError: where shapes differ.
  """
  prefix = f'learner/{key}/'
  saved = sorted(
      tuple(shape) for name, shape in tf.train.list_variables(path)
      if name.startswith(prefix) and '.OPTIMIZER_SLOT' not in name)
  expected = sorted(tuple(v.shape) for v in variables)
  if saved != expected:
    raise ValueError(
        f'checkpoint {path} holds another network: its weights are of shapes '
        f'{[list(s) for s in saved]}, the settings make '
        f'{[list(s) for s in expected]}; use the settings it was trained with.')


def learner_steps(path: str) -> int:
  """Returns how many steps the learner had taken when it was saved."""
  return int(tf.train.load_variable(
      path, 'learner/num_steps/.ATTRIBUTES/VARIABLE_VALUE'))
