"""The adder: writes an actor's experience to Reverb as trajectories."""

import math
import time
from typing import Any, Optional

from absl import logging
from acme import adders
from acme import types
import dm_env
import numpy as np
import reverb

from agents.impala_ppo import replay
from agents.impala_ppo import trajectories

# How long a blocked write waits before it lets Python handle signals.
_FLUSH_TIMEOUT_MS = 500
# How long it waits before it logs, and logs again, what it waits for.
_SAY_SECONDS = 30.


class ImpalaPPOAdder(adders.Adder):
  """Cuts experience into successive trajectories of fixed length.

  One append carries all E environments of the actor, so an item is one
  trajectory of each: a call to Reverb for each environment would cost nine
  times as much. Trajectories follow each other without a gap and continue
  across episodes.

  Frames are written once: if observations are stacks, only the newest channel
  is stored, and an item reaches back to earlier frames. All columns of an item
  have the same length, so plain Reverb clients can sample them step by step.
  """

  def __init__(self, client: reverb.Client, sequence_length: int,
               frame_stack: int, replay_table: bool):
    """Makes an adder.

    Args:
      client: for the Reverb server that this adder writes to.
      sequence_length: timesteps in a trajectory.
      frame_stack: how many channels of an observation are frames; 1 to store
        observations as they are.
      replay_table: whether items also go to the replay table.
    """
    self._client = client
    self._sequence_length = sequence_length
    self._frame_stack = frame_stack
    self._num_rows = trajectories.num_rows(sequence_length, frame_stack)
    self._tables = [replay.QUEUE_TABLE]
    if replay_table:
      self._tables.append(replay.REPLAY_TABLE)
    # Made at the first step: by then there is a server.
    self._writer: Any = None
    self._timestep: Optional[dm_env.TimeStep] = None
    self._extras: types.NestedArray = None
    self._steps = 0

  def add_first(self, timestep: dm_env.TimeStep) -> None:
    """Begins an episode in every environment.

    Args:
      timestep: a FIRST step, [E, ...] in each field. If it follows other
        steps, the transition to it is written as a reset.

    Raises:
      ValueError: if stacked frames do not start from zeros.
    """
    self._check_stacks(timestep)
    if self._writer is None:
      self._writer = self._client.trajectory_writer(
          num_keep_alive_refs=self._num_rows)
    elif self._extras is not None:
      no_action = np.zeros(len(timestep.step_type), np.int32)
      self._append(no_action, timestep, self._extras)
    self._timestep = timestep

  def add(self, action: types.NestedArray, next_timestep: dm_env.TimeStep,
          extras: types.NestedArray = ()) -> None:
    """Writes the step from the latest time step to the next.

    Args:
      action: [E] int32.
      next_timestep: what the action led to, [E, ...] in each field.
      extras: `behaviour_logits` [E, A] float32 and `policy_version` [] int64.

    Raises:
      ValueError: if a FIRST step's stacked frames do not start from zeros.
    """
    self._check_stacks(next_timestep)
    self._append(action, next_timestep, extras)
    self._timestep = next_timestep
    self._extras = extras

  def reset(self) -> None:
    """Drops the unfinished trajectory and starts afresh."""
    if self._writer is not None:
      self._writer.close()
    self._writer = self._timestep = self._extras = None
    self._steps = 0

  def _check_stacks(self, timestep: dm_env.TimeStep) -> None:
    if self._frame_stack == 1:
      return
    first = timestep.step_type == dm_env.StepType.FIRST
    if first.any() and timestep.observation[first][..., :-1].any():
      raise ValueError(
          'an episode starts with frames before its first one, so stacks '
          'cannot be rebuilt from single frames; set frame_stack to 1.')

  def _append(self, action: np.ndarray, next_timestep: dm_env.TimeStep,
              extras: types.NestedArray) -> None:
    row = trajectories.row(self._timestep, action, next_timestep, extras,
                           self._frame_stack)
    if self._writer.episode_steps == 0:
      self._begin(row)
    self._writer.append(row)
    self._steps += 1
    # The step after a trajectory carries the observation it bootstraps from.
    if self._steps == self._sequence_length + 1:
      self._steps = 1
      self._create_items()

  def _begin(self, row: dict[str, np.ndarray]) -> None:
    """Writes the blank frames that precede the first one in its stack."""
    # Items begin and end at the bounds of chunks: nothing is sent or kept twice,
    # and an item is complete, and being sent, as soon as it is made.
    for column in row:
      self._writer.configure(
          (column,), num_keep_alive_refs=self._num_rows,
          max_chunk_length=math.gcd(self._sequence_length, self._frame_stack))
    blank = {name: np.zeros_like(value) for name, value in row.items()}
    for _ in range(self._frame_stack - 1):
      self._writer.append(blank)

  def _create_items(self) -> None:
    trajectory = {name: column[-self._num_rows:]
                  for name, column in self._writer.history.items()}
    for table in self._tables:
      self._writer.create_item(table, priority=1.0, trajectory=trajectory)
    # Waits until the server has accepted everything, so as not to run ahead.
    start = said = time.monotonic()
    while True:
      try:
        self._writer.flush(timeout_ms=_FLUSH_TIMEOUT_MS)
        return
      except reverb.errors.DeadlineExceededError:
        # Blocked by a rate limiter, which is normal as long as it ends.
        if time.monotonic() - said > _SAY_SECONDS:
          said = time.monotonic()
          logging.warning(
              'a trajectory has waited %.0f s to be written: %s', said - start,
              replay.why_full(self._client, self._tables))
