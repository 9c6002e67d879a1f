"""Draws frames, traces, bars and histograms: what pictures are made of."""

import functools
from typing import Optional, Sequence

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

# Okabe and Ito's colours, which the colour-blind can tell apart.
BACKGROUND = (17, 19, 23)
PANE = (30, 33, 39)
INK = (236, 238, 241)
DIM = (150, 156, 165)
BLUE = (86, 180, 233)
ORANGE = (230, 159, 0)
GREEN = (0, 190, 140)
RED = (240, 110, 60)

_MOST_NAMES = 36  # Of actions.

Colour = tuple[int, int, int]
# Left, top, right and bottom, in pixels.
Box = tuple[int, int, int, int]
# The numbers that are drawn black and white.
Levels = tuple[float, float]

_BYTES: Levels = (0., 255.)
_USUAL_LEVELS: Sequence[Levels] = ((0., 1.), (-1., 1.), _BYTES)


@functools.lru_cache(maxsize=None)
def _font(size: int) -> ImageFont.FreeTypeFont:
  font = ImageFont.load_default(size)
  assert isinstance(font, ImageFont.FreeTypeFont)
  return font


def levels(observations: np.ndarray, before: Optional[Levels] = None) -> Levels:
  """Returns the levels of pixels of any type.

  Those of floats may be anything: this is the narrowest usual range that holds them,
  or else their own.

  Args:
    observations: [...].
    before: the levels of earlier ones, which are to stay in range.
  """
  if observations.dtype == np.uint8:
    return _BYTES
  low, high = float(observations.min()), float(observations.max())
  if before is not None:
    low, high = min(low, before[0]), max(high, before[1])
  for usual in _USUAL_LEVELS:
    if usual[0] <= low and high <= usual[1]:
      return usual
  return low, high


def _image_of(pixels: np.ndarray, black_and_white: Levels) -> Image.Image:
  black, white = black_and_white
  pixels = (np.asarray(pixels, float) - black) * 255. / max(white - black, 1e-9)
  pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
  if pixels.ndim == 3 and pixels.shape[-1] != 3:
    pixels = pixels[..., -1]
  return Image.fromarray(pixels).convert('RGB')


