"""Numbers that are not finite: stopped or skipped where they enter."""

import math
import re
import threading

from acme import core
from acme.utils import loggers
import dm_env
import gymnasium
import numpy as np
import pytest
import tensorflow as tf

from agents import environments
from agents.impala_ppo import acting
from agents.impala_ppo import networks as networks_lib
from agents.impala_ppo import trajectories
from programs.nodes import actor as actor_node
from programs.nodes import counter as counter_node
from programs.nodes import evaluator
from programs.nodes import limiter as limiter_lib
from tests import bad_readings

FIRST, MID, LAST = dm_env.StepType
MESSAGES = {
    'NanReward': 'reward is nan', 'InfReward': 'reward is inf',
    'HugeReward': 'reward is -inf', 'NanObservation': r'observation\[2\] is nan',
    'InfObservation': r'observation\[2\] is -inf'}


def make(bad_steps, on_bad_number, kind='NanReward', copies=3):
  """Makes copies of which the second one misbehaves; returns it, too."""
  envs = [bad_readings.Misbehaving() for _ in range(copies)]
  envs[1] = bad_readings.Misbehaving(bad_steps, **bad_readings.KINDS[kind])
  vector = gymnasium.vector.SyncVectorEnv([lambda env=env: env for env in envs])
  return environments.VectorEnvironment(
      vector, 0, game='Seven-v0',
      on_bad_number=on_bad_number), envs[1]


def act(environment, num_steps):
  """Returns the time steps of a reset and so many steps."""
  actions = np.zeros(environment.num_envs, np.int32)
  return [environment.reset()] + [
      environment.step(actions) for _ in range(num_steps)]


def copy_of(timesteps, copy):
  return [[field[copy].tolist() for field in timestep] for timestep in timesteps]


@pytest.mark.parametrize('kind', bad_readings.KINDS)
def test_stop_names_game_copy_step_element_and_remedy(kind):
  environment, _ = make([9], 'stop', kind)
  with pytest.raises(environments.BadNumberError) as error:
    act(environment, 20)
  # Five steps and a reset, and its third of the second episode.
  assert re.fullmatch(
      rf'Seven-v0, copy 1, step 3 of its episode: {MESSAGES[kind]}; .*'
      '--on_bad_number skip.', str(error.value))


def test_stop_names_elements_of_images():
  class Image(bad_readings.Misbehaving):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4, 4, 2))

    def _next(self):
      image = np.zeros((4, 4, 2), np.float32)
      image[2, 3, 1] = np.nan
      return image, 1.

  environment = environments.VectorEnvironment(
      gymnasium.vector.SyncVectorEnv([Image]), 0)
  with pytest.raises(environments.BadNumberError,
                     match=r'copy 0, step 0 .*observation\[2, 3, 1\] is nan'):
    environment.reset()


def test_rewards_are_checked_where_observations_are_bytes():
  class Pixels(bad_readings.Misbehaving):
    observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 1), np.uint8)

    def _next(self):
      return np.zeros((8, 8, 1), np.uint8), super()._next()[1]

  environment = environments.VectorEnvironment(
      gymnasium.vector.SyncVectorEnv([lambda: Pixels([2], reward=np.nan)]), 0)
  with pytest.raises(environments.BadNumberError, match='step 2 .* reward is nan'):
    act(environment, 3)


@pytest.mark.parametrize('kind', bad_readings.KINDS)
def test_skip_shows_a_new_episode_in_place_of_the_bad_step(kind):
  environment, env = make([3], 'skip', kind)
  timesteps = act(environment, 7)
  assert copy_of(timesteps, 1) == [
      [FIRST, 0, 0, [0, 0, 7]], [MID, 1, 1, [0, 1, 7]], [MID, 1, 1, [0, 2, 7]],
      [FIRST, 0, 0, [1, 0, 7]], [MID, 1, 1, [1, 1, 7]], [MID, 1, 1, [1, 2, 7]],
      [MID, 1, 1, [1, 3, 7]], [MID, 1, 1, [1, 4, 7]]]
  assert env.resets == 2
  for timestep in timesteps:
    assert [field.dtype for field in timestep] == [
        np.int32, np.float32, np.float32, np.float32]


