"""Draws what the agent makes of a timestep, with or without a screen beside it."""

import dataclasses
from typing import Optional, Sequence

import numpy as np

from launch.views import pictures

WIDTH, HEIGHT = 616, 632
_SIGHT = 252
_OLDER = 84


@dataclasses.dataclass(frozen=True)
class Moment:
  """A timestep, and what led to it.

  Attributes:
    observation: [H, W, C] or [D].
    reconstruction: of its newest frame or of all of it, if there is one.
    probabilities: [A], of the actions.
    action: the one taken; None if there was none.
    values: [N], of this timestep and those before it, oldest first.
    vectors: [N, D], observations of the same timesteps, if they are vectors.
    decoded: [N, D], their reconstructions, if there are any.
    levels: of pixels; by default those of the observation alone.
  """
  observation: np.ndarray
  reconstruction: Optional[np.ndarray]
  probabilities: np.ndarray
  action: Optional[int]
  values: np.ndarray
  vectors: Optional[np.ndarray] = None
  decoded: Optional[np.ndarray] = None
  levels: Optional[pictures.Levels] = None


def draw(canvas: pictures.Canvas, left: int, top: int, moment: Moment,
         action_names: Sequence[str], frame_stack: int, length: int,
         with_sight: bool = True) -> None:
  """Draws what the agent sees, its reconstruction, value and probabilities.

  Args:
    canvas: where to draw, on `WIDTH` by `HEIGHT` pixels.
    left: the left edge of these pixels.
    top: the top edge of these pixels.
    moment: what to draw.
    action_names: the name of each action.
    frame_stack: how many channels of an observation are frames.
    length: how many timesteps fill the traces.
    with_sight: whether to draw the observation, and its reconstruction.
  """
  right = left + WIDTH
  sight = 20 + _SIGHT + 14
  height = 120
  if not with_sight:
    height += sight
    sight = 0
  elif moment.vectors is not None:
    draw_vectors(canvas, (left, top, right, top + 20 + _SIGHT), moment, length)
  else:
    _draw_sights(canvas, left, top, moment, frame_stack)
  top += sight
  canvas.traces((left, top, right, top + height), [(moment.values, pictures.BLUE)],
                f'value {moment.values[-1]:.3g}', length)
  top += height + 14
  canvas.text(left, top, 'action probabilities', 14, pictures.DIM)
  canvas.actions((left, top + 22, right, top + 22 + 180), action_names,
                 moment.probabilities, moment.action)


def _draw_sights(canvas: pictures.Canvas, left: int, top: int, moment: Moment,
                 frame_stack: int) -> None:
  observation = moment.observation
  levels = moment.levels or pictures.levels(observation)
  channels = observation.shape[-1]
  below = top + 20
  if frame_stack > 1:
    canvas.text(left, top, 'before', 14, pictures.DIM)
    for i in range(min(channels - 1, 3)):
      y = below + _OLDER * i
      canvas.frame((left, y, left + _OLDER, y + _OLDER),
                   observation[..., channels - 4 + i if channels > 3 else i],
                   levels)
    left += _OLDER + 14
    observation = observation[..., -1]
  canvas.text(left, top, 'the agent sees', 14, pictures.DIM)
  canvas.frame((left, below, left + _SIGHT, below + _SIGHT), observation,
               levels)
  left += _SIGHT + 14
  if moment.reconstruction is not None:
    canvas.text(left, top, 'its reconstruction', 14, pictures.DIM)
    canvas.frame((left, below, left + _SIGHT, below + _SIGHT),
                 moment.reconstruction, levels)


def draw_vectors(canvas: pictures.Canvas, box: pictures.Box, moment: Moment,
                 length: int, cursor: Optional[int] = None) -> None:
  """Draws the elements of vectors as traces, with their reconstructions."""
  vectors, decoded = moment.vectors, moment.decoded
  assert vectors is not None
  canvas.text(box[0], box[1], 'observation', 14, pictures.INK)
  if decoded is not None:
    canvas.text(box[0] + 100, box[1], 'reconstruction', 14, pictures.ORANGE)
  series = [
      [(vectors[:, i], pictures.INK)] +
      ([(decoded[:, i], pictures.ORANGE)] if decoded is not None else [])
      for i in range(vectors.shape[1])]
  canvas.grid_of_traces((box[0], box[1] + 20, box[2], box[3]), series,
                        [f'[{i}]' for i in range(vectors.shape[1])], length, cursor)
