"""Our Adam against Sonnet's."""

import numpy as np
import sonnet as snt
import tensorflow as tf

from agents.impala_ppo import optimizers


def test_adam_is_sonnets():
  rng = np.random.default_rng(0)
  start = [rng.normal(size=shape) for shape in ((3, 4), (5,), ())]
  made = []
  for adam in (optimizers.Adam, snt.optimizers.Adam):
    parameters = [tf.Variable(x, dtype=tf.float32) for x in start]
    learning_rate = tf.Variable(0.1)
    # As large as some gradients are, so that its place in the rule matters.
    made.append((adam(learning_rate, epsilon=0.1), parameters, learning_rate))
  for step in range(10):
    updates = [tf.constant(rng.normal(size=x.shape) * 0.3, tf.float32)
               for x in start]
    for optimizer, parameters, learning_rate in made:
      learning_rate.assign(0.1 / (step + 1))
      optimizer.apply(updates, parameters)
  (ours, parameters, _), (sonnets, expected, _) = made
  for x, y in zip([*parameters, *ours.m, *ours.v, ours.step],
                  [*expected, *sonnets.m, *sonnets.v, sonnets.step]):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
  assert [v.name for v in ours.variables] == [v.name for v in sonnets.variables]
