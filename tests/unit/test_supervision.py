"""Who is restarted, and when to give up."""

import pytest

from launch.engines import supervision

KILLED = -9


class Clock:
  now = 100.

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture
def policy(clock):
  return supervision.RestartPolicy(clock=clock)


def live(policy, clock, seconds, code, node='actor/0'):
  """A node starts, ends after some time, and gets a verdict."""
  policy.started(node)
  clock.now += seconds
  return policy.reason_to_give_up(node, code)


def test_starts_are_counted_for_each_node(policy):
  assert [policy.started('actor/0') for _ in range(3)] == [0, 1, 2]
  assert policy.started('actor/1') == 0


def test_what_is_killed_now_and_then_is_always_restarted(policy, clock):
  for _ in range(50):
    assert live(policy, clock, 11., KILLED) is None


def test_five_ends_in_a_row_while_starting_are_enough(policy, clock):
  verdicts = [live(policy, clock, 3., KILLED) for _ in range(5)]
  assert verdicts[:4] == [None] * 4 and 'starting' in verdicts[4]


def test_one_long_life_forgives_earlier_ends(policy, clock):
  for _ in range(5):
    for _ in range(4):
      assert live(policy, clock, 3., KILLED) is None
    assert live(policy, clock, 30., KILLED) is None


def test_the_third_failure_within_a_minute_is_the_last(policy, clock):
  assert live(policy, clock, 25., 1) is None
  assert live(policy, clock, 25., 1) is None
  assert '3 times within 60 seconds' in live(policy, clock, 25., 1)


def test_rare_failures_are_forgiven(policy, clock):
  for _ in range(20):
    assert live(policy, clock, 31., 1) is None


def test_nodes_are_judged_by_themselves(policy, clock):
  for node in ('actor/0', 'actor/1', 'actor/2', 'actor/3'):
    assert live(policy, clock, 5., 1, node) is None


def test_without_restarts_the_first_end_is_the_last(clock):
  policy = supervision.RestartPolicy(restarts=False, clock=clock)
  assert live(policy, clock, 500., KILLED) == 'nodes are not restarted'


@pytest.mark.parametrize('code, told', [
    (-9, 'was killed by signal 9 (Killed)'), (3, 'ended with exit code 3'),
    (0, 'ended with exit code 0')])
def test_ends_are_described(code, told):
  assert supervision.describe_exit(code) == told
