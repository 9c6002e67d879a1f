"""Intervals of evaluations."""

import numpy as np
import pytest

from launch import evaluate


def test_intervals_of_many_returns_are_those_of_the_normal_distribution():
  returns = np.random.default_rng(0).exponential(size=1000)
  low, high = evaluate.bootstrap_interval(returns.tolist())
  half = 1.96 * returns.std() / np.sqrt(len(returns))
  assert low == pytest.approx(returns.mean() - half, abs=0.1 * half)
  assert high == pytest.approx(returns.mean() + half, abs=0.1 * half)
  assert evaluate.bootstrap_interval(returns.tolist()) == (low, high)


def test_intervals_of_few_returns():
  assert evaluate.bootstrap_interval([3.]) is None
  assert evaluate.bootstrap_interval([3., 3., 3.]) == (3., 3.)
  # Of two, a quarter of all resamples are the one and a quarter the other.
  assert evaluate.bootstrap_interval([0., 1.]) == (0., 1.)
