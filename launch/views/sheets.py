"""Draws trajectories of the replay: contact sheets, GIFs and histograms."""

import dataclasses
from typing import Any, Optional, Sequence

import imageio.v2 as imageio
import numpy as np

from launch.views import panels
from launch.views import pictures
from launch.views import thoughts as thoughts_lib

_COLUMNS = 8
_MARGIN = 20
_GAP = 4
_CELL = 84  # Pixels of a frame, at least.
_HEAD = 100  # Height of the text above all.
_GIF_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Trajectory:
  """A trajectory of T timesteps, and what is known about it.

  Attributes:
    title: what it is, in one line.
    notes: more about it, in one line.
    observation: [T + 1, ...]; the last is bootstrapped from.
    action: [T].
    reward: [T].
    discount: [T].
    mask: [T] bool.
    behaviour: [T, A], the action probabilities when acting.
    thoughts: a checkpoint's, about the observations; None without a checkpoint.
  """
  title: str
  notes: str
  observation: np.ndarray
  action: np.ndarray
  reward: np.ndarray
  discount: np.ndarray
  mask: np.ndarray
  behaviour: np.ndarray
  thoughts: Optional[thoughts_lib.Thoughts] = None

  @property
  def is_vectors(self) -> bool:
    return self.observation.ndim == 2

  def reconstruction(self, t: int) -> Optional[np.ndarray]:
    if self.thoughts is None or self.thoughts.reconstructions is None:
      return None
    return self.thoughts.reconstructions[t]


_Marks = Sequence[tuple[str, pictures.Colour]]


def _marks(trajectory: Trajectory, t: int) -> _Marks:
  """Returns reward, discount and mask as texts; unusual ones have a colour."""
  reward, discount = float(trajectory.reward[t]), float(trajectory.discount[t])
  mask = bool(trajectory.mask[t])
  return [
      (f'r {reward:+.3g}' if reward else 'r 0',
       pictures.GREEN if reward > 0 else pictures.RED if reward < 0
       else pictures.DIM),
      (f'd {discount:g}', pictures.DIM if discount else pictures.ORANGE),
      (f'm {mask:d}', pictures.DIM if mask else pictures.ORANGE)]