@pytest.mark.parametrize('kind', ('NanReward', 'InfObservation'))
def test_skip_leaves_the_other_copies_alone(kind):
  timesteps = act(make([3, 5, 8], 'skip', kind)[0], 20)
  undisturbed = act(make([], 'skip')[0], 20)
  for copy in (0, 2):
    assert copy_of(timesteps, copy) == copy_of(undisturbed, copy)


def test_skip_of_a_last_step_resets_once():
  environment, env = make([5], 'skip')
  timesteps = copy_of(act(environment, 11), 1)
  assert [step[0] for step in timesteps] == [
      FIRST, MID, MID, MID, MID, FIRST, MID, MID, MID, MID, LAST, FIRST]
  assert env.resets == 3


def test_skip_begins_an_episode_again_whose_first_observation_is_bad():
  # The very first one, and the two that would follow the first episode.
  environment, env = make([0, 7, 8], 'skip', 'NanObservation')
  timesteps = copy_of(act(environment, 6), 1)
  assert [step[3] for step in timesteps] == [
      [1, 0, 7], [1, 1, 7], [1, 2, 7], [1, 3, 7], [1, 4, 7], [1, 5, 7], [4, 0, 7]]
  assert [timesteps[0][0], timesteps[-1][0]] == [FIRST, FIRST]
  assert env.resets == 5


def test_skip_gives_up_on_an_environment_that_only_begins_badly():
  environment, env = make(range(1000), 'skip', 'NanObservation')
  with pytest.raises(environments.BadNumberError,
                     match=r'copy 1, step 0 .*observation\[2\] is nan, even after '
                     '10 resets'):
    environment.reset()
  assert env.resets == 11


def test_finite_numbers_pass_whatever_their_size():
  largest = float(np.finfo(np.float32).max)
  envs = [lambda: bad_readings.Misbehaving(range(100), largest, -largest)] * 2
  environment = environments.VectorEnvironment(
      gymnasium.vector.SyncVectorEnv(envs), 0)
  last = act(environment, 2)[-1]
  np.testing.assert_array_equal(last.reward, np.float32(largest))
  np.testing.assert_array_equal(last.observation[:, 2], np.float32(-largest))


def test_the_row_of_a_cut_is_no_experience_and_the_one_before_bootstraps():
  timesteps = act(make([3], 'skip')[0], 4)
  extras = {'behaviour_logits': np.zeros((3, 2)), 'policy_version': 0}
  rows = [trajectories.row(before, np.zeros(3), after, extras, frame_stack=1)
          for before, after in zip(timesteps, timesteps[1:])]
  columns = {name: [row[name][1].tolist() for row in rows]
             for name in ('mask', 'reward', 'discount', 'is_first', 'frame')}
  assert columns == {
      'mask': [True, True, False, True], 'reward': [1, 1, 0, 1],
      'discount': [1, 1, 0, 1], 'is_first': [True, False, False, True],
      # The third is what the second, and good, step bootstraps from.
      'frame': [[0, 0, 7], [0, 1, 7], [0, 2, 7], [1, 0, 7]]}


@pytest.mark.parametrize('reward, observation, message', [
    (np.inf, [0., 0.], 'reward is inf; '),
    (0., [0., np.nan], r'observation\[1\] is nan; ')])
def test_plain_environments_of_ones_own_are_checked_too(
    reward, observation, message):
  actor = acting.SingleEnvironmentActor(Idle())
  actor.observe_first(dm_env.restart(np.zeros(2, np.float32)))
  actor.observe(1, dm_env.transition(0., np.zeros(2, np.float32)))
  with pytest.raises(environments.BadNumberError, match=message):
    actor.observe(1, dm_env.transition(
        reward, np.array(observation, np.float32)))


class Idle(core.Actor):
  """Acts at random, in a way."""
  observation_spec = tf.TensorSpec([2], tf.float32)

  def select_action(self, observation):
    return np.zeros(len(observation), np.int32)

  def observe_first(self, timestep):
    pass

  def observe(self, action, next_timestep):
    pass

  def update(self, wait=False):
    pass


def make_counter(**kwargs):
  limiter = limiter_lib.Limiter(10**9, None, stop_program=lambda: None)
  return counter_node.RunCounter(loggers.NoOpLogger(), limiter, **kwargs)


