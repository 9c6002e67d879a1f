"""Whatever an actor sees and does, the learner gets it back, bit for bit."""

import dataclasses
import itertools

from acme import specs
import dm_env
import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import reverb

from agents.impala_ppo import adders
from agents.impala_ppo import config as config_lib
from agents.impala_ppo import replay

FIRST, MID, LAST = dm_env.StepType
NUM_ACTIONS = 3


@dataclasses.dataclass(frozen=True)
class Case:
  """What is random of an experience, but for its numbers.

  Attributes:
    shape: of one observation.
    frame_stack: S.
    sequence_length: T.
    num_items: how many trajectories of each environment.
    episodes: for each of E environments, in turn and over again, the length of
      an episode and whether it is truncated.
    replayed: how often each item is replayed after it was passed once.
    begins_episodes: whether resets come as `add_first`, as in Acme's loop; for
      one environment only.
    seed: of the numbers.
  """
  shape: tuple
  frame_stack: int
  sequence_length: int
  num_items: int
  episodes: list
  replayed: int
  begins_episodes: bool
  seed: int

  @property
  def num_envs(self):
    return len(self.episodes)


@st.composite
def cases(draw):
  shape, frame_stack = draw(st.sampled_from([
      ((5,), 1), ((3, 2, 2), 1), ((3, 2, 2), 2), ((2, 3, 4), 4)]))
  episode = st.tuples(st.integers(1, 9), st.booleans())
  episodes = draw(st.lists(st.lists(episode, min_size=1, max_size=4), min_size=1,
                           max_size=4))
  return Case(
      shape, frame_stack, sequence_length=draw(st.integers(1, 7)),
      num_items=draw(st.integers(1, 4)), episodes=episodes,
      replayed=draw(st.integers(0, 2)),
      begins_episodes=len(episodes) == 1 and draw(st.booleans()),
      seed=draw(st.integers(0, 2**16)))


class Experience:
  """Random numbers in the given episodes.

  Attributes:
    timesteps: what the environments answered, from the reset on.
    actions: [E] of each step.
    extras: of each step.
  """

  def __init__(self, case):
    self._case = case
    self._rng = np.random.default_rng(case.seed)
    self._age = np.zeros(case.num_envs, int)
    self._episode = np.zeros(case.num_envs, int)
    self._step_type = np.full(case.num_envs, FIRST, np.int32)
    self._observation = np.zeros(
        (case.num_envs, *case.shape),
        np.float32 if len(case.shape) == 1 else np.uint8)
    self.timesteps = [self._answer()]
    self.actions, self.extras = [], []
    for _ in range(case.num_items * case.sequence_length + 1):
      self._step()
      self.timesteps.append(self._answer())

  def _step(self):
    case, was_last = self._case, self._step_type == LAST
    self._age = np.where(was_last, 0, self._age + 1)
    self._episode += was_last
    lengths = [episodes[k % len(episodes)][0]
               for episodes, k in zip(case.episodes, self._episode)]
    self._step_type = np.where(
        was_last, FIRST, np.where(self._age == lengths, LAST, MID)
    ).astype(np.int32)
    self.actions.append(self._rng.integers(
        NUM_ACTIONS, size=case.num_envs, dtype=np.int32))
    self.extras.append({
        'behaviour_logits': self._normal(case.num_envs, NUM_ACTIONS),
        'policy_version': np.int64(self._rng.integers(2**40))})
    if (was_last & case.begins_episodes).all():
      # Nobody acts on the last observation there.
      self.actions[-1] = np.zeros(1, np.int32)
      self.extras[-1] = self.extras[-2]

  def _answer(self):
    case, is_first = self._case, self._step_type == FIRST
    new = self._rng.integers(1, 256, self._observation.shape)
    if case.frame_stack > 1:
      before = np.where(is_first[:, None, None, None], 0, self._observation)
      new = np.concatenate([before[..., 1:], new[..., :1]], axis=-1)
    self._observation = new.astype(self._observation.dtype)
    truncated = np.array([
        episodes[k % len(episodes)][1]
        for episodes, k in zip(case.episodes, self._episode)])
    discount = np.where(self._step_type == LAST, truncated, 1)
    return dm_env.TimeStep(
        self._step_type, np.where(is_first, 0, self._normal(case.num_envs)),
        np.where(is_first, 0, discount).astype(np.float32), self._observation)

  def _normal(self, *shape):
    return self._rng.normal(size=shape).astype(np.float32)

  def write(self, adder):
    adder.add_first(self.timesteps[0])
    for action, extras, timestep in zip(self.actions, self.extras,
                                        self.timesteps[1:]):
      if self._case.begins_episodes and timestep.step_type[0] == FIRST:
        adder.add_first(timestep)
      else:
        adder.add(action, timestep, extras)
    adder.reset()

  def trajectories(self, item):
    """Returns the columns [E, T, ...] of an item, as they have to come out."""
    length = self._case.sequence_length
    steps = range(item * length, (item + 1) * length)

    def stack(column):
      return np.stack(column, axis=1)

    return {
        'observation': stack([
            self.timesteps[t].observation for t in (*steps, steps.stop)]),
        'action': stack([self.actions[t] for t in steps]),
        'reward': stack([self.timesteps[t + 1].reward for t in steps]),
        'discount': stack([self.timesteps[t + 1].discount for t in steps]),
        'mask': stack([self.timesteps[t + 1].step_type != FIRST for t in steps]),
        'behaviour_logits': stack([
            self.extras[t]['behaviour_logits'] for t in steps]),
        'policy_version': stack([
            np.full(self._case.num_envs, self.extras[t]['policy_version'])
            for t in steps]),
    }


