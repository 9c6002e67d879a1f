"""Every fast path against the plain form that it stands for."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import sonnet as snt
import tensorflow as tf

from agents.impala_ppo import ops
from tests import heap


def rng():
  return np.random.default_rng(0)


def fast_paths():
  """Returns {name: function} of whatever has a plain form beside it."""
  return {name: function for name, function in vars(ops).items()
          if hasattr(function, 'plain') and hasattr(function, 'fast')}


def assert_same(x, y, **tolerance):
  tf.nest.map_structure(
      lambda a, b: np.testing.assert_allclose(a, b, **tolerance), x, y)


# Each case takes one of the two forms, and returns what has to be the same.


def case_elementwise(elementwise):
  @tf.function
  def graph(pixels, mean):
    return elementwise(
        lambda x, m: tf.clip_by_value((tf.cast(x, tf.float32) - m) / 25., -2., 2.),
        pixels, mean)

  pixels = tf.constant(rng().integers(0, 256, (3, 9, 10, 4)), tf.uint8)
  mean = tf.constant(rng().uniform(50, 150, (9, 10, 4)), tf.float32)
  with tf.GradientTape() as tape:
    tape.watch(mean)
    y = graph(pixels, mean)
  return y, tape.gradient(y, mean)


def case_relu(relu):
  def gradient(x):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = relu(x) * tf.range(1., 6.)
    return y, tape.gradient(y, x)

  x = tf.constant([[-2., -0., 0., 1e-30, 3.]])
  return gradient(x), tf.function(gradient)(x)


def case_backward_recurrence(recurrence):
  x, decay = tf.constant(rng().normal(size=(2, 11, 3, 2)), tf.float32)
  return recurrence(x, decay), recurrence(x[:1], decay[:1])


def case_adam(adam):
  random = rng()
  parameters = [tf.Variable(random.normal(size=shape), dtype=tf.float32)
                for shape in ((3, 4), (5,), ())]
  learning_rate = tf.Variable(0.1)
  # As large as some gradients are, so that its place in the rule matters.
  optimizer = adam(learning_rate, epsilon=0.1)
  for step in range(10):
    learning_rate.assign(0.1 / (step + 1))
    optimizer.apply(
        [tf.constant(random.normal(size=p.shape) * 0.3, tf.float32)
         for p in parameters], parameters)
  return [*parameters, *optimizer.m, *optimizer.v, optimizer.step]


def case_caller(caller):
  scale = tf.Variable(3.)  # Captured by the graph.

  def function(x, y):
    return x * scale, tf.reduce_sum(y, axis=1)

  call = caller(function, tf.TensorSpec([None], tf.float32),
                tf.TensorSpec([None, None], tf.int64))
  first = call(np.arange(4, dtype=np.float32), np.ones([2, 3], np.int64))
  scale.assign(-1.)
  return first, call(np.arange(2, dtype=np.float32), np.ones([1, 5], np.int64))


def case_function(function):
  scale = tf.Variable(3.)

  def nested(x, others):
    scale.assign_add(1.)
    return {'none': None, 'sum': others['b'] - others['a']}, [x * scale, x]

  call = function(nested)
  others = {'a': np.ones(2, np.int64), 'b': tf.range(2, dtype=tf.int64)}
  results = [call(tf.ones(size), others) for size in (2, 3)]
  # None is in its place, in both.
  return [result.pop('none') or (result, rest) for result, rest in results]


def case_assign(assign):
  variables = [tf.Variable(tf.zeros([2, 3])), tf.Variable(0, dtype=tf.int64)]
  assign(variables, [rng().normal(size=(2, 3)), np.int64(2**40)])
  return [v.read_value() for v in variables]


def case_contiguous(contiguous):
  planes = rng().integers(0, 256, (3, 4, 5, 6)).astype(np.uint8)
  results = [contiguous(planes), contiguous(planes.transpose(0, 2, 3, 1)),
             contiguous(planes[:, ::2])]
  assert all(result.flags.c_contiguous for result in results)
  return results


def case_every(every):
  x = tf.constant(rng().normal(size=(2, 7, 3)))
  return [every(x, period) for period in (1, 2, 3, 6, 7, 9)]


def case_newest_and_change(newest_and_change):
  return [newest_and_change(tf.constant(rng().normal(size=(3, 5, 4, channels)),
                                        tf.float32)) for channels in (2, 4)]


def case_stack_frames(stack_frames):
  num_rows = 11
  frames = tf.constant(rng().integers(1, 256, (5, num_rows, 6, 4)), tf.uint8)
  is_first = tf.constant(rng().random((5, num_rows)) < 0.3)
  return [stack_frames(frames, is_first, size) for size in (2, 3, 4)]


CASES = {name.removeprefix('case_'): case for name, case in
         list(globals().items()) if name.startswith('case_')}


def test_each_fast_path_has_a_case():
  assert set(fast_paths()) == set(CASES)


@pytest.mark.parametrize('name', sorted(CASES))
def test_fast_is_plain(name):
  either = fast_paths()[name]
  assert either.fast is not either.plain
  assert_same(CASES[name](either.fast), CASES[name](either.plain),
              rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('value, form', [
    ('1', 'plain'), ('0', 'fast'), ('', 'fast'), (None, 'fast')])
def test_one_variable_chooses_the_plain_forms(monkeypatch, value, form):
  if value is None:
    monkeypatch.delenv(ops.PLAIN_VARIABLE, raising=False)
  else:
    monkeypatch.setenv(ops.PLAIN_VARIABLE, value)
  chosen = snt.optimizers.Adam if form == 'plain' else ops.FusedAdam
  assert type(ops.adam(1e-3)) is chosen

  ran = []

  def plain(x):
    ran.append(('plain', x))

  @ops._fast_path_of(plain)
  def either(x):
    ran.append(('fast', x))

  either(3)
  assert ran == [(form, 3)]


def test_stacks_are_zero_before_an_episodes_first_frame():
  # Frames 1 to 6, an episode beginning at 4.
  frames = tf.reshape(tf.range(1, 7), [1, 6, 1, 1])
  is_first = tf.constant([[False, False, False, True, False, False]])
  np.testing.assert_array_equal(
      ops.stack_frames(frames, is_first, 3)[0, :, 0, 0],
      [[1, 2, 3], [0, 0, 4], [0, 4, 5], [4, 5, 6]])


@pytest.mark.parametrize('wrap', [lambda f: f, tf.function])
def test_gradient_of_relu(wrap):
  x = tf.constant([[-2., -0., 0., 1e-30, 3.]])

  def gradient(x):
    with tf.GradientTape() as tape:
      tape.watch(x)
      y = ops.relu(x) * tf.range(1., 6.)
    return y, tape.gradient(y, x)

  y, dx = wrap(gradient)(x)
  np.testing.assert_allclose(y, [[0., 0., 0., 4e-30, 15.]], rtol=1e-6)
  np.testing.assert_array_equal(dx, [[0., 0., 0., 4., 5.]])


@pytest.mark.parametrize('saved, restored', [('fast', 'plain'), ('plain', 'fast')])
def test_checkpoints_of_one_adam_are_restored_by_the_other(
    tmp_path, saved, restored):
  def make(form, steps):
    parameter = tf.Variable([1., 2.])
    optimizer = getattr(ops.adam, form)(1e-3)
    optimizer._initialize([parameter])
    for _ in range(steps):
      optimizer.apply([tf.constant([3., -1.])], [parameter])
    return optimizer, tf.train.Checkpoint(optimizer=optimizer, parameter=parameter)

  before, checkpoint = make(saved, steps=3)
  path = checkpoint.save(str(tmp_path / 'checkpoint'))
  after, checkpoint = make(restored, steps=0)
  checkpoint.restore(path).assert_consumed()
  assert after.step == 3
  assert_same([*after.m, *after.v], [*before.m, *before.v])


FORWARD_PASS = """
import agents
from acme import specs
import numpy as np
import tensorflow as tf

