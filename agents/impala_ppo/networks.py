"""Sonnet networks: an encoder to a small latent, heads on it, and a decoder."""

import dataclasses
import math
from typing import Callable, NamedTuple, Optional, Sequence

from acme import specs
import sonnet as snt
import tensorflow as tf

from agents import validation
from agents.impala_ppo import config as config_lib
from agents.impala_ppo import ops
from agents.impala_ppo import values as values_lib

_RELU_GAIN = math.sqrt(2.)
_MLP_SIZES = (64, 64)
_SMALLEST_IMAGE = 8
_MAX_NORMALIZED = 10.
# Runs a function in `snt.mixed_precision`'s type, from float32 to float32.
_mixed_precision = snt.mixed_precision.modes([tf.float32, tf.float16])


def _convolutions(image_size: int, num_layers: int) -> Sequence[tuple[int, int]]:
  """Returns (kernel, stride) of each convolution for square-ish images.

  The first layer maps both 84 and 42 pixels to 20, and the second halves that;
  further ones are 3x3 with stride 1, as in the Nature DQN network.
  """
  if image_size >= 64:
    first = (8, 4)
  elif image_size >= 32:
    first = (4, 2)
  else:
    first = (3, 1)
  return (first, (4, 2), *[(3, 1)] * num_layers)[:num_layers]


