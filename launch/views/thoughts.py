"""Evaluates a checkpoint's networks on observations, for people to see."""

import dataclasses
from typing import Optional

from acme import specs
import numpy as np
import tensorflow as tf

from agents.impala_ppo import builder as builder_lib
from agents.impala_ppo import networks as networks_lib
from agents.impala_ppo import ops
from programs.runtime import checkpoints


@dataclasses.dataclass(frozen=True)
class Thoughts:
  """The outputs of networks for N observations.

  Attributes:
    probabilities: [N, A] float32, of the actions.
    values: [N] float32.
    reconstructions: [N, H, W, C] or [N, D] float32, in the units of observations;
      with stacked frames C is 1, the newest. None without the auto-encoder.
  """
  probabilities: np.ndarray
  values: np.ndarray
  reconstructions: Optional[np.ndarray]


class Thinker:
  """Evaluates networks, reconstructions included."""

  def __init__(self, networks: networks_lib.ImpalaPPONetworks):
    """Makes a thinker from networks whose variables exist."""
    spec = networks.observation_spec
    actor_critic, decoder = networks.actor_critic, networks.decoder

    def think(observation: tf.Tensor) -> tuple[tf.Tensor, ...]:
      latent = actor_critic.encoder(observation)
      logits, values = actor_critic.heads(latent)
      if decoder is None:
        return tf.nn.softmax(logits), values
      decoded = decoder(latent)
      channels = spec.shape[-1]
      if decoded.shape[-1] != channels:  # Only the newest frame.
        decoded = tf.repeat(decoded, channels, axis=-1)
        decoded = actor_critic.encoder.normalizer.denormalize(decoded)[..., -1:]
      else:
        decoded = actor_critic.encoder.normalizer.denormalize(decoded)
      return tf.nn.softmax(logits), values, decoded

    self._think = ops.graph_function(think).get_concrete_function(
        tf.TensorSpec([None, *spec.shape], spec.dtype))

  def __call__(self, observation: np.ndarray) -> Thoughts:
    """Evaluates observations [N, ...]."""
    probabilities, values, *decoded = self._think(tf.constant(observation))
    return Thoughts(probabilities.numpy(), values.numpy(),
                    decoded[0].numpy() if decoded else None)


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
