"""Distributions over bins stand for the values that they are made of."""

import math

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import tensorflow as tf

from agents.impala_ppo import config as config_lib
from agents.impala_ppo import values

# Of the default rewards and discount, and of rewards that are not clipped.
BINS = [values.make_bins(config_lib.ImpalaPPOConfig()),
        values.make_bins(config_lib.ImpalaPPOConfig(max_abs_reward=1e9)),
        values.make_bins(config_lib.ImpalaPPOConfig(discount=1.))]


@hypothesis.given(st.floats(-1e8, 1e8, width=32))
def test_symexp_undoes_symlog(x):
  there = values.symlog(tf.constant(x))
  assert float(there) == pytest.approx(
      math.copysign(math.log1p(abs(x)), x), rel=1e-5, abs=1e-9)
  assert float(values.symexp(there)) == pytest.approx(x, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize('bins', BINS, ids=lambda bins: f'{bins.bound:.1f}')
def test_a_value_is_spread_over_bins_that_stand_for_it(bins):
  width = 2 * bins.bound / (bins.num_bins - 1)
  # Three bins from the edge on nothing is cut off.
  squashed = np.linspace(-bins.bound + 3 * width, bins.bound - 3 * width, 1001)
  wanted = values.symexp(tf.constant(squashed, tf.float32))
  probabilities = bins.probabilities(wanted)
  assert probabilities.shape == [1001, bins.num_bins]
  np.testing.assert_allclose(tf.reduce_sum(probabilities, -1), 1., rtol=1e-5)
  found = bins.values(tf.math.log(probabilities + 1e-30))
  np.testing.assert_allclose(values.symlog(found), squashed, atol=0.01 * width)


@pytest.mark.parametrize('bins', BINS, ids=lambda bins: f'{bins.bound:.1f}')
def test_what_is_beyond_the_bins_is_in_the_outermost(bins):
  for sign, at in ((1., bins.num_bins - 1), (-1., 0)):
    for value in (values.symexp(bins.bound), 1e38, math.inf):
      probabilities = bins.probabilities(tf.constant(sign * value)).numpy()
      assert probabilities.argmax() == at and probabilities.sum() == pytest.approx(1)


def test_bins_hold_every_return_of_clipped_rewards():
  bins = values.make_bins(
      config_lib.ImpalaPPOConfig(max_abs_reward=2., discount=0.9))
  assert bins.bound == pytest.approx(math.log(1. + 2. / (1. - 0.9)))
  # Equal logits, as at the start of training, are a value of 0.
  assert float(bins.values(tf.zeros([bins.num_bins]))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('settings', [
    dict(max_abs_reward=1e-300), dict(max_abs_reward=1e9, discount=1.),
    dict(discount=0.)])
def test_any_setting_has_bins(settings):
  bins = values.make_bins(config_lib.ImpalaPPOConfig(**settings))
  probabilities = bins.probabilities(tf.constant([-1., 0., 1.])).numpy()
  np.testing.assert_allclose(probabilities.sum(axis=-1), 1., rtol=1e-5)