class Normalizer(snt.Module):
  """Centres observations on their running mean and scales them to unit size.

  Most of a frame is the same background in every state. Without centring, the
  latents of all states are nearly equal, and the gradient of the policy all but
  ignores what differs between them.

  Each pixel has its own mean, and all share one scale; each element of a vector
  has its own mean and scale. The statistics are variables, so that actors get
  them with the weights; only the learner updates them.
  """

  def __init__(self, observation_shape: Sequence[int],
               name: str = 'normalizer'):
    super().__init__(name=name)
    self._shape = tuple(observation_shape)
    self._is_image = len(observation_shape) == 3

  @snt.once
  def _create_variables(self) -> None:
    self.mean = tf.Variable(tf.zeros(self._shape), trainable=False, name='mean')
    self.variance = tf.Variable(
        tf.ones([] if self._is_image else self._shape), trainable=False,
        name='variance')

  def __call__(self, observation: tf.Tensor) -> tf.Tensor:
    """Normalises [N, ...] of any type to float32, at most 10 in magnitude."""
    self._create_variables()

    def normalize(observation, mean, scale):
      return tf.clip_by_value(
          (tf.cast(observation, tf.float32) - mean) * scale,
          -_MAX_NORMALIZED, _MAX_NORMALIZED)

    return ops.elementwise(normalize, observation, self.mean.read_value(),
                           self._scale())

  def denormalize(self, normalized: tf.Tensor) -> tf.Tensor:
    """Converts [N, ...] back to the units of observations."""
    return normalized / self._scale() + self.mean

  def _scale(self) -> tf.Tensor:
    return tf.math.rsqrt(self.variance + 1e-8)

  def moments(
      self, observation: tf.Tensor,
      average: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns mean and variance of a batch, both shaped like `self.mean`.

    Both are computed from differences: in sums of large numbers, and of their
    squares, float32 would lose small variations.

    Args:
      observation: [N, ...], perhaps one replica's part.
      average: averages over replicas, whose parts have the same size.
    """
    observation = tf.cast(observation, tf.float32)
    mean = self.mean + average(tf.reduce_mean(observation - self.mean, axis=0))
    return mean, average(tf.reduce_mean(
        tf.math.squared_difference(observation, mean), axis=0))

  def update(self, mean: tf.Tensor, variance: tf.Tensor,
             rate: tf.Tensor) -> None:
    """Moves the statistics by `rate` in [0, 1] towards a batch's `moments`.

    They become those of a mixture in which the batch has weight `rate`.
    Statistics that would not be finite stay as they are.
    """
    # Read once: the assignments below must not change their own inputs.
    old_mean = tf.identity(self.mean)
    old_variance = tf.identity(self.variance)
    difference = mean - old_mean
    between = rate * (1. - rate) * tf.square(difference)
    if self._is_image:
      variance, between = tf.reduce_mean(variance), tf.reduce_mean(between)
    new_variance = (1. - rate) * old_variance + rate * variance + between
    # If a mean is not finite, its variance is not finite either.
    is_finite = tf.math.is_finite(new_variance)
    self.mean.assign(tf.where(is_finite, old_mean + rate * difference, old_mean))
    self.variance.assign(tf.where(is_finite, new_variance, old_variance))


class Encoder(snt.Module):
  """Maps observations to latents [N, latent_size] float32.

  Pixels [N, H, W, C] uint8 go through convolutions, vectors [N, D] float32
  through a multi-layer perceptron.
  """

  def __init__(self, observation_shape: Sequence[int],
               conv_channels: Sequence[int], latent_size: int,
               name: str = 'encoder'):
    super().__init__(name=name)
    w_init = snt.initializers.Orthogonal(_RELU_GAIN)
    self.normalizer = Normalizer(observation_shape)
    if len(observation_shape) == 3:
      layers = []
      for channels, (kernel, stride) in zip(
          conv_channels,
          _convolutions(min(observation_shape[:2]), len(conv_channels))):
        layers += [snt.Conv2D(channels, kernel, stride, padding='VALID',
                              w_init=w_init), ops.relu]
      self._torso = snt.Sequential([*layers, snt.Flatten()])
    else:
      self._torso = snt.nets.MLP(_MLP_SIZES, w_init=w_init,
                                 activation=tf.nn.tanh, activate_final=True)
    self._to_latent = snt.Linear(latent_size, w_init=w_init)

  def __call__(self, observation: tf.Tensor) -> tf.Tensor:
    return self._encode(self.normalizer(observation))

  @_mixed_precision
  def _encode(self, normalized: tf.Tensor) -> tf.Tensor:
    return ops.relu(self._to_latent(self._torso(normalized)))


class Decoder(snt.Module):
  """Maps latents [N, latent_size] back to the newest part of the observation.

  For pixels, that is the last `target_channels` channels, [N, H, W,
  target_channels] float32; for vectors, the vector itself, [N, D] float32.
  Both are normalised, as by the encoder's `Normalizer`.
  """

  def __init__(self, observation_shape: Sequence[int], target_channels: int,
               name: str = 'decoder'):
    super().__init__(name=name)
    w_init = snt.initializers.Orthogonal(_RELU_GAIN)
    self._is_image = len(observation_shape) == 3
    if not self._is_image:
      self._net = snt.nets.MLP((*_MLP_SIZES, observation_shape[0]),
                               w_init=w_init, activation=tf.nn.tanh)
      return
    # The mirror image of the encoder's first two convolutions.
    size = observation_shape[:2]
    (kernel1, stride1), (kernel2, stride2) = _convolutions(min(size), 2)
    middle = [(s - kernel1) // stride1 + 1 for s in size]
    small = [(s - kernel2) // stride2 + 1 for s in middle]
    channels = 16
    self._net = snt.Sequential([
        snt.Linear(small[0] * small[1] * channels, w_init=w_init),
        ops.relu,
        snt.Reshape([*small, channels]),
        snt.Conv2DTranspose(channels, kernel2, output_shape=middle,
                            stride=stride2, padding='VALID', w_init=w_init),
        ops.relu,
        snt.Conv2DTranspose(target_channels, kernel1, output_shape=size,
                            stride=stride1, padding='VALID'),
    ])

  @_mixed_precision
  def __call__(self, latent: tf.Tensor) -> tf.Tensor:
    return self._net(latent)


class ActorCritic(snt.Module):
  """The network that actors run: encoder, policy head and value head."""

  def __init__(self, encoder: snt.Module, num_actions: int,
               bins: Optional[values_lib.Bins] = None,
               name: str = 'actor_critic'):
    """Makes a network; with `bins`, values are distributions over them."""
    super().__init__(name=name)
    self.encoder = encoder
    self._bins = bins
    # A small initial policy head starts training from near-uniform actions. With
    # bins, a small value head starts from equal probabilities: from values of 0.
    self._policy_head = snt.Linear(
        num_actions, w_init=snt.initializers.Orthogonal(0.01),
        name='policy_head')
    self._value_head = snt.Linear(
        bins.num_bins if bins else 1,
        w_init=snt.initializers.Orthogonal(0.01 if bins else 1.),
        name='value_head')

  def heads(self, latent: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns logits [N, A] and values [N] of latents [N, latent_size]."""
    logits, values, _ = self.heads_with_value_logits(latent)
    return logits, values

  def heads_with_value_logits(
      self, latent: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor, Optional[tf.Tensor]]:
    """Returns the results of `heads`, and the values' logits [N, K] or None."""
    logits, predicted = self._policy_head(latent), self._value_head(latent)
    if self._bins is None:
      return logits, tf.squeeze(predicted, -1), None
    return logits, self._bins.values(predicted), predicted

  def __call__(self, observation: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns logits [N, A] and values [N] of observations [N, ...]."""
    return self.heads(self.encoder(observation))


class NetworkOutputs(NamedTuple):
  """The networks' outputs for B trajectories of T timesteps.

  Attributes:
    logits: [B, T + 1, A] float32.
    values: [B, T + 1] float32.
    reconstruction: [N, ...] float32, of one in `reconstruction_period`
      observations; None without the auto-encoder.
    normalized_observation: [N, ...] float32, what the decoder should
      reconstruct; None without the auto-encoder.
    value_logits: [B, T + 1, K] float32, which the values are computed from; None
      if values are predicted as numbers.
  """
  logits: tf.Tensor
  values: tf.Tensor
  reconstruction: Optional[tf.Tensor] = None
  normalized_observation: Optional[tf.Tensor] = None
  value_logits: Optional[tf.Tensor] = None


@dataclasses.dataclass
class ImpalaPPONetworks:
  """The agent's networks; variables are made at their first call.

  Attributes:
    observation_spec: of one environment.
    actor_critic: the network that acts.
    decoder: reconstructs from the latent; None without the auto-encoder.
  """
  observation_spec: specs.Array
  actor_critic: ActorCritic
  decoder: Optional[Decoder] = None

  def unroll(self, observation: tf.Tensor,
             reconstruction_period: int) -> NetworkOutputs:
    """Evaluates everything that is trained.

    Args:
      observation: [B, T + 1, ...].
      reconstruction_period: one in this many timesteps is reconstructed.
    """
    batch_shape = tf.unstack(tf.shape(observation)[:2])

    def split_time(x: tf.Tensor) -> tf.Tensor:
      return tf.reshape(x, [*batch_shape, *x.shape[1:]])

    encoder = self.actor_critic.encoder
    latent = encoder(merge_time(observation))
    logits, values, value_logits = (
        self.actor_critic.heads_with_value_logits(latent))
    outputs = NetworkOutputs(split_time(logits), split_time(values))
    if value_logits is not None:
      outputs = outputs._replace(value_logits=split_time(value_logits))
    if self.decoder is None:
      return outputs

    latent, observation = (
        merge_time(ops.every(x, reconstruction_period))
        for x in (split_time(latent), observation))
    return outputs._replace(
        reconstruction=self.decoder(latent),
        normalized_observation=encoder.normalizer(observation))

  def reconstruct(self, latent: tf.Tensor) -> tf.Tensor:
    """Decodes latents to the units of observations, for people to see.

    Args:
      latent: [N, latent_size].

    Returns:
      [N, H, W, C] or [N, D] float32; with stacked frames C is 1, the newest.
    """
    assert self.decoder is not None
    decoded = self.decoder(latent)
    channels, newest = self.observation_spec.shape[-1], decoded.shape[-1]
    # The normaliser knows all channels.
    decoded = tf.repeat(decoded, channels // newest, axis=-1)
    return self.actor_critic.encoder.normalizer.denormalize(decoded)[..., -newest:]

  @property
  def trainable_variables(self) -> tuple[tf.Variable, ...]:
    decoder = self.decoder.trainable_variables if self.decoder else ()
    return (*self.actor_critic.trainable_variables, *decoder)

  def create_variables(self) -> None:
    """Makes every variable, in the current variable scope."""
    observation = self.observation_spec
    latent = self.actor_critic.encoder(
        tf.zeros([1, *observation.shape], observation.dtype))
    self.actor_critic.heads(latent)
    if self.decoder is not None:
      self.decoder(latent)


def merge_time(x: tf.Tensor) -> tf.Tensor:
  """Reshapes [B, T, ...] to [B * T, ...]."""
  return tf.reshape(x, [-1, *x.shape[2:]])


def make_networks(
    environment_spec: specs.EnvironmentSpec,
    config: config_lib.ImpalaPPOConfig,
) -> ImpalaPPONetworks:
  """Makes the networks that fit an environment.

  Args:
    environment_spec: of one environment: observations [H, W, C] uint8 or [D]
      float32, and a discrete action.
    config: the agent's settings.

  Returns:
    The networks, without variables yet.

  Raises:
    ValueError: if no network fits the environment.
  """
  _check_spec(environment_spec, config)
  observations, actions = environment_spec.observations, environment_spec.actions
  shape = observations.shape
  encoder = Encoder(shape, config.conv_channels, config.latent_size)
  target_channels = 1 if config.frame_stack > 1 else shape[-1]
  decoder = Decoder(shape, target_channels) if config.autoencoder else None
  bins = values_lib.make_bins(config) if config.value_loss == 'hl_gauss' else None
  return ImpalaPPONetworks(
      observation_spec=observations,
      actor_critic=ActorCritic(encoder, actions.num_values, bins),
      decoder=decoder)


def _check_spec(environment_spec: specs.EnvironmentSpec,
                config: config_lib.ImpalaPPOConfig) -> None:
  """Raises ValueError, in one line, if no network fits the environment."""
  observations, actions = environment_spec.observations, environment_spec.actions
  if not isinstance(observations, specs.Array):
    raise ValueError(
        f'observations are {validation.shown(observations)}; this agent needs one '
        'array: wrap the environment to give that.')
  shape = observations.shape
  if not isinstance(actions, specs.DiscreteArray):
    raise ValueError(f'actions are {actions}; this agent needs a DiscreteArray.')
  if len(shape) not in (1, 3):
    raise ValueError('observations must be pixels [height, width, channels] or '
                     f'a vector; they are of shape {list(shape)}.')
  if len(shape) == 3 and min(shape[:2]) < _SMALLEST_IMAGE:
    raise ValueError(f'images must be at least {_SMALLEST_IMAGE} pixels high '
                     f'and wide for the convolutions; they are {list(shape)}.')
  if len(shape) == 3:
    size = min(shape[:2])
    for kernel, stride in _convolutions(size, len(config.conv_channels)):
      size = (size - kernel) // stride + 1
    if size < 1:
      raise ValueError(
          f'conv_channels are {len(config.conv_channels)} convolutions, more than '
          f'images of {list(shape)} leave pixels for.')
  if config.frame_stack > 1 and (len(shape) != 3 or
                                 shape[-1] != config.frame_stack):
    raise ValueError(
        f'frame_stack is {config.frame_stack}, so observations must be '
        f'[height, width, {config.frame_stack}]; they are of shape '
        f'{list(shape)}. Set frame_stack to 1 to store them as they are.')
