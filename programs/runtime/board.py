"""Writes rows of progress to event files, for TensorBoard."""

import contextlib
import io
import json
import os
import socket
import time
from typing import Any, BinaryIO, Callable, Mapping, Optional

from acme.utils import loggers
import numpy as np
from PIL import Image
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins.histogram import summary as histogram_summary
from tensorboard.plugins.hparams import summary_v2 as hparams_summary
from tensorboard.plugins.text import summary as text_summary
from tensorboard.summary.writer import record_writer

from programs.runtime import records

# TensorBoard groups tags by the part before the slash.
_TAGS = {
    'episode_return_mean_100': 'return/mean_100',
    records.EVALUATION: 'return/evaluation',
    'episodes': 'return/episodes',
    'loss': 'loss/total',
    'policy_loss': 'loss/policy',
    'value_loss': 'loss/value',
    'reconstruction_loss': 'loss/reconstruction',
    'entropy': 'policy/entropy',
    'clip_fraction': 'policy/clip_fraction',
    'approximate_kl': 'policy/kl_to_behaviour',
    'rho_mean': 'policy/rho_mean',
    'rho_clipped_fraction': 'policy/rho_clipped_fraction',
    'policy_lag': 'policy/lag',
    'explained_variance': 'value/explained_variance',
    'gradient_norm': 'optimizer/gradient_norm',
    'learning_rate': 'optimizer/learning_rate',
    'skipped_updates': 'optimizer/skipped_updates',
    'learner_steps': 'optimizer/steps',
    'timesteps_per_second': 'rate/timesteps_per_second',
    'learner_timesteps_per_second': 'rate/learner_timesteps_per_second',
    'learner_wait_fraction': 'rate/learner_wait_fraction',
    'weight_pulls': 'rate/weight_pulls',
    'queue_fill': 'replay/queue_fill',
    'replay_fill': 'replay/replay_fill',
    'samples_per_insert': 'replay/samples_per_insert',
    'restarts': 'faults/restarts',
    'bad_numbers': 'faults/bad_numbers',
}
HISTOGRAM_TAG = 'return/of_100_episodes'
PICTURE_TAG = 'reconstruction/frames_beside_reconstructions'
# Rows between two histograms.
_HISTOGRAM_PERIOD = 6
_BUCKETS = 30


def scalars(row: loggers.LoggingData) -> dict[str, float]:
  """Returns the finite values of a row of progress by tag."""
  tags = {**_TAGS, **{name: f'own/{name}' for name in records.own_metrics(row)}}
  return {tag: float(row[name]) for name, tag in tags.items()
          if np.isfinite(row.get(name, np.nan))}


class Board(loggers.Logger):
  """Writes rows of progress to an event file, whose steps are timesteps.

  TensorBoard's own writer has a thread that ends when a disk is full, after which
  nothing takes rows. This one raises OSError, and begins a new file with the next
  row.
  """

  def __init__(self, run_dir: str,
               settings: Callable[[], Mapping[str, Any]] = dict):
    """Makes a logger; the first row creates the file.

    Args:
      run_dir: gets the file.
      settings: returns the run's settings, by section and name.
    """
    self._run_dir = run_dir
    self._settings = settings
    self._file: Optional[BinaryIO] = None
    self._num_rows = 0

  def write(self, data: loggers.LoggingData) -> None:
    step = int(data['timesteps'])
    values = [summary_pb2.Summary.Value(tag=tag, simple_value=value)
              for tag, value in scalars(data).items()]
    summaries = [summary_pb2.Summary(value=values)]
    returns = data.get(records.RETURNS)
    if returns and self._num_rows % _HISTOGRAM_PERIOD == 0:
      summaries.append(histogram_summary.histogram_pb(
          HISTOGRAM_TAG, np.asarray(returns), _BUCKETS))
    if records.PICTURE in data:
      summaries.append(_picture(data[records.PICTURE]))
    is_new = self._file is None
    file = self._file or self._begin()
    try:
      self._append(file, *(self._introduction(step) if is_new else ()), *(
          event_pb2.Event(wall_time=time.time(), step=step, summary=s)
          for s in summaries))
    except OSError:
      # The last record is incomplete, and nothing after it would be read.
      self._file = None
      file.close()
      if is_new:  # Or each row would leave a file while the disk is full.
        with contextlib.suppress(OSError):
          os.remove(file.name)
      raise
    self._file = file
    self._num_rows += 1

  def close(self) -> None:
    if self._file is not None:
      self._file.close()

  def _begin(self) -> BinaryIO:
    seconds, rest = divmod(time.time_ns(), 10**9)
    # TensorBoard reads files in the order of their names.
    name = (f'events.out.tfevents.{seconds:010}.{socket.gethostname()}.'
            f'{os.getpid()}.{rest:09}')
    return open(os.path.join(self._run_dir, name), 'xb', buffering=0)

  def _introduction(self, step: int) -> list[event_pb2.Event]:
    """Returns the events that begin a file."""
    settings = self._settings()
    return [
        event_pb2.Event(wall_time=time.time(), file_version='brain.Event:2'),
        # Steps from here on in an earlier file are from before a resumption.
        event_pb2.Event(wall_time=time.time(), step=step,
                        session_log=event_pb2.SessionLog(
                            status=event_pb2.SessionLog.START)),
        event_pb2.Event(wall_time=time.time(), step=step,
                        summary=text_summary.text_pb(
                            'configuration', _as_text(settings))),
        event_pb2.Event(wall_time=time.time(), step=step,
                        summary=hparams_summary.hparams_pb(
                            hyperparameters(settings),
                            trial_id=os.path.abspath(self._run_dir)))]

  @staticmethod
  def _append(file: BinaryIO, *events: event_pb2.Event) -> None:
    buffer = io.BytesIO()
    writer = record_writer.RecordWriter(buffer)
    for event in events:
      writer.write(event.SerializeToString())
    content = buffer.getvalue()
    if file.write(content) != len(content):
      raise OSError('the disk is full')


def _picture(png: bytes) -> summary_pb2.Summary:
  with Image.open(io.BytesIO(png)) as read:
    image = summary_pb2.Summary.Image(
        width=read.width, height=read.height, colorspace=len(read.getbands()),
        encoded_image_string=png)
  return summary_pb2.Summary(
      value=[summary_pb2.Summary.Value(tag=PICTURE_TAG, image=image)])


def _sections(settings: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
  return {name: section for name, section in settings.items()
          if isinstance(section, dict)}


def _as_text(settings: Mapping[str, Any]) -> str:
  """Returns settings as tables in Markdown."""
  lines = []
  for title, section in _sections(settings).items():
    lines += [f'### {title}', '', '| setting | value |', '| --- | --- |']
    lines += [f'| {name} | `{json.dumps(value)}` |'
              for name, value in section.items()]
    lines.append('')
  return '\n'.join(lines)


def hyperparameters(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the settings by which TensorBoard compares runs."""
  return {f'{title}.{name}': (value if isinstance(value, (bool, int, float, str))
                              else json.dumps(value))
          for title in ('environment', 'agent', 'run')
          for name, value in settings.get(title, {}).items()
          if name != 'run_dir'}
