"""The policy and the actor that runs it for many environments at once."""

from typing import Optional, Sequence, Tuple

from acme import adders
from acme import core
from acme import types
from acme.tf import variable_utils
import dm_env
import numpy as np
import tensorflow as tf

from agents.impala_ppo import networks as networks_lib

# The collection of variables that learners serve and actors ask for.
POLICY = 'policy'


class Policy:
  """What an actor needs to act: the encoder and heads, and no decoder.

  Attributes:
    variables: weights, and last the `version` of the learner that they are
      from, so that both always arrive together.
    version: [] int64.
    observation_rank: rank of one environment's observation.
  """

  def __init__(self, actor_critic: networks_lib.ActorCritic,
               observation_spec: tf.TensorSpec, greedy: bool):
    """Makes a policy.

    Args:
      actor_critic: a network that already has its variables.
      observation_spec: of one environment.
      greedy: whether to take the most likely action rather than sample.
    """
    self.version = tf.Variable(0, dtype=tf.int64, trainable=False)
    self.variables = (*actor_critic.variables, self.version)
    self.observation_rank = observation_spec.shape.rank

    def step(observation, seed):
      logits, _ = actor_critic(observation)
      if greedy:
        action = tf.argmax(logits, axis=-1, output_type=tf.int32)
      else:
        action = tf.random.stateless_categorical(
            logits, 1, seed, dtype=tf.int32)[:, 0]
      # With the step, so that no other call has to read it.
      return action, logits, tf.identity(self.version)

    self._step = tf.function(step).get_concrete_function(
        tf.TensorSpec([None, *observation_spec.shape], observation_spec.dtype),
        tf.TensorSpec([2], tf.int64))
    # Looked up once: the property flattens them anew each time.
    self._captured = self._step.captured_inputs

  def __call__(
      self, observation: np.ndarray,
      seed: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chooses actions.

    Args:
      observation: [E, ...].
      seed: [2] int64; the same seed draws the same actions.

    Returns:
      Actions [E] int32, their logits [E, A] float32, and the version [] int64
      of the weights that made them.
    """
    # Not `self._step(...)`, nor `tf.constant`: the checks in them, whose code the
    # environments have driven out of the caches, cost half of a call.
    action, logits, version = tf.raw_ops.PartitionedCall(
        args=[_contiguous(observation), seed, *self._captured],
        Tout=[tf.int32, tf.float32, tf.int64], f=self._step)
    return action.numpy(), logits.numpy(), version.numpy()


def _contiguous(observation: np.ndarray) -> np.ndarray:
  """Copies an observation [..., C] if it is a view of planes, as Atari's is."""
  if observation.flags.c_contiguous:
    return observation
  # Plane by plane, which is twice as fast as pixel by pixel.
  copy = np.empty(observation.shape, observation.dtype)
  for channel in range(copy.shape[-1]):
    copy[..., channel] = observation[..., channel]
  return copy


class VariableClient(variable_utils.VariableClient):
  """Acme's client, which takes weights over in a third of its time."""

  _taken: Optional[Sequence[np.ndarray]] = None

  def _copy(self, new_variables: Sequence[Sequence[np.ndarray]]):
    weights, = new_variables
    if weights is self._taken:  # There are no others yet.
      return
    shapes = [np.shape(weight) for weight in weights]
    expected = [tuple(variable.shape) for variable in self._variables]
    if shapes != expected:
      raise ValueError(f'weights are of shapes {shapes}; this policy has '
                       f'{expected}.')
    for variable, weight in zip(self._variables, weights):
      # Without the checks of `variable.assign(weight)`; it copies, too.
      tf.raw_ops.AssignVariableOp(
          resource=variable.handle,
          value=np.asarray(weight, variable.dtype.as_numpy_dtype))
    self._taken = weights


class ImpalaPPOActor(core.Actor):
  """Acts with one policy call for all its environments.

  Observations and time steps may be batched, [E, ...], or those of a single
  environment, as Acme's own `EnvironmentLoop` gives them.
  """

  def __init__(
      self,
      policy: Policy,
      seed: int,
      adder: Optional[adders.Adder] = None,
      variable_client: Optional[variable_utils.VariableClient] = None,
  ):
    """Makes an actor.

    Args:
      policy: what to act with.
      seed: seeds the choice of actions.
      adder: takes the experience; None to drop it.
      variable_client: brings new weights; None to keep those of the policy.
    """
    self._policy = policy
    self._adder = adder
    self._variable_client = variable_client
    self._seed = np.array([seed, 0], np.int64)
    self._extras = None

  def select_action(self, observation: types.NestedArray) -> types.NestedArray:
    self._seed[1] += 1
    is_batched = np.ndim(observation) > self._policy.observation_rank
    if not is_batched:
      observation = np.asarray(observation)[None]
    action, logits, version = self._policy(observation, self._seed)
    self._extras = {'behaviour_logits': logits, 'policy_version': version}
    return action if is_batched else action[0]

  def observe_first(self, timestep: dm_env.TimeStep):
    if self._adder:
      self._adder.add_first(timestep)

  def observe(self, action: types.NestedArray, next_timestep: dm_env.TimeStep):
    if self._adder:
      self._adder.add(action, next_timestep, self._extras)

  def update(self, wait: bool = False):
    """Asks for new weights every so often, and takes those that have come.

    Args:
      wait: ask now, and wait for them. Acme's client would only do so every
        `update_period` calls, which evaluators do not make.
    """
    if not self._variable_client:
      return
    if wait:
      self._variable_client.update_and_wait()
    else:
      self._variable_client.update()
