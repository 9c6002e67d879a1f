"""Saves, finds, checks and restores the checkpoints of a run.

A checkpoint holds `learner`, the learner's state, and `progress`, the
counter's. The newest three are kept, as `ckpt-N` with a growing number. They are
found by their files: TensorFlow's own index, the file `checkpoint`, is written
for other tools, and never read.
"""

import contextlib
import json
import os
import re
import shutil
import sys
import time
from typing import Any, Callable, Iterable, Mapping, Optional

from acme import core
import numpy as np
import tensorflow as tf

from programs.runtime import locks

SUBDIRECTORY = 'checkpoints'
_KEPT = 3
_FILE = re.compile(r'ckpt-(\d+)\.(index|data-\d+-of-\d+)')
# What a killed writer leaves.
_LEFTOVER = re.compile(r'ckpt-\d+_temp|.*\.tempstate\d+|checkpoint\.new')
_BROKEN = 'broken-'
# For a run's other files.
_SPARE_BYTES = 1 << 20


def directory(run_dir: str) -> str:
  return os.path.join(run_dir, SUBDIRECTORY)


def _numbers(run_dir: str) -> list[int]:
  """Returns the numbers of all checkpoints, whole or not, newest first."""
  try:
    files = os.listdir(directory(run_dir))
  except (FileNotFoundError, NotADirectoryError):
    return []
  return sorted({int(match[1]) for match in map(_FILE.fullmatch, files) if match},
                reverse=True)


def _path(run_dir: str, number: int) -> str:
  return os.path.join(directory(run_dir), f'ckpt-{number}')


def _files(path: str) -> list[str]:
  """Returns the existing files of a checkpoint."""
  folder, name = os.path.split(path)
  if not os.path.isdir(folder):
    return []
  return [os.path.join(folder, file) for file in os.listdir(folder)
          if _FILE.fullmatch(file) and file.startswith(f'{name}.')]


def _fault(path: str) -> Optional[str]:
  """Returns what is wrong with a checkpoint, or None.

  Every tensor is read, checksums included, which detects a checkpoint that was
  being written when the machine went down.
  """
  try:
    reader = tf.train.load_checkpoint(path)
    for name, dtype in reader.get_variable_to_dtype_map().items():
      value = reader.get_tensor(name)
      if dtype.is_floating and not np.isfinite(value).all():
        return f'it holds numbers that are not finite ({name})'
  except (tf.errors.OpError, ValueError, RuntimeError, IndexError, OSError) as e:
    return f'it cannot be read whole ({one_line(e)})'
  return None


