"""What parts are worth, from all ways to have them."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks import factorial


def all_sets(parts):
  return [frozenset(has) for size in range(len(parts) + 1)
          for has in itertools.combinations(parts, size)]


def noise(sets, numbers, seed=0):
  generator = np.random.default_rng(seed)
  return {has: generator.normal(scale=1 + len(has), size=number).tolist()
          for has, number in zip(sets, numbers)}


def test_two_groups_are_welchs():
  groups = noise(all_sets('a'), (3, 7))
  found = factorial.effect(groups, 'a')
  welch = stats.ttest_ind(groups[frozenset('a')], groups[frozenset()],
                          equal_var=False).confidence_interval()
  assert found[1:] == pytest.approx(welch)
  assert found.mean == pytest.approx(sum(welch) / 2)
  # Among more parts, too, if all the others are there.
  more = {has | {'b', 'c'}: values for has, values in groups.items()}
  more.update(noise([has for has in all_sets('abc') if not has >= {'b', 'c'}],
                    6 * [2]))
  assert factorial.effect(more, 'a', {'b', 'c'}) == pytest.approx(found)


def test_equal_groups_have_the_freedom_of_all_of_them():
  groups = {has: [10. * ('a' in has) + 3. * ('b' in has) + d for d in (-1., 0., 1.)]
            for has in all_sets('abc')}
  for part, adds in (('a', 10.), ('b', 3.), ('c', 0.)):
    found = factorial.effect(groups, part)
    half = stats.t.ppf(0.975, 8 * 2) * math.sqrt(8 * 1. / 3) / 4
    assert found == pytest.approx((adds, adds - half, adds + half))


def test_an_effect_that_depends_on_others_is_averaged_over_them():
  groups = {has: 2 * [5. * ({'a', 'b'} <= has) + 1. * ('a' in has)]
            for has in all_sets('ab')}
  assert factorial.effect(groups, 'a') == (3.5, 3.5, 3.5)
  assert factorial.effect(groups, 'a', {'b'}) == (6., 6., 6.)


def test_intervals_hold_the_truth_as_often_as_they_say():
  sets = all_sets('abc')
  held = [found.low < 0. < found.high for found in (
      factorial.effect(noise(sets, 8 * [3], seed), 'b') for seed in range(400))]
  assert np.mean(held) == pytest.approx(0.95, abs=0.03)


def test_without_two_values_in_a_group_nothing_is_said():
  groups = noise(all_sets('ab'), (3, 3, 1, 3))
  assert factorial.effect(groups, 'a') is None  # Without a, with b there is one.
  assert factorial.effect(groups, 'b', {'a'}) is not None
  del groups[frozenset()]
  assert factorial.effect(groups, 'a') is None
