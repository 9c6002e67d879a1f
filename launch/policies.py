"""Trained policies, from runs or from those that come with the package."""

import dataclasses
import os
import sys
from typing import Callable, Optional

from acme import specs
import numpy as np
import tensorflow as tf

from agents.impala_ppo import acting
from agents.impala_ppo import builder as builder_lib
from agents.impala_ppo import config as config_lib
from agents.impala_ppo import networks as networks_lib
from launch import settings as settings_lib
from programs.runtime import checkpoints


@dataclasses.dataclass
class LoadedPolicy:
  """A trained policy; call it to choose actions.

  Attributes:
    settings: the settings of its run.
    checkpoint: the checkpoint that its weights are from.
    environment_spec: the spec of one environment.
    networks: the networks, with those weights.
    actor: acts on observations [E, ...] without learning, for loops that need one.
  """
  settings: settings_lib.Settings
  checkpoint: str
  environment_spec: specs.EnvironmentSpec
  networks: networks_lib.ImpalaPPONetworks
  actor: acting.ImpalaPPOActor

  def __call__(self, observation: np.ndarray) -> np.ndarray:
    """Chooses actions.

    Args:
      observation: that of one environment, as in `environment_spec`, or [E, ...]
        of several.

    Returns:
      The action [] int32, or actions [E] int32.

    Raises:
      ValueError: for observations of another shape.
    """
    spec = self.environment_spec.observations
    observation = np.asarray(observation)
    if observation.shape[-len(spec.shape):] != spec.shape:
      raise ValueError(f'observations must be {list(spec.shape)}, or [E, ...] of '
                       f'them, not {list(observation.shape)}.')
    observation = observation.astype(spec.dtype, copy=False)
    if observation.ndim == len(spec.shape):
      return self.actor.select_action(observation[None])[0]
    return self.actor.select_action(observation)


def load(run_dir: str, checkpoint: Optional[str] = None, *, sampled: bool = False,
         seed: int = 0, make_builder: Callable[
             [config_lib.ImpalaPPOConfig], builder_lib.ImpalaPPOBuilder
         ] = builder_lib.ImpalaPPOBuilder,
         say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
         ) -> LoadedPolicy:
  """Loads the policy of a run.

  Args:
    run_dir: the run's directory.
    checkpoint: the path of one of its checkpoints, without suffix; by default the
      newest whole one.
    sampled: whether to draw actions rather than take the most likely ones.
    seed: seeds the draws.
    make_builder: makes a builder from the agent's config, for your own networks.
    say: called for each newer checkpoint that is skipped, with a line that says why.

  Returns:
    The policy; call it with observations.

  Raises:
    ValueError: if there is no such policy, or its game cannot be made; the message
      is one line.
  """
  run_dir = os.path.expanduser(run_dir)
  settings = settings_lib.load(run_dir)
  path = checkpoint or checkpoints.existing(run_dir, say)
  environment_spec = settings.environment.try_out(seed)
  builder = make_builder(settings.agent)
  networks = restored(builder, environment_spec, path, with_decoder=False)
  policy = builder.make_policy(networks, environment_spec, evaluation=not sampled)
  return LoadedPolicy(settings, path, environment_spec, networks,
                      builder.make_actor(seed, policy))


def restored(builder: builder_lib.ImpalaPPOBuilder,
             environment_spec: specs.EnvironmentSpec, path: str,
             with_decoder: bool) -> networks_lib.ImpalaPPONetworks:
  """Restores networks from a checkpoint.

  Args:
    builder: made from the run's settings.
    environment_spec: of one environment.
    path: of a complete checkpoint.
    with_decoder: whether to restore the decoder too, if there is one.

  Returns:
    The networks.

  Raises:
    ValueError: if the checkpoint is of other networks; the message is one line.
  """
  networks = builder.make_networks(environment_spec)
  networks.create_variables()
  parts: dict[str, tf.Module] = {'actor_critic': networks.actor_critic}
  if with_decoder and networks.decoder is not None:
    parts['decoder'] = networks.decoder
  for name, part in parts.items():
    checkpoints.check_matches(path, part.variables, name)
  checkpoints.Checkpoint(parts).restore(path)
  return networks


def save_weights(actor_critic: networks_lib.ActorCritic, learner_steps: int,
                 run_dir: str) -> None:
  """Saves a policy as the only checkpoint of a run, with nothing but its weights.

  Args:
    actor_critic: the policy's network.
    learner_steps: how many learner steps trained it.
    run_dir: a run's directory without checkpoints.
  """
  os.makedirs(checkpoints.directory(run_dir))
  checkpoints.Checkpoint({
      'actor_critic': actor_critic,
      'num_steps': tf.Variable(learner_steps, dtype=tf.int64, trainable=False),
  }).write(os.path.join(checkpoints.directory(run_dir), 'ckpt-1'))