def one_line(error: Exception) -> str:
  """Returns an error's message on one line, without its place in a graph."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  nodes = [i for i, line in enumerate(lines) if line.startswith('Node: ')]
  return lines[nodes[0] + 1 if nodes and nodes[0] + 1 < len(lines) else 0].strip()


def latest(run_dir: str,
           say: Callable[[str], None] = lambda line: None) -> Optional[str]:
  """Returns the newest checkpoint of a run that can be used, or None.

  It is whole, and all its numbers are finite.

  Args:
    run_dir: a run's directory.
    say: called with a line for each newer one that is passed over, and why.
  """
  for number in _numbers(run_dir):
    path = _path(run_dir, number)
    fault = _fault(path)
    if fault is None:
      return path
    say(f'checkpoint {os.path.basename(path)} is passed over: {fault}.')
  return None


def existing(run_dir: str,
             say: Callable[[str], None] = lambda line: None) -> str:
  """Returns `latest`; raises ValueError, in one line, if there is none."""
  path = latest(run_dir, say)
  if path is None:
    raise ValueError(f'{run_dir} holds no whole checkpoint.')
  return path


def named(run_dir: str, name: str) -> str:
  """Returns a checkpoint of a run.

  Args:
    run_dir: a run's directory.
    name: its number or its name, such as 12 or ckpt-12.

  Raises:
    ValueError: if there is none, or it cannot be used; in one line.
  """
  numbers = _numbers(run_dir)
  number = name.removeprefix('ckpt-')
  if not number.isdecimal() or int(number) not in numbers:
    raise ValueError(f'{run_dir} has no checkpoint {name!r}; it has ' + (
        ', '.join(f'ckpt-{n}' for n in sorted(numbers)) or 'none') + '.')
  path = _path(run_dir, int(number))
  fault = _fault(path)
  if fault is not None:
    raise ValueError(f'checkpoint {path} cannot be used: {fault}.')
  return path


def discard_broken(run_dir: str,
                   say: Callable[[str], None] = lambda line: None
                   ) -> Optional[str]:
  """Renames checkpoints that cannot be used, and removes partial files.

  Only the sole writer to the run's directory may call this.

  Args:
    run_dir: a run's directory.
    say: called with a line for each that is renamed, and why.

  Returns:
    The newest checkpoint, which training resumes from, or None.
  """
  newest = None
  for number in _numbers(run_dir):
    path = _path(run_dir, number)
    if newest is not None and not os.path.exists(f'{path}.index'):
      _remove(path)  # Its writer was killed while writing it.
      continue
    fault = _fault(path)
    if fault is None:
      newest = newest or path
      continue
    for file in _files(path):
      folder, name = os.path.split(file)
      os.replace(file, os.path.join(folder, f'{_BROKEN}{name}'))
    say(f'checkpoint {os.path.basename(path)} is passed over, and renamed to '
        f'{_BROKEN}{os.path.basename(path)}: {fault}.')
  _remove_leftovers(run_dir)
  if newest is not None:
    try:
      _write_index(run_dir)
    except OSError as e:  # As on a full disk, which is no reason to stop.
      say(f'{directory(run_dir)} could not be tidied ({e}).')
  return newest


def _remove(path: str) -> None:
  """Removes a checkpoint as far as possible."""
  # The index first: without it, there is no checkpoint.
  for file in sorted(_files(path), reverse=True):
    with contextlib.suppress(OSError):
      os.remove(file)


def _remove_leftovers(run_dir: str) -> None:
  folder = directory(run_dir)
  if not os.path.isdir(folder):
    return
  for name in filter(_LEFTOVER.fullmatch, os.listdir(folder)):
    path = os.path.join(folder, name)
    if os.path.isdir(path):
      shutil.rmtree(path, ignore_errors=True)
    else:
      with contextlib.suppress(OSError):
        os.remove(path)


def _write_index(run_dir: str) -> None:
  """Writes the index for TensorFlow's own tools, such as `latest_checkpoint`."""
  numbers = _numbers(run_dir)[::-1]
  path = os.path.join(directory(run_dir), 'checkpoint')
  with open(f'{path}.new', 'w') as f:
    # Relative, so that a directory can be moved.
    f.write(f'model_checkpoint_path: "ckpt-{numbers[-1]}"\n')
    f.writelines(f'all_model_checkpoint_paths: "ckpt-{number}"\n'
                 for number in numbers)
  os.replace(f'{path}.new', path)


def check_space(run_dir: str, variable_bytes: int, trained_bytes: int) -> None:
  """Checks that there is room for the checkpoints of a run.

  That is room for those that are kept, and for one that is being written.

  Args:
    run_dir: the run's directory, which may already have checkpoints.
    variable_bytes: the size of all variables of the networks.
    trained_bytes: the size of the trained ones, which have two moments in the
      optimiser.

  Raises:
    ValueError: if there is not; in one line.
  """
  needed = (_KEPT + 1) * (variable_bytes + 2 * trained_bytes) + _SPARE_BYTES
  needed -= sum(os.path.getsize(file) for number in _numbers(run_dir)
                for file in _files(_path(run_dir, number)))
  free = shutil.disk_usage(run_dir).free
  if free < needed:
    raise ValueError(
        f'{run_dir} has {free / 1e6:,.1f} MB of disk left, and checkpoints need '
        f'{needed / 1e6:,.1f} MB; make room, or give another --run_dir.')


