"""Copies what a Reverb server holds, without taking anything from it.

A sample would count towards the rate limiter, and one from a queue would be
lost to the learner. So the server is asked for one of Reverb's checkpoints of its
tables, and this process loads it into a server of its own, from which it takes the
items one by one.
"""

import contextlib
import dataclasses
import os
import shutil
import socket
import tempfile
from typing import Any, Iterator, Sequence

import numpy as np
import reverb
from reverb.cc import schema_pb2
from reverb.cc.checkpointing import checkpoint_pb2
from reverb.platform.default import checkpointers
import tensorflow as tf

# How Reverb compresses the files of a checkpoint.
_COMPRESSION = 'ZLIB'
_TABLES = 'tables.tfrecord'
_ITEMS = 'items.tfrecord'


@dataclasses.dataclass(frozen=True)
class Item:
  """An item of a table.

  Attributes:
    table: its table.
    key: identifies it there.
    priority: for sampling it.
    times_sampled: so far.
    inserted_at: when, in seconds since 1970.
    columns: by name, [rows, ...].
  """
  table: str
  key: int
  priority: float
  times_sampled: int
  inserted_at: float
  columns: dict[str, np.ndarray]


def take(client: reverb.Client) -> list[Item]:
  """Returns all items of a server, which must be on this machine.

  Args:
    client: of the server, whose tables have signatures.

  Returns:
    The items of all its tables, oldest first.

  Raises:
    ValueError: if they cannot be read; the message is one line.
  """
  try:
    path = client.checkpoint()
  except (reverb.errors.ReverbError, RuntimeError) as e:  # Depends on the cause.
    raise ValueError(f'the server at {client.server_address} saves no snapshot '
                     f'({" ".join(str(e).split())}).') from None
  if not os.access(os.path.join(path, _TABLES), os.R_OK):
    raise ValueError(
        f'the server at {client.server_address} has left its snapshot in {path}, '
        f'which cannot be read on {socket.gethostname()}; start this command as '
        'the same user on its machine.')
  try:
    with tempfile.TemporaryDirectory() as folder:
      return sorted(_items(path, folder), key=lambda item: item.inserted_at)
  finally:
    shutil.rmtree(path, ignore_errors=True)


def _items(path: str, folder: str) -> Iterator[Item]:
  """Yields the items of a checkpoint, using an empty folder for a copy of it."""
  copy = os.path.join(folder, os.path.basename(path))
  os.mkdir(copy)
  for name in set(os.listdir(path)) - {_TABLES, _ITEMS}:
    os.symlink(os.path.join(path, name), os.path.join(copy, name))
  tables = _read(path, _TABLES, checkpoint_pb2.PriorityTableCheckpoint)
  items = _read(path, _ITEMS, schema_pb2.PrioritizedItem)
  times_sampled = {item.key: item.times_sampled for item in items}
  # In the copy, each table gives every item once, even if it was sampled before.
  for table in tables:
    table.max_times_sampled = 1
    table.sampler.Clear()
    table.sampler.fifo = True
    table.rate_limiter.min_size_to_sample = 1
    table.rate_limiter.min_diff = -float(np.finfo(np.float64).max)
  for item in items:
    item.times_sampled = 0
  held = {item.key: item for item in items}
  _write(copy, _TABLES, tables)
  _write(copy, _ITEMS, items)
  with _quiet():
    server = reverb.Server(
        [_table(table.table_name) for table in tables],
        checkpointer=checkpointers.DefaultCheckpointer(folder))
  try:
    client = reverb.Client(f'localhost:{server.port}')
    with _quiet():
      info = client.server_info()
    for name, table in info.items():
      if not table.current_size:
        continue
      if not isinstance(table.signature, dict):
        raise ValueError(f"table '{name}' has no signature of columns.")
      with _quiet():
        samples = list(client.sample(name, table.current_size,
                                     emit_timesteps=False))
      for sample in samples:
        item = held[sample.info.key]
        yield Item(name, item.key, item.priority, times_sampled[item.key],
                   item.inserted_at.seconds + item.inserted_at.nanos * 1e-9,
                   # A dict's columns are in the order of their names.
                   dict(zip(sorted(table.signature), sample.data)))
  finally:
    with _quiet():
      server.stop()


def _table(name: str) -> reverb.Table:
  # Everything but the name comes from the checkpoint.
  return reverb.Table(name, reverb.selectors.Fifo(), reverb.selectors.Fifo(), 1,
                      reverb.rate_limiters.MinSize(1))


def _read(folder: str, name: str, kind: Any) -> list[Any]:
  """Returns the messages in a checkpoint's file."""
  return [kind.FromString(record) for record in tf.data.TFRecordDataset(
      os.path.join(folder, name), _COMPRESSION).as_numpy_iterator()]


def _write(folder: str, name: str, messages: Sequence[Any]) -> None:
  with tf.io.TFRecordWriter(os.path.join(folder, name), _COMPRESSION) as writer:
    for message in messages:
      writer.write(message.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Discards what Reverb's own code prints to standard error."""
  kept = os.dup(2)
  nowhere = os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(nowhere, 2)
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)
