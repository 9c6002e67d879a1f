"""The limiter: the budget, the target, and once only."""

from programs.nodes import limiter as limiter_lib


def stops(max_timesteps, target_return, checks):
  """Returns after which of the checks the program was stopped."""
  stopped, after = [], []
  limiter = limiter_lib.Limiter(max_timesteps, target_return,
                                lambda: stopped.append(True))
  for i, (timesteps, mean_return) in enumerate(checks):
    ends = limiter.check({'actor_steps': timesteps}, mean_return)
    assert ends == bool(stopped)
    after += [i] * len(stopped)
    stopped.clear()
  return after


def test_the_budget_ends_a_run_once():
  checks = [(0, None), (99, 5.), (100, 5.), (150, 5.)]
  assert stops(100, None, checks) == [2]


def test_the_target_ends_a_run_once():
  checks = [(1, 17.9), (2, 18.), (3, 17.), (4, 19.), (200, 19.)]
  assert stops(100, 18., checks) == [1]


def test_without_a_mean_there_is_no_target():
  assert stops(100, -1e9, [(1, None), (2, None)]) == []
  assert stops(100, None, [(1, 1e9)]) == []


def test_a_target_of_zero_is_one():
  assert stops(100, 0., [(1, -0.5), (2, 0.)]) == [1]


def test_nothing_counted_is_nothing_done():
  limiter_lib.Limiter(1, None, lambda: 1 / 0).check({}, None)
