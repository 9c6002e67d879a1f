"""The policy, the actors that run it, and how they come by weights."""

import time

from acme import core
from acme import specs
import dm_env
import numpy as np
import pytest
import tensorflow as tf

from agents.impala_ppo import acting
from agents.impala_ppo import builder as builder_lib
from agents.impala_ppo import config as config_lib

NUM_ACTIONS = 6
SHAPE = (16, 16, 4)
FIRST, MID, LAST = dm_env.StepType


def make(evaluation=False, shape=SHAPE, dtype=np.uint8, **settings):
  """Returns a builder, its networks and a policy of theirs."""
  spec = specs.EnvironmentSpec(
      observations=specs.Array(shape, dtype),
      actions=specs.DiscreteArray(NUM_ACTIONS),
      rewards=specs.Array((), np.float32),
      discounts=specs.BoundedArray((), np.float32, 0., 1.))
  builder = builder_lib.ImpalaPPOBuilder(config_lib.ImpalaPPOConfig(**settings))
  networks = builder.make_networks(spec)
  networks.create_variables()
  return builder, networks, builder.make_policy(networks, spec, evaluation)


def observations(num_envs=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (num_envs, *SHAPE)).astype(np.uint8)


def seeds(number):
  return np.array([0, number], np.int64)


class Source(core.VariableSource):
  """Serves a policy's weights, each moved by the version."""

  def __init__(self, policy, version=0):
    self.weights = [v.numpy() for v in policy.variables['policy']]
    self.version = version

  def get_variables(self, names):
    collections = {'policy': [w + self.version for w in self.weights],
                   'version': [np.int64(self.version)]}
    return [collections[name] for name in names]


def test_a_policy_has_weights_of_its_own():
  builder, networks, policy = make()
  learned = networks.actor_critic.variables
  before = policy(observations(), seeds(0))[1]
  for weight in learned:  # As a learner does in the same process.
    weight.assign_add(tf.ones_like(weight))
  np.testing.assert_array_equal(policy(observations(), seeds(0))[1], before)
  # Nor does what comes for the policy undo a learner's step.
  after = [weight.numpy() for weight in learned]
  builder.make_actor(0, policy, variable_source=Source(policy, version=5))
  for weight, value in zip(learned, after):
    np.testing.assert_array_equal(weight, value)


def assert_has(policy, source, version):
  for variable, weight in zip(policy.variables['policy'], source.weights):
    np.testing.assert_array_equal(variable, weight + np.float32(version))
  assert policy.variables['version'][0] == version


def test_actors_get_no_decoder():
  _, networks, policy = make()
  own, served = policy.variables['policy'], networks.actor_critic.variables
  assert len(own) == len(served)
  # An actor's order has to be that in which the learner serves them.
  for variable, weight in zip(own, served):
    np.testing.assert_array_equal(variable, weight)
  acting_variables = {id(v) for collection in policy.variables.values()
                      for v in collection}
  assert not acting_variables & {id(v) for v in networks.decoder.variables}


def test_actions_come_with_the_version_of_their_weights():
  _, _, policy = make()
  policy.variables['version'][0].assign(7)
  action, logits, version = policy(observations(), seeds(1))
  assert action.shape == (3,) and action.dtype == np.int32
  assert logits.shape == (3, NUM_ACTIONS) and logits.dtype == np.float32
  assert version == 7 and version.dtype == np.int64


def test_actions_are_drawn_from_the_logits_and_the_same_seed_draws_the_same():
  _, networks, policy = make()
  observation = np.repeat(observations(1), 2000, axis=0)
  head = next(v for v in policy.variables['policy'] if v.shape == (NUM_ACTIONS,))
  head.assign(np.log([0.4, 0.3, 0.1, 0.1, 0.05, 0.05]))
  action, logits, _ = policy(observation, seeds(1))
  expected = tf.nn.softmax(logits[0])
  frequency = np.bincount(action, minlength=NUM_ACTIONS) / len(action)
  # Five standard deviations of a frequency among 2000.
  np.testing.assert_allclose(frequency, expected, atol=0.056)
  np.testing.assert_array_equal(action, policy(observation, seeds(1))[0])
  assert (action != policy(observation, seeds(2))[0]).any()


def test_evaluation_takes_the_likeliest_action():
  _, _, policy = make(evaluation=True)
  action, logits, _ = policy(observations(16), seeds(1))
  np.testing.assert_array_equal(action, logits.argmax(axis=-1))


