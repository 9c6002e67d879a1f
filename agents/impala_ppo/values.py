"""Values as distributions over bins, trained with a classifier's loss.

Returns are first squashed by a signed logarithm [2, eq. 9], so that the same bins
are fine near 0 and reach the largest possible returns.

References:
  [1] Farebrother et al., Stop Regressing, arXiv:2403.03950.
  [2] Hafner et al., DreamerV3, arXiv:2301.04104.
"""

import dataclasses
import math

import tensorflow as tf

from agents.impala_ppo import config as config_lib

_NUM_BINS = 51
# Of the Gaussians, in bin widths [1, section 3.1].
_SIGMA = 0.75
# Returns larger than exp(20) fall into the outermost bin.
_LARGEST_BOUND = 20.
_SMALLEST_BOUND = 1e-6


def symlog(x: tf.Tensor) -> tf.Tensor:
  """Squashes numbers: the identity near 0, their logarithm far from it."""
  return tf.sign(x) * tf.math.log1p(tf.abs(x))


def symexp(x: tf.Tensor) -> tf.Tensor:
  """Inverts `symlog`."""
  # This is expm1, which ONNX lacks.
  return tf.sign(x) * (tf.exp(tf.abs(x)) - 1.)


@dataclasses.dataclass(frozen=True)
class Bins:
  """K bins of equal width over squashed returns.

  Attributes:
    bound: the outermost bins' centres are -bound and bound.
    num_bins: K.
  """
  bound: float
  num_bins: int = _NUM_BINS

  def values(self, value_logits: tf.Tensor) -> tf.Tensor:
    """Returns the values [...] that logits [..., K] stand for."""
    centers = tf.linspace(-self.bound, self.bound, self.num_bins)
    return symexp(tf.reduce_sum(tf.nn.softmax(value_logits) * centers, axis=-1))

  def probabilities(self, values: tf.Tensor) -> tf.Tensor:
    """Spreads values [...] over bins [..., K] by a Gaussian: HL-Gauss of [1]."""
    width = 2. * self.bound / (self.num_bins - 1)
    edges = tf.linspace(-self.bound - width / 2., self.bound + width / 2.,
                        self.num_bins + 1)
    squashed = tf.clip_by_value(symlog(values), -self.bound, self.bound)
    below = tf.math.erf(
        (edges - squashed[..., None]) / (_SIGMA * width * math.sqrt(2.)))
    # Far from the value, rounding may make differences negative.
    return (tf.maximum(below[..., 1:] - below[..., :-1], 0.) /
            (below[..., -1:] - below[..., :1]))


def make_bins(config: config_lib.ImpalaPPOConfig) -> Bins:
  """Makes bins that cover every return that clipped rewards can add up to."""
  largest = config.max_abs_reward / max(1. - config.discount, 1e-9)
  return Bins(min(max(math.log1p(largest), _SMALLEST_BOUND), _LARGEST_BOUND))