from agents.impala_ppo import config as config_lib
from agents.impala_ppo import losses
from agents.impala_ppo import networks as networks_lib
from agents.impala_ppo import ops
from agents.impala_ppo import trajectories

config = config_lib.ImpalaPPOConfig(frame_stack=4)
networks = networks_lib.make_networks(specs.EnvironmentSpec(
    observations=specs.Array((16, 16, 4), np.uint8),
    actions=specs.DiscreteArray(3), rewards=None, discounts=None), config)
with tf.Graph().as_default():
  frames = tf.zeros([2, 8, 16, 16], tf.uint8)
  observation = ops.stack_frames(frames, tf.zeros([2, 8], tf.bool), 4)
  outputs = networks.unroll(observation, config.reconstruction_period)
  zeros = tf.zeros([2, 4])
  losses.impala_ppo_loss(outputs, trajectories.Trajectories(
      observation, tf.zeros([2, 4], tf.int32), zeros, zeros,
      tf.ones([2, 4], tf.bool), tf.zeros([2, 4, 3]), None, None, None), config)
# Refused as soon as any device is there.
tf.config.threading.set_intra_op_parallelism_threads(1)
print('none')
"""


@pytest.mark.slow
def test_a_forward_pass_initialises_no_devices():
  # A process may still have to choose its GPUs and threads.
  result = subprocess.run(
      [sys.executable, '-c', FORWARD_PASS], capture_output=True, text=True,
      cwd=pathlib.Path(__file__).parents[2], timeout=120)
  assert result.stdout == 'none\n', result.stderr


def adder(x):
  return (x + 1,)


@pytest.mark.slow
@pytest.mark.parametrize('call', [
    ops.caller.fast(adder, tf.TensorSpec([None], tf.float32)),
    ops.function.fast(adder)], ids=['caller', 'function'])
def test_calls_leave_no_memory_behind(call):
  x = tf.zeros(4)

  def grown(num_calls):
    before = heap.used()
    for _ in range(num_calls):
      call(x)
    return heap.used() - before

  grown(100)
  # TensorFlow's own call leaves 200 to 450 bytes each time.
  assert grown(2000) < 2000 * 50
