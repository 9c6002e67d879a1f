"""Configuration of the PPO-IMPALA agent."""

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from agents import validation

Loss = Literal['ppo', 'vtrace', 'a3c']
ReplaySampler = Literal['uniform', 'prioritized', 'fifo']
ComputeDtype = Literal['float32', 'float16']
ValueLoss = Literal['hl_gauss', 'squared']

_Cost = Annotated[float, Field(ge=0, le=10**6)]
_Sizes = Annotated[tuple[Annotated[int, Field(ge=1, le=65_536)], ...],
                   Field(min_length=1)]
_StepSize = Annotated[float, Field(gt=0, le=1)]


@dataclasses.dataclass
class ImpalaPPOConfig:
  """Every setting of the algorithm; the defaults learn Atari.

  Except `frame_stack`, which must be `EnvironmentConfig.frame_stack`.

  `timesteps` are agent actions summed over all actors. A `trajectory` is
  `sequence_length` timesteps of one environment.

  Attributes:
    loss: 'ppo' is the clipped surrogate on V-trace advantages, 'vtrace' the
      policy gradient of IMPALA, 'a3c' that of A3C, which treats all experience
      as the current policy's own.
    discount: reward discount per timestep; should be nearer to 1 if rewards come
      hundreds of timesteps after the actions that earn them.
    vtrace_lambda: scales V-trace's trace coefficients; below 1 it trades
      variance for bias, as in TD(lambda).
    clip_epsilon: the PPO ratio is clipped to [1 - eps, 1 + eps].
    normalize_advantages: whether advantages are standardised over the batch
      ('ppo' only).
    value_loss: 'hl_gauss' makes a value a distribution over returns, trained by
      the cross-entropy to a smoothed target, whose gradient does not shrink with
      returns; 'squared' makes it a number, trained by half its squared error.
    baseline_cost: weight of the value loss. Standardising makes advantages
      several times as large, and if the weight is too small, the policy's gradient
      leaves the values little of the encoder that both share. 'squared' needs about
      four times the weight of 'hl_gauss'.
    entropy_cost: weight of the entropy bonus.
    max_abs_reward: rewards are clipped to this magnitude in the losses only; the
      predicted values cover this much reward in every timestep.
    autoencoder: whether the latent is also trained to reconstruct the newest
      frame.
    reconstruction_cost: weight of the reconstruction loss.
    reconstruction_period: one in this many timesteps of a trajectory is
      reconstructed, and counts towards the normalisation of observations;
      neighbouring frames differ little, and decoding costs as much as
      encoding.
    conv_channels: output channels of the convolutions over pixels.
    latent_size: width of the latent that the policy and value heads read.
    frame_stack: how many trailing channels of a pixel observation are
      successive frames, zero before the episode's first. Replay stores each
      frame once and the data pipeline rebuilds the stack. 1 stores
      observations as they are.
    sequence_length: timesteps in a trajectory.
    batch_size: trajectories in a learner batch, over all replicas.
    samples_per_insert: how many times each timestep is learned from: once
      through the online queue and `samples_per_insert - 1` times, on average,
      from the replay table, whose rate limiter enforces it.
    replay_sampler: selection from the replay table. 'fifo' replays every
      trajectory exactly `samples_per_insert - 1` times, oldest first, and
      makes a single process repeatable: Reverb's random selectors take no
      seed. Its table must hold more items than the online part of a batch takes.
    replay_capacity: items that a shard's replay table holds; an item is one
      trajectory of each environment of an actor.
    min_replay_size: items in a shard's replay table before it is sampled.
    priority_exponent: exponent of the priorities ('prioritized' only).
    queue_capacity: items that wait in a shard's online queue before actors
      block; a small queue keeps the policy lag small.
    learning_rate: initial step size of Adam.
    learning_rate_decay_timesteps: timesteps over which the step size falls
      linearly to `final_learning_rate`; longer runs continue at that.
    final_learning_rate: step size after the decay.
    adam_epsilon: Adam's denominator offset.
    max_gradient_norm: gradients are clipped to this global norm.
    compute_dtype: type in which the learner's encoder and decoder compute. Weights,
      heads and losses stay float32.
    variable_update_period: actor steps between two looks for new weights; a larger
      period saves copying, a smaller one gives fresher weights.
    prefetch_size: batches kept ready for the learner; 0 makes each one when
      the learner asks for it.
    num_fetch_workers: Reverb streams that fetch from each replay table.
  """
  # Losses.
  loss: Loss = 'ppo'
  discount: Annotated[float, Field(ge=0, le=1)] = 0.97
  vtrace_lambda: Annotated[float, Field(gt=0, le=1)] = 0.95
  clip_epsilon: Annotated[float, Field(gt=0, le=1000)] = 0.2
  normalize_advantages: bool = True
  value_loss: ValueLoss = 'hl_gauss'
  baseline_cost: _Cost = 0.5
  entropy_cost: _Cost = 0.01
  max_abs_reward: Annotated[float, Field(gt=0, le=10**9)] = 1.0
  # Networks.
  autoencoder: bool = True
  reconstruction_cost: _Cost = 0.1
  reconstruction_period: Annotated[int, Field(ge=1, le=1_000_000)] = 8
  conv_channels: _Sizes = (16, 32)
  latent_size: Annotated[int, Field(ge=1, le=10**12)] = 256
  frame_stack: Annotated[int, Field(ge=1, le=1000)] = 1
  # Data.
  sequence_length: Annotated[int, Field(ge=1, le=10**12)] = 32
  batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 6
  samples_per_insert: Annotated[float, Field(ge=1, le=1_000_000)] = 3.0
  replay_sampler: ReplaySampler = 'uniform'
  replay_capacity: Annotated[int, Field(ge=1, le=10**18)] = 32
  min_replay_size: Annotated[int, Field(ge=1, le=10**9)] = 1
  priority_exponent: Annotated[float, Field(ge=0, le=100)] = 0.6
  queue_capacity: Annotated[int, Field(ge=1, le=10**9)] = 1
  # Optimisation.
  learning_rate: _StepSize = 7e-4
  learning_rate_decay_timesteps: Annotated[int, Field(ge=1, le=10**15)] = 1_200_000
  final_learning_rate: Annotated[float, Field(ge=0, le=1)] = 1e-4
  adam_epsilon: _StepSize = 1e-5
  max_gradient_norm: Annotated[float, Field(gt=0, le=10**9)] = 0.5
  # Systems.
  compute_dtype: ComputeDtype = 'float32'
  variable_update_period: Annotated[int, Field(ge=1, le=10**9)] = 2
  prefetch_size: Annotated[int, Field(ge=0, le=10_000)] = 1
  num_fetch_workers: Annotated[int, Field(ge=1, le=10**6)] = 2

  def __post_init__(self):
    validation.check(self)
    online = self.batch_size / self.samples_per_insert
    if online < 1 or abs(online - round(online)) > 1e-6:
      raise ValueError(
          'batch_size must be a multiple of samples_per_insert, so that each '
          'batch has a whole number of online trajectories; got '
          f'{self.batch_size} and {self.samples_per_insert}.')
    if (self.replay_sampler == 'fifo' and
        self.samples_per_insert != int(self.samples_per_insert)):
      raise ValueError('replay_sampler fifo needs a whole samples_per_insert, '
                       f'not {self.samples_per_insert}.')
    if (self.replay_sampler == 'fifo' and self.uses_replay and
        self.replay_capacity < 2):
      # Reverb's rate limiter would block both sides.
      raise ValueError('replay_sampler fifo needs a replay_capacity of at least '
                       f'2, not {self.replay_capacity}.')
    if self.uses_replay and self.min_replay_size > self.replay_capacity:
      raise ValueError(
          f'min_replay_size ({self.min_replay_size}) must not exceed '
          f'replay_capacity ({self.replay_capacity}).')
    if self.uses_replay and self.min_replay_size > self.queue_capacity:
      # The learner starts once both tables can be sampled; a full queue would
      # block the actors before the replay table holds enough.
      raise ValueError(
          f'min_replay_size ({self.min_replay_size}) must not exceed '
          f'queue_capacity ({self.queue_capacity}), or nothing could start.')

  @property
  def online_batch_size(self) -> int:
    """Trajectories of each batch that come from the online queue."""
    return round(self.batch_size / self.samples_per_insert)

  @property
  def replay_batch_size(self) -> int:
    """Trajectories of each batch that come from the replay table."""
    return self.batch_size - self.online_batch_size

  @property
  def uses_replay(self) -> bool:
    return self.replay_batch_size > 0

  @property
  def timesteps_per_learner_step(self) -> int:
    """Timesteps that are new to the learner in each of its steps."""
    return self.online_batch_size * self.sequence_length
