"""Evaluates a checkpoint's networks on observations, for people to see."""

import dataclasses
from typing import Optional

import numpy as np
import tensorflow as tf

from agents.impala_ppo import networks as networks_lib
from agents.impala_ppo import ops


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
    spec, actor_critic = networks.observation_spec, networks.actor_critic

    def think(observation: tf.Tensor) -> tuple[tf.Tensor, ...]:
      latent = actor_critic.encoder(observation)
      logits, values = actor_critic.heads(latent)
      if networks.decoder is None:
        return tf.nn.softmax(logits), values
      return tf.nn.softmax(logits), values, networks.reconstruct(latent)

    self._think = ops.graph_function(think).get_concrete_function(
        tf.TensorSpec([None, *spec.shape], spec.dtype))

  def __call__(self, observation: np.ndarray) -> Thoughts:
    """Evaluates observations [N, ...]."""
    probabilities, values, *decoded = self._think(tf.constant(observation))
    return Thoughts(probabilities.numpy(), values.numpy(),
                    decoded[0].numpy() if decoded else None)