class Canvas:
  """An image to draw on.

  Attributes:
    image: the drawing so far.
  """

  def __init__(self, width: int, height: int):
    self.image = Image.new('RGB', (width, height), BACKGROUND)
    self._draw = ImageDraw.Draw(self.image)

  def text(self, x: int, y: int, text: str, size: int = 14,
           colour: Colour = INK, anchor: str = 'la') -> None:
    """Writes a line; `anchor` is Pillow's, by default its top left corner."""
    self._draw.text((x, y), text, colour, _font(size), anchor)

  def rectangle(self, box: Box, colour: Colour = PANE) -> None:
    """Fills a box; draws nothing if it has no width or height."""
    if box[0] < box[2] and box[1] < box[3]:
      self._draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), colour)

  def frame(self, box: Box, pixels: np.ndarray,
            black_and_white: Levels = _BYTES) -> None:
    """Draws pixels in the middle of a box, enlarged by a whole factor.

    Args:
      box: where to draw.
      pixels: [H, W] or [H, W, C]; C = 3 is RGB, of any other the last is drawn.
      black_and_white: their levels.
    """
    image = _image_of(pixels, black_and_white)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min(width / image.width, height / image.height)
    if scale >= 1:
      size = (image.width * int(scale), image.height * int(scale))
      image = image.resize(size, Image.Resampling.NEAREST)
    else:
      size = (max(int(image.width * scale), 1), max(int(image.height * scale), 1))
      image = image.resize(size, Image.Resampling.LANCZOS)
    self.image.paste(image, (box[0] + (width - image.width) // 2,
                             box[1] + (height - image.height) // 2))

  def traces(self, box: Box, series: Sequence[tuple[np.ndarray, Colour]],
             label: str = '', length: Optional[int] = None,
             cursor: Optional[int] = None) -> None:
    """Draws lines over time.

    Args:
      box: where to draw.
      series: numbers [N] and a colour, for each line.
      label: what the numbers are.
      length: the N that fills the box; by default the longest line's.
      cursor: the position to mark.
    """
    self.rectangle(box)
    left, top, right, bottom = (box[0] + 6, box[1] + 20, box[2] - 6, box[3] - 6)
    values = np.concatenate([np.asarray(line, float) for line, _ in series])
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if values.size else (0., 1.)
    self.text(box[0] + 6, box[1] + 4, label, 12, DIM)
    self.text(box[2] - 6, box[1] + 4, f'{low:.3g} to {high:.3g}', 12, DIM, 'ra')
    if high - low < 1e-9:
      low, high = low - 1., high + 1.
    length = length or max(len(line) for line, _ in series)
    xs = left + (right - left) * np.arange(length) / max(length - 1, 1)
    if low < 0 < high:
      y = bottom - (bottom - top) * (0 - low) / (high - low)
      self._draw.line([(left, y), (right, y)], (70, 75, 84))
    if cursor is not None:
      self._draw.line([(xs[cursor], top), (xs[cursor], bottom)], DIM)
    for line, colour in series:
      ys = bottom - (bottom - top) * (np.asarray(line, float) - low) / (high - low)
      points = [(x, y) for x, y in zip(xs, ys) if np.isfinite(y)]
      if len(points) > 1:
        self._draw.line(points, colour, 2)

  def grid_of_traces(self, box: Box,
                     series: Sequence[Sequence[tuple[np.ndarray, Colour]]],
                     labels: Sequence[str], length: Optional[int] = None,
                     cursor: Optional[int] = None) -> None:
    """Draws a grid of traces; see `traces`."""
    columns = 1 + (len(series) - 1) // 6
    rows = -(-len(series) // columns)
    width = (box[2] - box[0] + 6) // columns
    height = (box[3] - box[1] + 6) // rows
    for i, (lines, label) in enumerate(zip(series, labels)):
      x = box[0] + width * (i // rows)
      y = box[1] + height * (i % rows)
      self.traces((x, y, x + width - 6, y + height - 6), lines, label, length,
                  cursor)

  def actions(self, box: Box, names: Sequence[str], probabilities: np.ndarray,
              taken: Optional[int]) -> None:
    """Draws a bar for each action; the taken one is highlighted.

    Bars are horizontal, with names, or vertical if there is no room for names.
    """
    if len(names) > _MOST_NAMES:
      self.columns(box, probabilities, taken)
      return
    columns = min(1 + (len(names) - 1) // 9, 3)
    rows = -(-len(names) // columns)
    width = (box[2] - box[0]) // columns
    height = min((box[3] - box[1]) // rows, 26)
    for i, (name, probability) in enumerate(zip(names, probabilities)):
      x = box[0] + width * (i // rows)
      y = box[1] + height * (i % rows)
      bar = (x + 112, y + 3, x + width - 56, y + height - 3)
      colour = ORANGE if i == taken else BLUE
      name = name if len(name) <= 14 else f'{name[:13]}…'
      middle = y + height // 2
      self.text(x + 106, middle, name, 14, INK if i == taken else DIM, 'rm')
      self.rectangle(bar)
      filled = round((bar[2] - bar[0]) * float(probability))
      if filled:
        self.rectangle((bar[0], bar[1], bar[0] + filled, bar[3]), colour)
      self.text(bar[2] + 6, middle, f'{probability:.0%}', 14,
                INK if i == taken else DIM, 'lm')

  def columns(self, box: Box, heights: np.ndarray,
              marked: Optional[int] = None) -> None:
    """Draws vertical bars side by side, with heights [N] from 0 to 1."""
    left, top, right, bottom = box
    edges = np.rint(np.linspace(left, right, len(heights) + 1)).astype(int)
    for i, height in enumerate(heights):
      gap = 2 if edges[i + 1] - edges[i] > 4 else 0
      colour = ORANGE if i == marked else BLUE
      self.rectangle((edges[i], top, edges[i + 1] - gap, bottom))
      rise = round((bottom - top) * float(height))
      if rise:
        self.rectangle((edges[i], bottom - rise, edges[i + 1] - gap, bottom), colour)

  def histogram(self, box: Box, values: np.ndarray, title: str, unit: str) -> None:
    """Draws a histogram of values.

    Args:
      box: where to draw.
      values: numbers [N].
      title: what they are.
      unit: their unit, written below the axis.
    """
    self.text(box[0], box[1], title, 18)
    self.text(box[0], box[1] + 26,
              f'{values.size:,} of them, median {np.median(values):,.4g}, '
              f'mean {values.mean():,.4g}', 14, DIM)
    plot = (box[0], box[1] + 72, box[2], box[3] - 44)
    counts, _ = np.histogram(values, _bin_edges(values))
    self.text(plot[0], plot[1] - 20, f'{counts.max():,}', 12, DIM)
    self.columns(plot, counts / counts.max())
    for x, edge, anchor in ((plot[0], values.min(), 'la'),
                            (plot[2], values.max(), 'ra')):
      self.text(x, plot[3] + 6, f'{edge:,.4g}', 12, DIM, anchor)
    self.text((plot[0] + plot[2]) // 2, plot[3] + 6, unit, 14, INK, 'ma')


def _bin_edges(values: np.ndarray) -> np.ndarray:
  """Returns the edges of at most about 30 bins.

  If all values are integers, each bin covers equally many.
  """
  low, high = float(values.min()), float(values.max())
  if np.all(values == np.rint(values)):
    each = max(-(-int(high - low + 1) // 30), 1)
    return np.arange(low - 0.5, high + 0.5 + each, each)
  if low == high:
    return np.array([low - 0.5, low + 0.5])
  return np.linspace(low, high, 31)