class Checkpoint:
  """Saves and restores the state of the learner and of the counter.

  The counter's state is one string of JSON, in a variable like the others, so that
  TensorFlow writes one shard, and retraces nothing at each save.
  """

  def __init__(self, learner: Mapping[str, Any],
               counter: Optional[core.Saveable] = None):
    """Makes a checkpoint.

    Args:
      learner: the learner's state or a part of it, such as its `actor_critic`;
        all of its variables have to exist.
      counter: the counter, or None to leave it out.
    """
    self._counter = counter
    self._progress = tf.Variable('', trainable=False)
    parts = {'learner': tf.train.Checkpoint(**learner)}
    if counter is not None:
      parts['progress'] = self._progress
    self._checkpoint = tf.train.Checkpoint(**parts)

  def write(self, path: str) -> None:
    """Writes the checkpoint; `path` gets suffixes."""
    if self._counter is not None:
      self._progress.assign(json.dumps(self._counter.save()))
    self._checkpoint.write(path)

  def restore(self, path: str) -> None:
    """Restores all of its parts.

    Args:
      path: of a whole checkpoint, as `latest` returns it.

    Raises:
      AssertionError: if something is not in the file.
    """
    self._checkpoint.read(
        path).assert_existing_objects_matched().expect_partial()
    if self._counter is not None:
      self._counter.restore(json.loads(self._progress.numpy()))


def progress(path: str) -> Mapping[str, Any]:
  """Returns the counter's state in a checkpoint; see `RunCounter.save`.

  Raises:
    ValueError: if it holds none; in one line.
  """
  key = 'progress/.ATTRIBUTES/VARIABLE_VALUE'
  if key not in dict(tf.train.list_variables(path)):
    raise ValueError(f'checkpoint {path} does not say how far its run had come: '
                     'it was written by another version of this program.')
  return json.loads(tf.train.load_variable(path, key))


class Saver:
  """Saves checkpoints, and deletes all but the newest three."""

  def __init__(self, checkpoint: Checkpoint, run_dir: str,
               period_minutes: float, variables: Iterable[tf.Variable] = ()):
    """Makes a saver, the only one that writes to the run's directory.

    Args:
      checkpoint: what is saved.
      run_dir: gets the folder `checkpoints`.
      period_minutes: time between two saves by `save_if_due`.
      variables: of the learner; nothing is saved unless they are finite.
    """
    self._checkpoint = checkpoint
    self._variables = list(variables)
    self._run_dir = run_dir
    os.makedirs(run_dir, exist_ok=True)
    self._directory = locks.Directory(run_dir)
    self._period_seconds = 60. * period_minutes
    self._tried_at = -float('inf')

  def save_if_due(self) -> None:
    """Saves if the last attempt is long enough ago, or there was none."""
    if time.monotonic() - self._tried_at >= self._period_seconds:
      self.save()

  def save(self) -> bool:
    """Saves, and tells whether it could; if not, as on a full disk, it warns.

    Raises:
      FloatingPointError: if the learner's variables are not finite.
    """
    for variable in self._variables:
      if variable.dtype.is_floating and not np.isfinite(variable.numpy()).all():
        raise FloatingPointError(
            f'{variable.name} is not finite, so no checkpoint is saved.')
    self._tried_at = time.monotonic()
    if self._directory.has_gone():  # What is there now may be another run's.
      print(f'learner: warning: no checkpoint could be saved ({self._run_dir} was '
            'removed or moved).', file=sys.stderr, flush=True)
      return False
    numbers = _numbers(self._run_dir)
    path = _path(self._run_dir, numbers[0] + 1 if numbers else 1)
    try:
      os.makedirs(directory(self._run_dir), exist_ok=True)
      self._checkpoint.write(path)
    except (OSError, tf.errors.OpError) as e:
      print(f'learner: warning: no checkpoint could be saved ({one_line(e)}); '
            'while training goes on, saving is tried again.', file=sys.stderr,
            flush=True)
      # The partial checkpoint may be what fills the disk.
      _remove(path)
      _remove_leftovers(self._run_dir)
      return False
    try:
      for number in numbers[_KEPT - 1:]:
        _remove(_path(self._run_dir, number))
      _write_index(self._run_dir)
    except OSError as e:
      print(f'learner: warning: {directory(self._run_dir)} could not be tidied '
            f'({e}).', file=sys.stderr, flush=True)
    return True


def check_matches(path: str, variables: Iterable[tf.Variable], key: str):
  """Checks that a checkpoint has the variables of a network.

  Args:
    path: of the checkpoint.
    variables: of the network, in any order.
    key: the network's name among the learner's state.

  Raises:
    ValueError: if shapes differ.
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