def test_a_policy_takes_observations_in_any_layout():
  _, _, policy = make(frame_stack=4)
  observation = np.random.default_rng(0).integers(
      0, 256, (3, 4, 16, 16)).astype(np.uint8).transpose(0, 2, 3, 1)
  for x, y in zip(policy(observation, seeds(1)),
                  policy(observation.copy('C'), seeds(1))):
    np.testing.assert_array_equal(x, y)


def test_an_actor_takes_over_the_weights_of_a_source():
  builder, _, policy = make(variable_update_period=2)
  source = Source(policy, version=3)
  actor = builder.make_actor(0, policy, variable_source=source)
  assert_has(policy, source, 3)  # It does not act before.
  source.version = 4
  actor.update()
  assert_has(policy, source, 3)
  deadline = time.monotonic() + 30
  while policy.variables['version'][0] == 3 and time.monotonic() < deadline:
    actor.update()
  assert_has(policy, source, 4)


def test_an_evaluator_waits_for_weights_at_once_and_each_time():
  builder, _, policy = make(variable_update_period=1000)
  source = Source(policy)
  evaluator = builder.make_actor(0, policy, variable_source=source)
  for version in (5, 6):
    source.version = version
    evaluator.update(wait=True)
    assert_has(policy, source, version)


def test_weights_that_were_waited_for_are_not_replaced_by_older_ones():
  builder, _, policy = make(variable_update_period=1)
  source = Source(policy, version=3)
  actor = builder.make_actor(0, policy, variable_source=source)
  source.version = 4
  actor.update()  # The answer to this request may be taken in later.
  source.version = 5
  actor.update(wait=True)
  assert_has(policy, source, 5)
  time.sleep(0.2)
  actor.update()
  assert policy.variables['version'][0] == 5


def test_each_version_is_taken_over_once():
  builder, _, policy = make()
  source = Source(policy, version=3)
  actor = builder.make_actor(0, policy, variable_source=source)
  changed = policy.variables['policy'][0]
  changed.assign_add(tf.ones_like(changed))
  kept = changed.numpy()
  actor.update(wait=True)
  np.testing.assert_array_equal(changed, kept)
  source.version = 4
  actor.update(wait=True)
  assert_has(policy, source, 4)


@pytest.mark.parametrize('foreign', [
    lambda weights: weights[1:],
    lambda weights: [w[..., None] for w in weights],
])
def test_weights_of_another_network_are_refused_and_change_nothing(foreign):
  builder, _, policy = make()
  before = Source(policy)
  source = Source(policy, version=1)
  source.weights = foreign(source.weights)
  with pytest.raises(ValueError, match='this policy has'):
    builder.make_actor(0, policy, variable_source=source)
  assert_has(policy, before, 0)


