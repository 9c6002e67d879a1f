"""The loop of actors: what it shows them, and what it counts."""

import threading
import types

import numpy as np
import pytest

from programs import config as run_config
from programs.nodes import actor as actor_node
from tests import scripted

# With the step that resets, episodes take 3 and 2 steps in the first
# environment, and 4 in the second.
EPISODES = [[[1., 2.], [5.]], [[10., 20., 30.]]]


class Recorder:
  """Keeps what is reported."""

  def __init__(self):
    self.reports = []

  def record_start(self, node, waits_for):
    pass

  def record_acting(self, timesteps, returns, bad_numbers):
    assert bad_numbers == 0
    self.reports.append((timesteps, returns))


def run(num_steps, episodes=EPISODES):
  """Returns reports and what the actor was told."""
  recorder, actor = Recorder(), scripted.ScriptedActor()
  actor_node.VectorEnvironmentLoop(
      scripted.ScriptedEnvironment(episodes), actor, recorder).run(num_steps)
  return recorder.reports, actor.calls


def test_resets_are_no_timesteps():
  # In 8 steps the first environment resets 3 times, the second twice.
  (timesteps, _), = run(8)[0]
  assert timesteps == (8 - 3) + (8 - 2)


def test_returns_are_of_whole_episodes_of_each_environment():
  (_, returns), = run(8)[0]
  assert returns == [3., 60., 5., 3., 60.]
  # An episode that has not ended counts in neither.
  assert run(2)[0] == [(4, [3.])]
  assert run(1)[0] == [(2, [])]


@pytest.mark.parametrize('num_steps', [1, 5, 17])
def test_the_end_reports_what_is_left(num_steps):
  (timesteps, _), = run(num_steps, [[[0.] * 100]])[0]
  assert timesteps == num_steps


def test_reports_on_the_way_add_up(monkeypatch):
  at_the_end, = run(16)[0]
  monkeypatch.setattr(actor_node, '_REPORT_SECONDS', -1.)
  reports, _ = run(16)
  # One is on its way at a time, and the last one has the rest.
  assert len(reports) > 1
  assert sum(timesteps for timesteps, _ in reports) == at_the_end[0]
  assert [x for _, returns in reports for x in returns] == at_the_end[1]


def test_the_actor_sees_each_step_with_its_action():
  calls = run(3)[1]
  assert [name for name, _ in calls] == ['observe_first'] + 3 * [
      'select_action', 'observe', 'update']
  before = calls[0][1]
  for (_, seen), (_, (action, after)) in zip(calls[1::3], calls[2::3]):
    assert seen is before.observation
    assert action.shape == (2,) and after is not before
    before = after
  np.testing.assert_array_equal(
      [after.observation[0] for _, (_, after) in calls[2::3]],
      [[0, 1], [0, 2], [1, 0]])


def test_a_loop_stops_when_told_to():
  should_stop = threading.Event()

  class Actor(scripted.ScriptedActor):
    steps = 0

    def update(self, wait=False):
      self.steps += 1
      if self.steps == 5:
        should_stop.set()

  actor = Actor()
  actor_node.VectorEnvironmentLoop(
      scripted.ScriptedEnvironment(EPISODES), actor, Recorder(),
      should_stop).run()
  assert actor.steps == 5


def run_node(index, environment_factory, make_actor, should_stop, seed=0):
  """Runs an actor's node; returns what it raised."""
  builder = types.SimpleNamespace(
      make_adder=lambda shard: types.SimpleNamespace(reset=lambda: None),
      make_actor=make_actor)
  setup = types.SimpleNamespace(
      config=run_config.RunConfig('unused', seed=seed), builder=builder,
      make_policy=lambda: None, environment_factory=environment_factory)
  errors = []

  def act():
    try:
      actor_node.run(setup, index, None, None, Recorder(), should_stop)
    except RuntimeError as e:
      errors.append(str(e))

  thread = threading.Thread(target=act)  # The main thread is no node's.
  thread.start()
  thread.join()
  return errors


@pytest.fixture
def without_weights(monkeypatch):
  monkeypatch.setattr(actor_node.weights, 'NearestSource', lambda *args: None)


@pytest.mark.usefixtures('without_weights')
@pytest.mark.parametrize('fails', [False, True])
def test_environments_are_closed_at_the_end(fails):
  environment = scripted.ScriptedEnvironment(EPISODES)
  should_stop = threading.Event()

  class Actor(scripted.ScriptedActor):

    def update(self, wait=False):
      if fails:
        raise RuntimeError('lost')
      should_stop.set()

  errors = run_node(0, lambda *args: environment, lambda *args: Actor(), should_stop)
  assert environment.is_closed and errors == ['lost'] * fails


@pytest.mark.usefixtures('without_weights')
def test_each_actor_of_each_run_has_a_seed_of_its_own():
  of_environments, of_actors = [], []
  should_stop = threading.Event()
  should_stop.set()

  def make_environment(num_envs, seed):
    of_environments.append(seed)
    return scripted.ScriptedEnvironment(num_envs * [[[1.]]])

  def make_actor(seed, *args):
    of_actors.append(seed)
    return scripted.ScriptedActor()

  for seed in (0, 1):
    for index in (0, 1):
      assert run_node(index, make_environment, make_actor, should_stop, seed) == []
  evaluators = [run_config.RunConfig('unused', seed=seed).process_seed(0)
                for seed in (0, 1)]
  assert of_actors == of_environments and len({*of_actors, *evaluators}) == 6
