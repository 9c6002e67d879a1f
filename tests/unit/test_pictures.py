"""What pictures are made of, pixel by pixel."""

from hypothesis import given
from hypothesis import strategies as st
import imageio.v2 as imageio
import numpy as np
import pytest

from launch.views import pictures
from launch.views import sheets
from launch.views import thoughts

RNG = np.random.default_rng(0)


def has(picture, pixels, scale):
  """Tells whether pixels stand in a picture, enlarged by a whole number."""
  enlarged = np.kron(pixels, np.ones((scale, scale), np.uint8))
  height, width = enlarged.shape
  grey = np.where((picture == picture[..., :1]).all(-1), picture[..., 0], 0)
  windows = np.lib.stride_tricks.sliding_window_view(grey, 3 * scale, axis=1)
  # The first row of the middle of it, and then all of it.
  probe = enlarged[height // 2, :3 * scale]
  for y, x in np.argwhere((windows == probe).all(-1)):
    top = y - height // 2
    if top >= 0 and np.array_equal(grey[top:top + height, x:x + width], enlarged):
      return True
  return False


@pytest.mark.parametrize('shape, scale', [
    ((10, 20), 5), ((10, 20, 1), 5), ((10, 20, 4), 5), ((33, 50), 2)])
def test_frames_are_enlarged_by_whole_numbers_into_the_middle(shape, scale):
  canvas = pictures.Canvas(120, 90)
  pixels = RNG.integers(0, 256, shape).astype(float)
  canvas.frame((10, 5, 112, 80), pixels)
  height, width = (scale * side for side in shape[:2])
  top, left = 5 + (75 - height) // 2, 10 + (102 - width) // 2
  drawn = np.asarray(canvas.image)
  newest = pixels if len(shape) == 2 else pixels[..., -1]
  np.testing.assert_array_equal(
      drawn[top:top + height, left:left + width, 1],
      np.kron(newest, np.ones((scale, scale))))
  outside = np.ones(drawn.shape[:2], bool)
  outside[top:top + height, left:left + width] = False
  assert (drawn[outside] == pictures.BACKGROUND).all()


@pytest.mark.parametrize('pixels, drawn', [
    (np.array([[0, 1, 255]], np.uint8), [0, 1, 255]),
    (np.array([[0., 0.2, 1.]]), [0, 51, 255]),
    (np.array([[-1., 0.2, 1.]]), [0, 153, 255]),
    (np.array([[0., 51., 2.]]), [0, 51, 2]),
    (np.array([[1000., 1400., 1500.]]), [0, 204, 255]),
    (np.array([[-7., -7., -7.]]), [0, 0, 0])])
def test_floats_are_drawn_from_black_to_white_whatever_their_range(pixels, drawn):
  canvas = pictures.Canvas(3, 1)
  canvas.frame((0, 0, 3, 1), pixels, pictures.levels(pixels))
  np.testing.assert_array_equal(np.asarray(canvas.image)[0, :, 0], drawn)


def test_colours_stay_and_large_frames_shrink():
  canvas = pictures.Canvas(40, 40)
  canvas.frame((0, 0, 40, 40), np.full((80, 160, 3), (10, 200, 30)))
  drawn = np.asarray(canvas.image)
  assert (drawn[10:30] == (10, 200, 30)).all()
  assert (drawn[:10] == pictures.BACKGROUND).all()


def test_columns_are_as_high_as_their_numbers():
  canvas = pictures.Canvas(90, 100)
  canvas.columns((0, 0, 90, 100), np.array([0., 0.25, 1.]), marked=2)
  drawn = np.asarray(canvas.image)
  assert [(drawn[:, x] == colour).all(-1).sum() for x, colour in (
      (10, pictures.BLUE), (40, pictures.BLUE), (70, pictures.ORANGE))] == [
          0, 25, 100]


@given(st.lists(st.integers(-10**6, 10**6), min_size=1, max_size=50))
def test_bins_hold_as_many_integers_each_and_all_of_them(values):
  edges = pictures._bin_edges(np.array(values, float))
  assert len(edges) <= 32
  widths = np.diff(edges)
  assert (widths == widths[0]).all() and widths[0] == round(widths[0])
  assert (np.abs(edges % 1) == 0.5).all()
  counts, _ = np.histogram(values, edges)
  assert counts.sum() == len(values)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_bins_hold_all_numbers(values):
  counts, _ = np.histogram(values, pictures._bin_edges(np.array(values)))
  assert counts.sum() == len(values)


@pytest.mark.parametrize('num_actions', [1, 18, 28, 36, 37, 200])
def test_any_number_of_actions_is_drawn(num_actions):
  canvas = pictures.Canvas(616, 180)
  names = [f'action {i}' for i in range(num_actions)]
  probabilities = np.array([0.5, *[0.5 / (num_actions - 1)] * (num_actions - 1)]
                           if num_actions > 1 else [1.])
  canvas.actions((0, 0, 616, 180), names, probabilities, 0)
  # The bar of the one that was taken, beside its name and number.
  assert (np.asarray(canvas.image) == pictures.ORANGE).all(axis=-1).sum() > 60
  sheet = sheets.contact_sheet(
      trajectory(RNG.normal(size=(33, 3)).astype(np.float32), None, num_actions),
      names, 1)
  for drawn in (np.asarray(canvas.image), sheet):
    assert (drawn != pictures.BACKGROUND).any(axis=-1).mean() > 0.02


def trajectory(observation, reconstructions, num_actions=4):
  num_steps = len(observation) - 1
  probabilities = RNG.dirichlet(np.ones(num_actions), num_steps + 1)
  return sheets.Trajectory(
      'a title', 'notes', observation, RNG.integers(0, num_actions, num_steps),
      np.array([0., 1., -1.] * num_steps)[:num_steps], np.ones(num_steps),
      np.ones(num_steps, bool), probabilities[:-1],
      thoughts.Thoughts(probabilities, np.zeros(num_steps + 1), reconstructions))


NAMES = ['noop', 'fire', 'up', 'down']


def test_a_contact_sheet_has_each_frame_and_its_reconstruction():
  frames = RNG.integers(0, 256, (6, 42, 42, 4), np.uint8)
  reconstructions = RNG.integers(0, 256, (6, 42, 42, 1)).astype(np.float32)
  sheet = sheets.contact_sheet(trajectory(frames, reconstructions), NAMES, 4)
  for t in range(6):
    assert has(sheet, frames[t, ..., -1], 2), t
    assert has(sheet, reconstructions[t, ..., 0].astype(np.uint8), 2), t
  assert not has(sheet, frames[0, ..., 0], 2)
  without = sheets.contact_sheet(trajectory(frames, None), NAMES, 4)
  assert has(without, frames[3, ..., -1], 2)


def test_gifs_have_a_frame_for_each_timestep(tmp_path):
  frames = RNG.integers(0, 256, (4, 42, 42, 4), np.uint8)
  vectors = RNG.normal(size=(4, 3)).astype(np.float32)
  for name, shown, frame_stack in (('pixels', frames, 4), ('vectors', vectors, 1)):
    path = str(tmp_path / f'{name}.gif')
    sheets.write_gif(path, trajectory(shown, None), NAMES, frame_stack)
    assert len(imageio.mimread(path)) == 3


def test_vectors_are_traces_that_lie_where_the_numbers_are():
  canvas = pictures.Canvas(200, 126)
  canvas.traces((0, 0, 200, 126), [(np.linspace(-1, 3, 20), pictures.BLUE)], 'x')
  drawn = (np.asarray(canvas.image) == pictures.BLUE).all(-1)
  # From the lower left to the upper right, inside the margins.
  for x in (10, 60, 110, 160, 190):
    y = 120 - 100 * (x - 6) / 188
    assert abs(np.argwhere(drawn[:, x]).mean() - y) < 2
