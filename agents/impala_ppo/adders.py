"""The adder: writes an actor's experience to Reverb as trajectories."""

import math
from typing import Optional

from acme import adders
from acme import types
import dm_env
import numpy as np
import reverb

from agents.impala_ppo import replay

# How long a blocked write waits before it lets Python handle signals.
_FLUSH_TIMEOUT_MS = 500


class ImpalaPPOAdder(adders.Adder):
  """Cuts experience into successive trajectories of fixed length.

  One append carries all E environments of the actor, so that an item is one
  trajectory of each: a call to Reverb for each environment would cost nine
  times as much. Time steps may be batched ([E] in each field) or plain
  (E = 1). Trajectories follow each other without a gap and run on across
  episodes: the step from an episode's last observation to the next one's
  first has mask 0 and discount 0.

  Frames are written once: where observations are stacks, only the newest
  channel is stored, and an item reaches back to the frames before it. All
  columns of an item have the same length, so that plain Reverb clients can
  sample them, step by step.
  """

  def __init__(self, client: reverb.Client, sequence_length: int,
               frame_stack: int, replay_table: bool):
    """Makes an adder.

    Args:
      client: of the Reverb server that gets everything from this adder.
      sequence_length: timesteps in a trajectory.
      frame_stack: how many channels of an observation are frames; 1 to store
        observations as they are.
      replay_table: whether items also go to the replay table.
    """
    self._client = client
    self._sequence_length = sequence_length
    self._frame_stack = frame_stack
    self._tables = [replay.QUEUE_TABLE]
    if replay_table:
      self._tables.append(replay.REPLAY_TABLE)
    self._writer: Optional[reverb.TrajectoryWriter] = None
    self._timestep: Optional[dm_env.TimeStep] = None
    self._steps = 0
    self._last_extras = None

  def add_first(self, timestep: dm_env.TimeStep):
    """Begins an episode in every environment.

    Args:
      timestep: a FIRST step. After a LAST one, the pair is written as a reset.

    Raises:
      ValueError: where stacked frames do not start from zeros.
    """
    timestep = _batched(timestep)
    if self._frame_stack > 1 and np.any(timestep.observation[..., :-1]):
      raise ValueError(
          'an episode starts with frames before its first one, so stacks '
          'cannot be rebuilt from single frames; set frame_stack to 1.')
    if self._timestep is None:
      self._start(timestep)
    elif self._last_extras is not None:
      actions = np.zeros(len(timestep.step_type), np.int32)
      self._append(actions, np.zeros(len(actions), np.float32),
                   np.zeros(len(actions), np.float32), self._last_extras)
    self._timestep = timestep

  def add(self, action: types.NestedArray, next_timestep: dm_env.TimeStep,
          extras: types.NestedArray = ()):
    """Writes the step from the latest time step to the next.

    Args:
      action: [E] or [] int32.
      next_timestep: what it led to.
      extras: `behaviour_logits` [E, A] float32 and `policy_version` [] int64.
    """
    next_timestep = _batched(next_timestep)
    self._append(np.atleast_1d(action).astype(np.int32, copy=False),
                 next_timestep.reward, next_timestep.discount, extras)
    self._timestep = next_timestep
    self._last_extras = extras

  def reset(self):
    """Drops what does not yet make a trajectory, and starts afresh."""
    if self._writer is not None:
      self._writer.close()
    self._writer = None
    self._timestep = None
    self._last_extras = None
    self._steps = 0

  def _start(self, timestep: dm_env.TimeStep):
    self._writer = self._client.trajectory_writer(
        num_keep_alive_refs=self._sequence_length + self._frame_stack)
    self._timestep = timestep
    self._steps = 0

  def _blank(self, step: types.NestedArray):
    """Writes the frames that an episode's first stack has before it."""
    # Chunks that items begin and end on: nothing is sent or kept twice, and an
    # item is complete, and on its way, the moment that it is made.
    for column in step:
      self._writer.configure(
          (column,),
          num_keep_alive_refs=self._sequence_length + self._frame_stack,
          max_chunk_length=math.gcd(self._sequence_length, self._frame_stack))
    blank = {name: np.zeros_like(value) for name, value in step.items()}
    for _ in range(self._frame_stack - 1):
      self._writer.append(blank)

  def _frame(self, timestep: dm_env.TimeStep) -> np.ndarray:
    if self._frame_stack > 1:
      return timestep.observation[..., -1]
    return timestep.observation

  def _append(self, action: np.ndarray, reward: np.ndarray,
              discount: np.ndarray, extras: types.NestedArray):
    current = self._timestep.step_type
    mask = current != dm_env.StepType.LAST
    step = {
        'frame': self._frame(self._timestep),
        'is_first': current == dm_env.StepType.FIRST,
        'action': action,
        'reward': np.asarray(reward, np.float32) * mask,
        'discount': np.asarray(discount, np.float32) * mask,
        'mask': mask,
        'behaviour_logits': extras['behaviour_logits'],
        'policy_version': np.asarray(extras['policy_version'], np.int64),
    }
    if self._writer.episode_steps == 0:
      self._blank(step)
    self._writer.append(step)
    self._steps += 1
    # The step after a trajectory carries the observation it bootstraps from.
    if self._steps == self._sequence_length + 1:
      self._steps = 1
      self._create_items()

  def _create_items(self):
    trajectory = {
        name: column[-(self._sequence_length + self._frame_stack):]
        for name, column in self._writer.history.items()
    }
    for table in self._tables:
      self._writer.create_item(table, priority=1.0, trajectory=trajectory)
    self._flush()

  def _flush(self):
    """Waits until the server has accepted what there is: no run-ahead."""
    while True:
      try:
        self._writer.flush(timeout_ms=_FLUSH_TIMEOUT_MS)
        return
      except reverb.errors.DeadlineExceededError:
        continue  # Held up by a rate limiter: a normal state.


def _batched(timestep: dm_env.TimeStep) -> dm_env.TimeStep:
  """Gives a plain time step a leading axis of one environment."""
  if np.ndim(timestep.step_type) > 0:
    return timestep
  return dm_env.TimeStep(*(None if field is None else np.asarray(field)[None]
                           for field in timestep))
