"""The format of replay items, which adder, tables and learner share.

An item is one trajectory of each of an actor's E environments, in columns of
S - 1 + T + 1 rows, for stacks of S frames and T timesteps:

    rows 0 to S - 2             frames that the first observation stacks
    rows S - 1 to S - 1 + T - 1 the T timesteps
    row S - 1 + T               the observation that they bootstrap from

Trajectories continue across episodes. The step from an episode's last
observation to the first of the next is a row too. It is not experience, so its
mask, reward and discount are 0.
"""

from typing import NamedTuple

from acme import specs
from acme import types
import dm_env
import numpy as np
import tensorflow as tf

from agents import environments
from agents.impala_ppo import config as config_lib
from agents.impala_ppo import ops


class Trajectories(NamedTuple):
  """A learner batch; B trajectories of T timesteps, the online ones first.

  Attributes:
    observation: [B, T + 1, ...]; the last one is for bootstrapping.
    action: [B, T] int32.
    reward: [B, T] float32, raw.
    discount: [B, T] float32, the environment's: 0 where an episode terminated.
    mask: [B, T] bool, false where the environment was resetting.
    behaviour_logits: [B, T, A] float32.
    policy_version: [B, T] int64, the learner steps that made the policy.
    key: [B] uint64, the item's key in its table.
    shard: [B] int32, the shard of that table.
  """
  observation: tf.Tensor
  action: tf.Tensor
  reward: tf.Tensor
  discount: tf.Tensor
  mask: tf.Tensor
  behaviour_logits: tf.Tensor
  policy_version: tf.Tensor
  key: tf.Tensor
  shard: tf.Tensor


def num_rows(sequence_length: int, frame_stack: int) -> int:
  """Returns the number of rows of an item."""
  return frame_stack - 1 + sequence_length + 1


def signature(environment_spec: specs.EnvironmentSpec,
              config: config_lib.ImpalaPPOConfig) -> dict[str, tf.TensorSpec]:
  """Returns shapes and dtypes of an item's columns; E is left open."""
  observation = environment_spec.observations
  frame_shape = observation.shape
  if config.frame_stack > 1:
    frame_shape = frame_shape[:-1]
  num_actions = environment_spec.actions.num_values
  rows = num_rows(config.sequence_length, config.frame_stack)
  return {
      'frame': tf.TensorSpec([rows, None, *frame_shape], observation.dtype),
      'is_first': tf.TensorSpec([rows, None], tf.bool),
      'action': tf.TensorSpec([rows, None], tf.int32),
      'reward': tf.TensorSpec([rows, None], tf.float32),
      'discount': tf.TensorSpec([rows, None], tf.float32),
      'mask': tf.TensorSpec([rows, None], tf.bool),
      'behaviour_logits': tf.TensorSpec([rows, None, num_actions], tf.float32),
      'policy_version': tf.TensorSpec([rows], tf.int64),
  }


def row(timestep: dm_env.TimeStep, action: np.ndarray,
        next_timestep: dm_env.TimeStep, extras: types.NestedArray,
        frame_stack: int) -> dict[str, np.ndarray]:
  """Returns the row of one step of E environments.

  Args:
    timestep: what was acted on, [E, ...] in each field.
    action: [E].
    next_timestep: what the action led to.
    extras: `behaviour_logits` [E, A] and `policy_version` [].
    frame_stack: how many channels of an observation are frames; only the
      newest is kept.
  """
  mask = environments.is_experience(next_timestep)
  observation = timestep.observation
  return {
      'frame': observation[..., -1] if frame_stack > 1 else observation,
      'is_first': timestep.step_type == dm_env.StepType.FIRST,
      'action': np.asarray(action, np.int32),
      'reward': np.asarray(next_timestep.reward, np.float32) * mask,
      'discount': np.asarray(next_timestep.discount, np.float32) * mask,
      'mask': mask,
      'behaviour_logits': np.asarray(extras['behaviour_logits'], np.float32),
      'policy_version': np.asarray(extras['policy_version'], np.int64),
  }


def by_environment(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """Splits an item's columns, [rows, E, ...], into trajectories [E, rows, ...]."""
  rows, num_envs = columns['action'].shape[0], tf.shape(columns['action'])[1]
  version = tf.repeat(columns['policy_version'][None], num_envs, axis=0)
  version.set_shape([None, rows])
  return {
      name: tf.transpose(column, [1, 0, *range(2, len(column.shape))])
      for name, column in columns.items() if name != 'policy_version'
  } | {'policy_version': version}


def is_sound(columns: dict[str, tf.Tensor]) -> tf.Tensor:
  """Returns whether a trajectory, in columns [rows, ...], can be learned from.

  All its numbers must be finite, and its actions must exist in the game. That
  holds for everything that actors write, but any client can insert items.
  """
  num_actions = columns['behaviour_logits'].shape[-1]
  action = columns['action']
  return tf.reduce_all([
      tf.reduce_all((action >= 0) & (action < num_actions)),
      *(tf.reduce_all(tf.math.is_finite(column)) for column in columns.values()
        if column.dtype.is_floating)])


def from_rows(columns: dict[str, tf.Tensor], frame_stack: int) -> Trajectories:
  """Makes a batch from columns [B, rows, ...], and `key` and `shard` [B]."""
  columns = dict(columns)
  frames, is_first = columns.pop('frame'), columns.pop('is_first')
  key, shard = columns.pop('key'), columns.pop('shard')
  if frame_stack > 1:
    frames = ops.stack_frames(frames, is_first, frame_stack)
  steps = slice(frame_stack - 1, -1)
  return Trajectories(
      observation=frames, key=key, shard=shard,
      **{name: column[:, steps] for name, column in columns.items()})
