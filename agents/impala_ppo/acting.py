"""The policy and the actor that runs it for many environments at once."""

from typing import Mapping, Optional, Sequence

from acme import adders
from acme import core
from acme import types
from acme.tf import variable_utils
import dm_env
import numpy as np
import tensorflow as tf

from agents import environments
from agents.impala_ppo import networks as networks_lib
from agents.impala_ppo import ops

# The collections of variables that learners serve and actors ask for: the
# weights, and the number of learner steps that made them.
POLICY = 'policy'
VERSION = 'version'


class Policy:
  """What an actor needs to act: the encoder and heads, without a decoder.

  Attributes:
    variables: the collections `POLICY` and `VERSION`.
    observation_spec: of one environment.
  """

  def __init__(self, actor_critic: networks_lib.ActorCritic,
               observation_spec: tf.TensorSpec, greedy: bool):
    """Makes a policy.

    Args:
      actor_critic: a network that already has its variables.
      observation_spec: of one environment.
      greedy: whether to take the most likely action rather than sample.
    """
    version = tf.Variable(0, dtype=tf.int64, trainable=False)
    self.variables: Mapping[str, Sequence[tf.Variable]] = {
        POLICY: actor_critic.variables, VERSION: [version]}
    self.observation_spec = observation_spec

    def step(observation: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, ...]:
      logits, _ = actor_critic(observation)
      if greedy:
        action = tf.argmax(logits, axis=-1, output_type=tf.int32)
      else:
        action = tf.random.stateless_categorical(
            logits, 1, seed, dtype=tf.int32)[:, 0]
      # Returned with the step, so that no other call has to read it.
      return action, logits, tf.identity(version)

    self._step = ops.caller(
        step,
        tf.TensorSpec([None, *observation_spec.shape], observation_spec.dtype),
        tf.TensorSpec([2], tf.int64))

  def __call__(
      self, observation: np.ndarray,
      seed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chooses actions.

    Args:
      observation: [E, ...].
      seed: [2] int64; the same seed draws the same actions.

    Returns:
      Actions [E] int32, their logits [E, A] float32, and the version [] int64
      of the weights that made them.
    """
    action, logits, version = self._step(ops.contiguous(observation), seed)
    return action.numpy(), logits.numpy(), version.numpy()


class VariableClient(variable_utils.VariableClient):
  """Acme's client; copies each version of a policy's variables only once."""

  def __init__(self, source: core.VariableSource, policy: Policy,
               update_period: int):
    """Makes a client.

    Args:
      source: serves the collections `POLICY` and `VERSION`.
      policy: the policy whose variables to update.
      update_period: calls of `update` between two requests.
    """
    super().__init__(source, policy.variables, update_period)
    self._collections = policy.variables
    self._version: Optional[int] = None

  def update_and_wait(self) -> None:
    """Takes the newest weights; an answer still due would only be older."""
    self._future = None
    super().update_and_wait()

  def _copy(self, new_variables: Sequence[Sequence[np.ndarray]]) -> None:
    served = dict(zip(self._collections, new_variables))
    version = int(served[VERSION][0])
    if version == self._version:
      return
    for name, variables in self._collections.items():
      shapes = [np.shape(value) for value in served[name]]
      expected = [tuple(variable.shape) for variable in variables]
      if shapes != expected:
        raise ValueError(f'{name} variables are of shapes {shapes}; this policy '
                         f'has {expected}.')
    for name, variables in self._collections.items():
      ops.assign(variables, served[name])
    self._version = version


class ImpalaPPOActor(core.Actor):
  """Acts with one policy call for all E environments, [E, ...] in each field.

  `SingleEnvironmentActor` adapts it to one plain environment.

  Attributes:
    observation_spec: of one environment.
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
    self.observation_spec = policy.observation_spec
    self._policy = policy
    self._adder = adder
    self._variable_client = variable_client
    self._seed = np.array([seed, 0], np.int64)
    self._extras: types.NestedArray = None

  def select_action(self, observation: np.ndarray) -> np.ndarray:
    """Returns actions [E] int32 for observations [E, ...].

    Raises:
      ValueError: for an observation without the axis of environments.
    """
    if observation.ndim != self._policy.observation_spec.shape.rank + 1:
      raise ValueError(
          f'observations are of shape {list(observation.shape)}; this actor '
          f'needs [E, ...] of {list(self._policy.observation_spec.shape)}. For a '
          'plain environment, wrap it in SingleEnvironmentActor.')
    self._seed[1] += 1
    action, logits, version = self._policy(observation, self._seed)
    self._extras = {'behaviour_logits': logits, 'policy_version': version}
    return action

  def observe_first(self, timestep: dm_env.TimeStep) -> None:
    if self._adder:
      self._adder.add_first(timestep)

  def observe(self, action: np.ndarray, next_timestep: dm_env.TimeStep) -> None:
    if self._adder:
      self._adder.add(action, next_timestep, self._extras)

  def update(self, wait: bool = False) -> None:
    """Requests new weights periodically, and takes those that have arrived.

    Args:
      wait: request them now, and wait for them. Acme's client would only do so
        every `update_period` calls, and evaluators do not make that many.
    """
    if not self._variable_client:
      return
    if wait:
      self._variable_client.update_and_wait()
    else:
      self._variable_client.update()


class SingleEnvironmentActor(core.Actor):
  """Adapts an actor of [E, ...] to one environment, as in Acme's own loop.

  Observations are converted to the dtype of the environment's spec, rewards and
  discounts to single numbers; what cannot be converted raises ValueError.
  """

  def __init__(self, actor: ImpalaPPOActor):
    self._actor = actor

  def select_action(self, observation: types.NestedArray) -> np.ndarray:
    return self._actor.select_action(self._batch_of_one(observation))[0]

  def observe_first(self, timestep: dm_env.TimeStep) -> None:
    self._actor.observe_first(self._timesteps(timestep))

  def observe(self, action: types.NestedArray,
              next_timestep: dm_env.TimeStep) -> None:
    self._actor.observe(np.asarray(action, np.int32)[None],
                        self._timesteps(next_timestep))

  def update(self, wait: bool = False) -> None:
    self._actor.update(wait)

  def _timesteps(self, timestep: dm_env.TimeStep) -> dm_env.TimeStep:
    batch = dm_env.TimeStep(
        np.asarray(timestep.step_type)[None],
        _single_number('rewards', timestep.reward),
        _single_number('discounts', timestep.discount),
        self._batch_of_one(timestep.observation))
    if environments.bad_copies(batch).any():
      raise environments.BadNumberError(
          f'{environments.describe_bad_number(batch, 0)}; mend the environment.')
    return batch

  def _batch_of_one(self, observation: types.NestedArray) -> np.ndarray:
    observation = np.asarray(observation)
    spec = self._actor.observation_spec
    dtype = spec.dtype.as_numpy_dtype
    if (observation.shape != tuple(spec.shape) or
        not np.can_cast(observation.dtype, dtype, 'same_kind')):
      raise ValueError(
          f'observations must be {list(spec.shape)} {spec.dtype.name}, as the '
          f"environment's spec says, not {list(observation.shape)} "
          f'{observation.dtype}.')
    # A copy: the environment may change its array in the next step.
    return observation[None].astype(dtype)


def _single_number(what: str, value: types.NestedArray) -> np.ndarray:
  """Returns [1] float32; a FIRST step has neither reward nor discount."""
  array = np.asarray(0. if value is None else value, np.float32)
  if array.size != 1:
    raise ValueError(f'{what} must be single numbers, not of shape '
                     f'{list(array.shape)}.')
  return array.reshape(1)