def test_weights_taken_over_are_copies():
  builder, _, policy = make()

  def aligned(value):
    # TensorFlow shares only memory that begins on such a boundary.
    raw = np.zeros(value.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    array = raw[start:start + value.nbytes].view(value.dtype).reshape(value.shape)
    array[...] = value
    return array

  class FixedSource(core.VariableSource):
    """Serves the same arrays again and again."""
    collections = {name: [aligned(v.numpy()) for v in collection]
                   for name, collection in policy.variables.items()}

    def get_variables(self, names):
      return [self.collections[name] for name in names]

  source = FixedSource()
  served = [x for collection in source.collections.values() for x in collection]
  before = [x.copy() for x in served]
  builder.make_actor(0, policy, variable_source=source)
  for collection in policy.variables.values():
    for variable in collection:
      variable.assign_add(tf.ones_like(variable))
  for x, old in zip(served, before):
    np.testing.assert_array_equal(x, old)


class RecordingAdder:
  """Keeps what it is given."""

  def __init__(self):
    self.firsts, self.steps = [], []

  def add_first(self, timestep):
    self.firsts.append(timestep)

  def add(self, action, next_timestep, extras):
    self.steps.append((action, next_timestep, extras))


def test_an_actor_gives_the_adder_what_it_acted_on():
  builder, _, policy = make()
  policy.variables['version'][0].assign(5)
  adder = RecordingAdder()
  actor = builder.make_actor(0, policy, adder)
  zeros = np.zeros(3, np.float32)
  first = dm_env.TimeStep(np.full(3, FIRST), zeros, zeros, observations(seed=0))
  after = dm_env.TimeStep(np.full(3, MID), zeros, zeros, observations(seed=1))
  actor.observe_first(first)
  action = actor.select_action(first.observation)
  actor.observe(action, after)
  assert adder.firsts == [first]
  (added, timestep, extras), = adder.steps
  assert added is action and timestep is after
  _, logits, _ = policy(first.observation, seeds(1))
  np.testing.assert_array_equal(extras['behaviour_logits'], logits)
  assert extras['policy_version'] == 5


def test_one_observation_alone_is_refused_with_what_to_do():
  builder, _, policy = make()
  with pytest.raises(ValueError, match='SingleEnvironmentActor'):
    builder.make_actor(0, policy).select_action(observations()[0])


def test_a_single_environment_is_a_batch_of_one():
  builder, _, policy = make()
  adder = RecordingAdder()
  single = acting.SingleEnvironmentActor(builder.make_actor(0, policy, adder))
  before, after = observations(2)
  single.observe_first(dm_env.restart(before))
  action = single.select_action(before)
  single.observe(action, dm_env.transition(1.5, after, 0.25))
  single.observe(action, dm_env.termination(2.5, before))

  expected, logits, _ = policy(before[None], seeds(1))
  assert np.shape(action) == () and action == expected[0]
  (first,), ((added, middle, extras), (_, last, _)) = adder.firsts, adder.steps
  np.testing.assert_array_equal(added, [action])
  np.testing.assert_array_equal(extras['behaviour_logits'], logits)
  # A FIRST step of dm_env's has neither reward nor discount.
  for timestep, step_type, reward, discount, observation in (
      (first, FIRST, 0., 0., before), (middle, MID, 1.5, 0.25, after),
      (last, LAST, 2.5, 0., before)):
    np.testing.assert_array_equal(timestep.step_type, [step_type])
    np.testing.assert_array_equal(timestep.reward, [reward])
    np.testing.assert_array_equal(timestep.discount, [discount])
    np.testing.assert_array_equal(timestep.observation, [observation])


def test_what_a_single_environment_gives_is_made_as_its_spec_says():
  builder, _, policy = make(shape=(3,), dtype=np.float32)
  adder = RecordingAdder()
  single = acting.SingleEnvironmentActor(builder.make_actor(0, policy, adder))
  before, after = np.arange(6, dtype=np.float32).reshape(2, 3)
  single.observe_first(dm_env.restart(before.astype(np.float64)))
  action = single.select_action(before.astype(np.float64))
  single.observe(action, dm_env.TimeStep(
      dm_env.StepType.MID, np.array([1.5]), np.ones((1, 1)), after.tolist()))
  (first,), ((_, middle, _),) = adder.firsts, adder.steps
  for timestep, observation in ((first, before), (middle, after)):
    np.testing.assert_array_equal(timestep.observation, [observation])
    assert [field.dtype for field in timestep[1:]] == 3 * [np.float32]
  np.testing.assert_array_equal(middle.reward, [1.5])
  np.testing.assert_array_equal(middle.discount, [1.])


def test_an_environment_may_change_its_observation_in_place():
  builder, _, policy = make()
  adder = RecordingAdder()
  single = acting.SingleEnvironmentActor(builder.make_actor(0, policy, adder))
  board, *others = observations(3)
  given = [board.copy(), *others]
  single.observe_first(dm_env.restart(board))
  for observation in others:
    action = single.select_action(board)
    board[...] = observation
    single.observe(action, dm_env.transition(0., board))
  for timestep, observation in zip(
      [*adder.firsts, *(timestep for _, timestep, _ in adder.steps)], given):
    np.testing.assert_array_equal(timestep.observation, [observation])


def test_what_a_single_environment_cannot_mean_is_refused():
  builder, _, policy = make()
  single = acting.SingleEnvironmentActor(
      builder.make_actor(0, policy, RecordingAdder()))
  observation = observations()[0]
  for bad, told in ((observation[:-1], '[15, 16, 4]'),
                    (observation[None], '[1, 16, 16, 4]'),
                    (observation.astype(complex), 'complex128'),
                    (observation.astype(str), '<U')):
    with pytest.raises(ValueError, match='observations must be ') as error:
      single.select_action(bad)
    assert told in str(error.value)
  single.observe_first(dm_env.restart(observation))
  action = single.select_action(observation)
  with pytest.raises(ValueError, match=r'rewards must be single.*\[2\]'):
    single.observe(action, dm_env.transition(np.zeros(2), observation))
  with pytest.raises(ValueError, match='discounts must be single'):
    single.observe(action, dm_env.transition(0., observation, np.zeros(3)))


def test_a_single_environments_actor_updates_as_it_is_told():
  class Inner:
    waits = []

    def update(self, wait=False):
      self.waits.append(wait)

  single = acting.SingleEnvironmentActor(Inner())
  single.update()
  single.update(wait=True)
  assert Inner.waits == [False, True]
