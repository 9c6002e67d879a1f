"""Event files, read by TensorBoard's own reader."""

import io
import math
import os
import pathlib

import numpy as np
from PIL import Image
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from programs.runtime import board
from programs.runtime import records
from tests import disks

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = {'environment': {'game': 'pong'},
            'agent': {'learning_rate': 7e-4, 'layers': [1, 2], 'lstm': None},
            'run': {'run_dir': '/there', 'seed': 3}, 'commit': 'abc'}
PIXELS = np.arange(6, dtype=np.uint8).reshape(2, 3)
with io.BytesIO() as _file:
  Image.fromarray(PIXELS).save(_file, 'png')
  PNG = _file.getvalue()


def row(timesteps, **values):
  return {**{name: float(i) for i, name in enumerate(records.PROGRESS_COLUMNS)},
          'timesteps': timesteps, **values}


def read(run_dir):
  events = event_accumulator.EventAccumulator(str(run_dir))
  return events.Reload()


def points(events, tag):
  return [(event.step, event.value) for event in events.Scalars(tag)]


def test_every_column_is_a_scalar_in_a_group_whose_steps_are_timesteps(tmp_path):
  writer = board.Board(str(tmp_path))
  writer.write(row(500, loss=0.25, **{records.EVALUATION: 9.}))
  writer.write(row(900, loss=math.nan, gradient_norm=2.))
  events = read(tmp_path)
  tags = events.Tags()['scalars']
  # The axes are timesteps and wall time; every other column is there.
  assert len(tags) == len(records.PROGRESS_COLUMNS) - 2 + 1
  assert all(tag.count('/') == 1 for tag in tags)
  assert points(events, 'loss/total') == [(500, 0.25)]
  assert points(events, 'optimizer/gradient_norm') == [
      (500, records.PROGRESS_COLUMNS.index('gradient_norm')), (900, 2.)]
  assert points(events, 'return/evaluation') == [(500, 9.)]


def test_metrics_of_ones_own_are_a_group_of_theirs(tmp_path):
  writer = board.Board(str(tmp_path))
  writer.write(row(500, my_loss=0.25))
  writer.write(row(900, my_loss=math.nan))
  assert points(read(tmp_path), 'own/my_loss') == [(500, 0.25)]


def test_all_figures_are_explained(tmp_path):
  board.Board(str(tmp_path)).write(row(500, **{
      records.EVALUATION: 9., records.RETURNS: [1.], records.PICTURE: PNG}))
  tags = read(tmp_path).Tags()
  told = (ROOT / 'docs' / 'metrics.md').read_text()
  for name in {*records.PROGRESS_COLUMNS, *tags['scalars'], *tags['images'],
               *tags['tensors']} - {'timesteps', 'walltime_seconds', 'configuration',
                                    '_hparams_/session_start_info'}:
    assert f'| `{name}` |' in told, name


def test_returns_are_histograms_now_and_then(tmp_path):
  writer = board.Board(str(tmp_path))
  for i in range(7):
    writer.write(row(i, **{records.RETURNS: [-21., -21., 3.]}))
  first, second = read(tmp_path).Tensors('return/of_100_episodes')
  assert (first.step, second.step) == (0, 6)
  buckets = tensor_util.make_ndarray(first.tensor_proto)
  assert buckets[0, 0] == -21 and buckets[-1, 1] == 3
  assert buckets[0, 2] == 2 and buckets[-1, 2] == 1 and buckets[:, 2].sum() == 3


def test_pictures_and_settings_are_there(tmp_path):
  writer = board.Board(str(tmp_path), lambda: SETTINGS)
  writer.write(row(5, **{records.PICTURE: PNG}))
  events = read(tmp_path)
  image, = events.Images('reconstruction/frames_beside_reconstructions')
  assert (image.width, image.height) == (3, 2)
  with Image.open(io.BytesIO(image.encoded_image_string)) as decoded:
    np.testing.assert_array_equal(decoded, PIXELS)
  text, = tensor_util.make_ndarray(
      events.Tensors('configuration')[0].tensor_proto).ravel()
  assert '| learning_rate | `0.0007` |' in text.decode()
  hparams = events.summary_metadata['_hparams_/session_start_info']
  content = hparams.plugin_data.content
  assert b'agent.learning_rate' in content and b'/there' not in content


def test_a_resumed_run_takes_the_place_of_what_was_after_its_checkpoint(tmp_path):
  before, after = (board.Board(str(tmp_path)) for _ in range(2))
  for timesteps in (100, 200, 300):
    before.write(row(timesteps, loss=1.))
  after.write(row(200, loss=2.))
  assert points(read(tmp_path), 'loss/total') == [(100, 1.), (200, 2.)]


def test_a_full_disk_is_an_error_and_later_rows_go_to_a_new_file(tmp_path):
  writer = board.Board(str(tmp_path))
  writer.write(row(1, loss=1.))
  with disks.full(200):
    for timesteps in (2, 3):
      with pytest.raises(OSError):
        writer.write(row(timesteps, loss=1.))
  assert len(os.listdir(tmp_path)) == 1
  writer.write(row(4, loss=4.))
  assert points(read(tmp_path), 'loss/total') == [(1, 1.), (4, 4.)]
  assert len(os.listdir(tmp_path)) == 2