def learner_batches(case, experience):
  """Writes and reads through a server; returns a batch for each item."""
  config = config_lib.ImpalaPPOConfig(
      frame_stack=case.frame_stack, sequence_length=case.sequence_length,
      batch_size=case.num_envs * (1 + case.replayed),
      samples_per_insert=1. + case.replayed, replay_sampler='fifo',
      queue_capacity=case.num_items, replay_capacity=max(case.num_items, 2),
      prefetch_size=0)
  spec = specs.EnvironmentSpec(
      observations=specs.Array(case.shape,
                               experience.timesteps[0].observation.dtype),
      actions=specs.DiscreteArray(NUM_ACTIONS, dtype=np.int32),
      rewards=specs.Array((), np.float32),
      discounts=specs.BoundedArray((), np.float32, 0., 1.))
  server = reverb.Server(replay.make_tables(spec, config))
  address = f'localhost:{server.port}'
  experience.write(adders.ImpalaPPOAdder(
      reverb.Client(address), case.sequence_length, case.frame_stack,
      config.uses_replay))
  iterator = iter(replay.make_dataset([address], config))
  batches = list(itertools.islice(iterator, case.num_items))
  server.stop()  # While there is the iterator, which would wait for more.
  return batches


@pytest.mark.slow
@hypothesis.settings(max_examples=25, derandomize=True, database=None)
@hypothesis.given(cases())
def test_what_comes_out_is_what_went_in(case):
  experience = Experience(case)
  batches = learner_batches(case, experience)
  assert len(batches) == case.num_items
  # Oldest first, each item is replayed as often as all others.
  replayed = np.repeat(np.arange(case.num_items), case.replayed)
  for item, batch in enumerate(batches):
    items = [item, *replayed[item * case.replayed:(item + 1) * case.replayed]]
    parts = [experience.trajectories(i) for i in items]
    for name in parts[0]:
      expected = np.concatenate([part[name] for part in parts])
      actual = getattr(batch, name)
      assert actual.dtype == expected.dtype, name
      np.testing.assert_array_equal(actual, expected, name)
