"""Records videos of an environment and of what the policy makes of it."""

import collections
import time
from typing import Callable, Optional

import dm_env
import imageio.v2 as imageio
import numpy as np

from agents import environments
from agents import screens as screens_lib
from launch.views import panels
from launch.views import pictures
from launch.views import thoughts as thoughts_lib

_RATE = 60
_WIDTH, _HEIGHT = 1280, 720  # Multiples of 16, as codecs want them.
_TOP = 72
_SCREEN: pictures.Box = (16, _TOP, 624, _TOP + 632)
_PANEL_LEFT = 648
# Timesteps that traces show: ten seconds of Atari.
_LENGTH = 150
_LAST_SECONDS = 1.
_SAY_SECONDS = 15.


class Recorder:
  """A vector of one environment that is recorded as it is stepped.

  Games run at their own speed: each frame is shown for as long as it lasts.
  """

  num_envs = 1

  def __init__(self, path: str, environment: environments.VectorEnvironment,
               screens: screens_lib.Screens, thinker: thoughts_lib.Thinker,
               frame_stack: int, title: str, say: Callable[[str], None]):
    """Makes a recorder.

    Args:
      path: of the .mp4 file to write.
      environment: a vector of one, to step.
      screens: what it shows.
      thinker: evaluates the policy that acts.
      frame_stack: how many channels of an observation are frames.
      title: what is recorded, in one line.
      say: called now and then with one line of progress.
    """
    self._environment = environment
    self._screens = screens
    self._think = thinker
    self._frame_stack = frame_stack
    self._title = title
    self._say = say
    self._said_at = time.monotonic()
    self._frames = 0
    self._values: collections.deque[float] = collections.deque(maxlen=_LENGTH)
    self._seen: collections.deque[np.ndarray] = collections.deque(maxlen=_LENGTH)
    self._decoded: collections.deque[np.ndarray] = collections.deque(
        maxlen=_LENGTH)
    self._levels: Optional[pictures.Levels] = None
    self._due = 0.
    self._episode = self._steps = 0
    self._score = 0.
    self._writer = imageio.get_writer(
        path, fps=_RATE, codec='libx264', quality=None, pixelformat='yuv420p',
        output_params=['-crf', '18', '-preset', 'veryfast'])

  def reset(self) -> dm_env.TimeStep:
    self._timestep = self._environment.reset()
    self._begin()
    return self._timestep

  def step(self, action: np.ndarray) -> dm_env.TimeStep:
    if self._timestep.last()[0]:
      self._timestep = self._environment.step(action)
      self._begin()
      return self._timestep
    picture = self._picture(int(action[0]))
    self._timestep = self._environment.step(action)
    if self._timestep.first()[0]:  # The episode was cut at a bad number.
      self._begin()
      return self._timestep
    self._steps += 1
    self._score += float(self._timestep.reward[0])
    frames = self._screens.take()
    for frame in frames:
      self._write(picture, frame, 1. / self._screens.rate)
    if self._timestep.last()[0]:
      # What the last step earned is on no picture yet.
      self._write(self._picture(None), frames[-1], _LAST_SECONDS)
    if time.monotonic() - self._said_at > _SAY_SECONDS:
      self._said_at = time.monotonic()
      self._say(f'{self._frames / _RATE:,.0f} s of video; episode {self._episode}, '
                f'timestep {self._steps:,}, score {self._score:,.6g}')
    return self._timestep

  def close(self) -> None:
    """Ends the video; without this it cannot be played."""
    self._writer.close()
    self._environment.close()

  def _begin(self) -> None:
    self._screens.take()  # The reset's screen, the first to be acted on.
    self._episode += 1
    self._steps, self._score = 0, 0.
    for past in (self._values, self._seen, self._decoded):
      past.clear()

  def _picture(self, action: Optional[int]) -> pictures.Canvas:
    """Draws everything but the screen."""
    observation = self._timestep.observation
    self._levels = pictures.levels(observation, self._levels)
    thoughts = self._think(observation)
    self._values.append(float(thoughts.values[0]))
    is_vector = observation.ndim == 2
    reconstruction = None
    if thoughts.reconstructions is not None:
      reconstruction = thoughts.reconstructions[0]
    vectors = decoded = None
    if is_vector:
      self._seen.append(observation[0])
      vectors = np.array(self._seen)
      if reconstruction is not None:
        self._decoded.append(reconstruction)
        decoded = np.array(self._decoded)
    moment = panels.Moment(observation[0], reconstruction,
                           thoughts.probabilities[0], action,
                           np.array(self._values), vectors, decoded, self._levels)
    canvas = pictures.Canvas(_WIDTH, _HEIGHT)
    canvas.text(16, 22, self._title, 20)
    canvas.text(_PANEL_LEFT, 22, f'episode {self._episode}, timestep '
                f'{self._steps:,}', 20, pictures.DIM)
    canvas.text(_PANEL_LEFT + panels.WIDTH, 16, f'score {self._score:,.6g}', 28,
                anchor='ra')
    is_drawn_large = is_vector and bool(self._screens.why_not)
    if is_drawn_large:
      panels.draw_vectors(canvas, _SCREEN, moment, _LENGTH)
    elif self._screens.why_not:
      newest = observation[0, ..., -1] if self._frame_stack > 1 else observation[0]
      canvas.frame(_SCREEN, newest, self._levels)
    panels.draw(canvas, _PANEL_LEFT, _TOP, moment, self._screens.action_names,
                self._frame_stack, _LENGTH, with_sight=not is_drawn_large)
    return canvas

  def _write(self, canvas: pictures.Canvas, frame: Optional[np.ndarray],
             seconds: float) -> None:
    """Writes a frame of the game for some seconds."""
    if frame is not None:
      canvas.rectangle(_SCREEN, pictures.BACKGROUND)
      canvas.frame(_SCREEN, frame)
    image = np.asarray(canvas.image)
    self._due += _RATE * seconds
    while self._due >= 1.:
      self._writer.append_data(image)
      self._frames += 1
      self._due -= 1.