def contact_sheet(trajectory: Trajectory, action_names: Sequence[str],
                  frame_stack: int) -> np.ndarray:
  """Draws all timesteps of a trajectory.

  Args:
    trajectory: what to draw.
    action_names: the name of each action.
    frame_stack: how many channels of an observation are frames; of several, only
      the newest is drawn.

  Returns:
    A picture [height, width, 3] uint8.
  """
  if trajectory.is_vectors:
    return _vector_sheet(trajectory, action_names)
  num_cells = len(trajectory.observation)
  height, width = trajectory.observation.shape[1:3]
  scale = max(round(_CELL / max(height, width)), 1)
  shown = [min(side * scale, 2 * _CELL) for side in (height, width)]
  pictures_a_cell = 1 if trajectory.reconstruction(0) is None else 2
  cell = (max(pictures_a_cell * (shown[1] + _GAP) - _GAP, 150), shown[0] + 78)
  rows = -(-num_cells // _COLUMNS)
  canvas = pictures.Canvas(
      2 * _MARGIN + _COLUMNS * (cell[0] + 16) - 16,
      2 * _MARGIN + _HEAD + rows * (cell[1] + 18) - 18)
  _head(canvas, trajectory, 'newest frame' + (
      ', and its reconstruction' if pictures_a_cell == 2 else ''), action_names)
  levels = pictures.levels(trajectory.observation)
  for t in range(num_cells):
    x = _MARGIN + (t % _COLUMNS) * (cell[0] + 16)
    y = _MARGIN + _HEAD + (t // _COLUMNS) * (cell[1] + 18)
    newest = trajectory.observation[t]
    if frame_stack > 1:
      newest = newest[..., -1]
    canvas.frame((x, y + 18, x + shown[1], y + 18 + shown[0]), newest, levels)
    reconstruction = trajectory.reconstruction(t)
    if reconstruction is not None:
      beside = x + shown[1] + _GAP
      canvas.frame((beside, y + 18, beside + shown[1], y + 18 + shown[0]),
                   reconstruction, levels)
    _cell_notes(canvas, trajectory, t, action_names,
                (x, y, x + cell[0], y + cell[1]), y + 18 + shown[0])
  return np.asarray(canvas.image)


def _cell_notes(canvas: pictures.Canvas, trajectory: Trajectory, t: int,
                action_names: Sequence[str], box: pictures.Box,
                below: int) -> None:
  left, top, right, bottom = box
  canvas.text(left, top, f't {t}', 13, pictures.DIM)
  if t == len(trajectory.action):
    canvas.text(right, top, 'bootstrapped from', 13, pictures.DIM, 'ra')
    return
  action = int(trajectory.action[t])
  chance = trajectory.behaviour[t, action]
  if trajectory.mask[t]:
    canvas.text(right, top, f'{action_names[action]} {chance:.0%}', 13,
                pictures.INK, 'ra')
  else:
    canvas.text(right, top, 'reset', 13, pictures.ORANGE, 'ra')
  x = left
  for text, colour in _marks(trajectory, t):
    canvas.text(x, below + 4, text, 13, colour)
    x += (right - left) // 3
  canvas.columns((left, below + 24, right, bottom), trajectory.behaviour[t],
                 action if trajectory.mask[t] else None)


def _head(canvas: pictures.Canvas, trajectory: Trajectory, shown: str,
          action_names: Sequence[str]) -> None:
  canvas.text(_MARGIN, _MARGIN - 4, trajectory.title, 20)
  canvas.text(_MARGIN, _MARGIN + 24, trajectory.notes, 14, pictures.DIM)
  canvas.text(_MARGIN, _MARGIN + 46, f'{shown}; the action taken and its '
              'probability; reward r, discount d, mask m', 14, pictures.DIM)
  canvas.text(_MARGIN, _MARGIN + 64, 'bars: behaviour probabilities of '
              f'{", ".join(action_names)}', 14, pictures.DIM)


def _vector_sheet(trajectory: Trajectory,
                  action_names: Sequence[str]) -> np.ndarray:
  num_steps, size = len(trajectory.action), trajectory.observation.shape[1]
  width = 1200
  traces = 20 + 110 * min(size, 6)
  canvas = pictures.Canvas(width, 2 * _MARGIN + _HEAD + traces + 14 + 3 * 96 + 160)
  decoded = trajectory.thoughts.reconstructions if trajectory.thoughts else None
  _head(canvas, trajectory, 'observations' + (
      '' if decoded is None else ', and their reconstructions'), action_names)
  left, right = _MARGIN, width - _MARGIN
  y = _MARGIN + _HEAD
  panels.draw_vectors(canvas, (left, y, right, y + traces), panels.Moment(
      trajectory.observation[-1], None, trajectory.behaviour[-1], None,
      np.zeros(1), trajectory.observation, decoded), num_steps + 1)
  y += traces + 14
  for name, line in (('reward', trajectory.reward),
                     ('discount', trajectory.discount),
                     ('mask', trajectory.mask)):
    canvas.traces((left, y, right, y + 82), [(line, pictures.BLUE)], name,
                  num_steps + 1)
    y += 96
  canvas.text(left, y, 'behaviour probabilities, and the action taken', 14,
              pictures.DIM)
  y += 24
  edges = np.rint(np.linspace(left, right, num_steps + 2)).astype(int)
  for t in range(num_steps):
    action = int(trajectory.action[t])
    canvas.columns((edges[t], y, edges[t + 1] - 4, y + 90),
                   trajectory.behaviour[t], action if trajectory.mask[t] else None)
    canvas.text((edges[t] + edges[t + 1]) // 2, y + 94, str(action), 12,
                pictures.INK if trajectory.mask[t] else pictures.DIM, 'ma')
  return np.asarray(canvas.image)


def write_gif(path: str, trajectory: Trajectory, action_names: Sequence[str],
              frame_stack: int) -> None:
  """Writes a trajectory as a GIF, with one frame per timestep."""
  frames: list[Any] = []
  num_steps = len(trajectory.action)
  thoughts = trajectory.thoughts
  levels = pictures.levels(trajectory.observation)
  for t in range(num_steps):
    canvas = pictures.Canvas(panels.WIDTH + 2 * _MARGIN, panels.HEIGHT + 90)
    canvas.text(_MARGIN, 10, trajectory.title, 16)
    canvas.text(_MARGIN, 36, f't {t} of {num_steps}', 16)
    x = _MARGIN + 130
    for text, colour in _marks(trajectory, t):
      canvas.text(x, 36, text, 16, colour)
      x += 90
    vectors = trajectory.observation[:t + 1] if trajectory.is_vectors else None
    decoded = None
    if vectors is not None and thoughts and thoughts.reconstructions is not None:
      decoded = thoughts.reconstructions[:t + 1]
    panels.draw(canvas, _MARGIN, 74, panels.Moment(
        trajectory.observation[t], trajectory.reconstruction(t),
        trajectory.behaviour[t],
        int(trajectory.action[t]) if trajectory.mask[t] else None,
        thoughts.values[:t + 1] if thoughts else np.full(1, np.nan),
        vectors, decoded, levels), action_names, frame_stack, num_steps)
    frames.append(np.asarray(canvas.image))
  imageio.mimsave(path, frames, duration=1000 * _GIF_SECONDS, loop=0)


def histograms(ages: np.ndarray, priorities: np.ndarray,
               title: str) -> np.ndarray:
  """Draws two histograms.

  Args:
    ages: of timesteps, in learner steps.
    priorities: of items.
    title: what the histograms are about.

  Returns:
    A picture [height, width, 3] uint8.
  """
  canvas = pictures.Canvas(1100, 440)
  canvas.text(_MARGIN, 14, f'{title[0].upper()}{title[1:]}', 20)
  canvas.histogram((_MARGIN, 60, 530, 430), ages, 'ages of timesteps',
                   'learner steps since acting')
  canvas.histogram((570, 60, 1080, 430), priorities, 'priorities of items',
                   'priority')
  return np.asarray(canvas.image)
