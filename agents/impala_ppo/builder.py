"""The builder: Acme's names for the parts of the PPO-IMPALA agent."""

import copy
from typing import Iterator, Optional, Sequence, Union

from acme import core
from acme import specs
from acme.utils import counting
import reverb
import tensorflow as tf

from agents.impala_ppo import acting
from agents.impala_ppo import adders
from agents.impala_ppo import config as config_lib
from agents.impala_ppo import learning
from agents.impala_ppo import losses
from agents.impala_ppo import networks as networks_lib
from agents.impala_ppo import replay
from agents.impala_ppo import trajectories

Clients = Union[reverb.Client, Sequence[reverb.Client]]


class ImpalaPPOBuilder:
  """Makes each part of the agent; the caller decides who runs them, and where.

  Methods have the names and arguments of Acme's builders; `random_key` is an
  integer seed. Where Acme passes one Reverb client, a sequence of clients can
  be passed, for the shards of a distributed replay.
  """

  def __init__(self, config: config_lib.ImpalaPPOConfig,
               devices: Optional[Sequence[str]] = None,
               loss: losses.LossFunction = losses.impala_ppo_loss):
    """Makes a builder.

    Args:
      config: the agent's settings.
      devices: where the learner's replicas compute; by default all GPUs that
        its process sees, or else the CPU.
      loss: what the learner minimises, with the arguments and results of
        `losses.impala_ppo_loss`, which it may call.

    Raises:
      ValueError: if batches cannot be split evenly over the devices. By default
        the devices are known, and this is raised, only when the learner or its
        batches are made.
    """
    self._config = config
    self._check_split(len(devices or ()))
    self._devices = devices
    self._loss = loss
    self._strategy: Optional[tf.distribute.Strategy] = None

  def make_networks(
      self,
      environment_spec: specs.EnvironmentSpec) -> networks_lib.ImpalaPPONetworks:
    """Makes the networks; raises ValueError if none fits the environment."""
    return networks_lib.make_networks(environment_spec, self._config)

  def make_replay_tables(
      self, environment_spec: specs.EnvironmentSpec) -> list[reverb.Table]:
    """Makes the tables of one Reverb shard."""
    return replay.make_tables(environment_spec, self._config)

  def make_dataset_iterator(
      self, replay_client: Clients) -> Iterator[trajectories.Trajectories]:
    """Makes the learner's batches from all shards; waits until the first answers.

    Args:
      replay_client: of the replay's shard, or a list with one for each shard.

    Returns:
      An endless iterator over batches, split over the learner's devices.
    """
    dataset = replay.make_dataset(
        [client.server_address for client in _clients(replay_client)],
        self._config)
    return replay.distribute(dataset, self._get_strategy())

  def make_adder(self, replay_client: reverb.Client) -> adders.ImpalaPPOAdder:
    """Makes an adder that writes to one shard."""
    return adders.ImpalaPPOAdder(
        replay_client,
        sequence_length=self._config.sequence_length,
        frame_stack=self._config.frame_stack,
        replay_table=self._config.uses_replay)

  def make_policy(self, networks: networks_lib.ImpalaPPONetworks,
                  environment_spec: specs.EnvironmentSpec,
                  evaluation: bool = False) -> acting.Policy:
    """Makes a policy that samples, or takes the best action in evaluation.

    It acts with a copy of the networks' current weights, since a learner in the
    same process may be training the originals. New weights come, with their
    version, through the `variable_source` of `make_actor`.
    """
    observation = environment_spec.observations
    actor_critic = copy.deepcopy(networks.actor_critic)
    actor_critic(tf.zeros([1, *observation.shape], observation.dtype))
    return acting.Policy(
        actor_critic, tf.TensorSpec(observation.shape, observation.dtype),
        greedy=evaluation)

  def make_actor(
      self,
      random_key: int,
      policy_network: acting.Policy,
      adder: Optional[adders.ImpalaPPOAdder] = None,
      variable_source: Optional[core.VariableSource] = None,
  ) -> acting.ImpalaPPOActor:
    """Makes an actor for E environments at once.

    Args:
      random_key: seeds the choice of actions.
      policy_network: from `make_policy`.
      adder: takes the experience; None to drop it.
      variable_source: provides weights; this call waits for the first.

    Returns:
      An actor of [E, ...]; for Acme's own loop, or any plain environment, wrap
      it in `SingleEnvironmentActor`.
    """
    variable_client = None
    if variable_source is not None:
      variable_client = acting.VariableClient(
          variable_source, policy_network, self._config.variable_update_period)
      variable_client.update_and_wait()
    return acting.ImpalaPPOActor(policy_network, random_key, adder,
                                 variable_client)

  def make_learner(
      self,
      random_key: int,
      networks: networks_lib.ImpalaPPONetworks,
      dataset: Iterator[trajectories.Trajectories],
      replay_client: Optional[Clients] = None,
      counter: Optional[counting.Counter] = None,
      update: Optional[learning.Update] = None,
  ) -> learning.ImpalaPPOLearner:
    """Makes the learner, on all of the builder's devices.

    Args:
      random_key: seeds the networks' initial weights.
      networks: the networks to train, without variables yet.
      dataset: from `make_dataset_iterator`.
      replay_client: used to update priorities.
      counter: counts learner steps.
      update: see `learning.ImpalaPPOLearner`.

    Returns:
      The learner.

    Raises:
      ValueError: if prioritised replay has no clients, GPUs are missing, or batches
        cannot be split evenly over the devices.
    """
    tf.random.set_seed(random_key)
    return learning.ImpalaPPOLearner(
        networks, self._config, dataset, self._get_strategy(),
        _clients(replay_client) if replay_client is not None else (), counter,
        update, self._loss)

  def _get_strategy(self) -> tf.distribute.Strategy:
    # Made late, in the learner's process: it claims the devices.
    if self._strategy is None:
      strategy = learning.make_strategy(self._devices)
      self._check_split(strategy.num_replicas_in_sync)
      self._strategy = strategy
    return self._strategy

  def _check_split(self, num_devices: int) -> None:
    if num_devices and self._config.batch_size % num_devices:
      raise ValueError(
          f'batch_size must be a multiple of the {num_devices} devices that the '
          f'learner computes on, not {self._config.batch_size}.')


def _clients(clients: Clients) -> Sequence[reverb.Client]:
  return [clients] if isinstance(clients, reverb.Client) else list(clients)