def test_the_return_of_a_cut_episode_is_not_reported():
  counter = make_counter()
  # Of the copy that misbehaves two episodes are cut: one on its first step, and one
  # on its last.
  environment, _ = make([7, 17], 'skip')
  num_steps = 30
  actor_node.VectorEnvironmentLoop(environment, Idle(), counter).run(num_steps)
  counts = counter.get_counts()
  assert counts['bad_numbers'] == 2
  assert set(counter.save()['returns']) == {float(bad_readings.EPISODE_STEPS)}
  assert counts['actor_episodes'] == 5 + 4 + 5
  timesteps = act(make([7, 17], 'skip')[0], num_steps)
  assert counts['actor_steps'] == sum(
      int((timestep.step_type != FIRST).sum()) for timestep in timesteps)


def test_evaluation_plays_cut_episodes_again():
  environment, _ = make([3, 10], 'skip')
  returns = evaluator.play_episodes(environment, Idle(), 9, max_steps=1000)
  assert returns == [float(bad_readings.EPISODE_STEPS)] * 9


def test_evaluation_ends_if_no_episode_does():
  always = range(2, 10**6, bad_readings.EPISODE_STEPS - 1)
  environment, _ = make(always, 'skip')
  with pytest.raises(evaluator.NoEpisodeError, match='100 episodes in a row'):
    evaluator.play_episodes(environment, Idle(), 9, max_steps=1000)


@pytest.mark.parametrize('bad', (math.inf, -math.inf, math.nan))
def test_a_return_that_is_not_finite_never_reaches_the_target(bad):
  stopped = threading.Event()
  rows = []

  class Logger(loggers.NoOpLogger):
    def write(self, data):
      rows.append(data)

  counter = counter_node.RunCounter(
      Logger(), limiter_lib.Limiter(10**9, 18., stopped.set),
      period_seconds=0.2, should_stop=stopped)
  counter.record_acting(1, [])
  thread = threading.Thread(target=counter.run, daemon=True)
  thread.start()
  # Without it, the mean of the last 100 would be infinite.
  counter.record_acting(50, [bad] + [17.] * 100)
  assert not stopped.wait(1.)
  assert rows[-1]['episode_return_mean_100'] == 17.
  assert rows[-1]['bad_numbers'] == 1
  counter.record_acting(50, [bad] * 3 + [19.] * 100)
  assert stopped.wait(5.)
  counter.learner_done(0, {})
  thread.join(5.)


@pytest.mark.parametrize('bad', (np.nan, np.inf, -np.inf, 1e30))
def test_statistics_of_elements_without_finite_moments_stay(bad):
  good = np.random.default_rng(0).normal(5., 2., (4, 3)).astype(np.float32)
  spoilt = good.copy()
  spoilt[2, 1] = bad
  normalizers = {}
  for name, batch in (('good', good), ('spoilt', spoilt)):
    normalizer = networks_lib.Normalizer([3])
    normalizer(good)
    for rate in (1., 0.5):
      normalizer.update(*normalizer.moments(good + 1.), rate)
      normalizer.update(*normalizer.moments(batch), rate)
    normalizers[name] = normalizer
  once = networks_lib.Normalizer([3])
  once(good)
  for rate in (1., 0.5):
    once.update(*once.moments(good + 1.), rate)
  for statistic in ('mean', 'variance'):
    of = {name: getattr(normalizer, statistic).numpy()
          for name, normalizer in normalizers.items()}
    for element in (0, 2):
      assert of['spoilt'][element] == of['good'][element]
    assert of['spoilt'][1] == getattr(once, statistic).numpy()[1]


@pytest.mark.parametrize('bad', (np.nan, np.inf))
def test_statistics_of_images_without_finite_moments_stay(bad):
  images = np.random.default_rng(0).normal(5., 2., (4, 3, 3, 2))
  normalizer = networks_lib.Normalizer([3, 3, 2])
  normalizer(images)
  normalizer.update(*normalizer.moments(images), 1.)
  before = [variable.numpy() for variable in normalizer.variables]
  images[1, 2, 0, 1] = bad
  for rate in (1., 0.1):
    normalizer.update(*normalizer.moments(images), rate)
  for variable, value in zip(normalizer.variables, before):
    np.testing.assert_array_equal(variable.numpy(), value)
