"""Fast paths for processors, each beside the plain form that it replaces.

A fast path computes the same as its plain form, in less time; tests compare the
two. With IMPALA_PPO_PLAIN_OPS=1 in the environment, only plain forms run, for
debugging. The times given are for two cores of an AMD EPYC or Intel Xeon.
"""

import contextlib
import functools
import os
from typing import Any, Callable, Iterator, Sequence, TypeVar

import numpy as np
import sonnet as snt
import tensorflow as tf

PLAIN_VARIABLE = 'IMPALA_PPO_PLAIN_OPS'

_Function = TypeVar('_Function', bound=Callable[..., Any])


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
  """Uses only plain forms, for functions traced here but used elsewhere."""
  before = os.environ.get(PLAIN_VARIABLE)
  os.environ[PLAIN_VARIABLE] = '1'
  try:
    yield
  finally:
    del os.environ[PLAIN_VARIABLE]
    if before is not None:
      os.environ[PLAIN_VARIABLE] = before


def _fast_path_of(plain: _Function) -> Callable[[_Function], _Function]:
  """Decorates a fast path, which gets attributes `plain` and `fast`."""

  def decorate(fast: _Function) -> _Function:
    @functools.wraps(fast)
    def either(*args, **kwargs):
      is_plain = os.environ.get(PLAIN_VARIABLE) == '1'
      return (plain if is_plain else fast)(*args, **kwargs)

    either.plain, either.fast = plain, fast  # type: ignore[attr-defined]
    return either  # type: ignore[return-value]

  return decorate


def graph_function(function: Callable[..., Any], **kwargs: Any) -> Any:
  """Makes a `tf.function` that is traced as it is, without AutoGraph.

  AutoGraph rewrites all code that is called, to find branches on the values of
  tensors, which takes five seconds at a learner's first step. There are none here:
  the code branches with `tf.cond` and `tf.where`.
  """
  return tf.function(function, autograph=False, **kwargs)


# Element-wise chains.


def _call(function: Callable[..., tf.Tensor], *tensors: tf.Tensor) -> tf.Tensor:
  return function(*tensors)


@_fast_path_of(_call)
def elementwise(function: Callable[..., tf.Tensor],
                *tensors: tf.Tensor) -> tf.Tensor:
  """Calls a function of element-wise operations, on a CPU as one loop.

  TensorFlow passes over memory once per operation, and some of its loops, from
  uint8 to float32 or in the gradient of `relu`, use no vector instructions.
  Compiled by XLA, they take a quarter to half of the time. On GPUs, XLA would
  need more of CUDA than TensorFlow itself does.
  """
  if tf.executing_eagerly() or may_use_gpus():
    return function(*tensors)
  return graph_function(function, jit_compile=True)(*tensors)


def may_use_gpus() -> bool:
  """Returns whether TensorFlow sees GPUs, without initialising a device."""
  return bool(tf.config.get_visible_devices('GPU'))


@tf.custom_gradient
def _relu(x: tf.Tensor):
  y = tf.nn.relu(x)

  def gradient(dy):
    return elementwise(lambda dy, y: tf.where(y > 0., dy, 0.), dy, y)

  return y, gradient


@_fast_path_of(tf.nn.relu)
def relu(x: tf.Tensor) -> tf.Tensor:
  """`tf.nn.relu`, whose gradient is one vectorised loop.

  On GPUs it is TensorFlow's own, which its memory layout optimiser knows.
  """
  return tf.nn.relu(x) if may_use_gpus() else _relu(x)


# Recurrences.


def _recurrence_by_scan(x: tf.Tensor, decay: tf.Tensor) -> tf.Tensor:
  return tf.scan(lambda later, inputs: inputs[0] + inputs[1] * later,
                 (x, decay), initializer=tf.zeros_like(x[0]), reverse=True)


@_fast_path_of(_recurrence_by_scan)
def backward_recurrence(x: tf.Tensor, decay: tf.Tensor) -> tf.Tensor:
  """Computes y_t = x_t + decay_t y_{t+1}, with y_T = 0.

  It takes log2(T) rounds, each of which doubles how far every step looks ahead.
  On GPUs, a loop of T rounds takes most of the learner's step.

  Args:
    x: [T, ...] float32.
    decay: [T, ...] float32.

  Returns:
    y, [T, ...] float32.
  """
  length = x.shape[0]

  def ahead(x: tf.Tensor, steps: int) -> tf.Tensor:
    return tf.concat([x[steps:], tf.zeros_like(x[:steps])], axis=0)

  steps = 1
  while steps < length:
    x += decay * ahead(x, steps)
    decay *= ahead(decay, steps)
    steps *= 2
  return x


# Adam.


class FusedAdam(snt.optimizers.Adam):
  """Sonnet's Adam, with the same rule and state, as a single TensorFlow kernel.

  Sonnet's own update passes over memory about fourteen times, and takes four
  times as long on a CPU.
  """

  def apply(self, updates: Sequence[tf.Tensor],
            parameters: Sequence[tf.Variable]) -> None:
    """Updates the parameters, in a replica or without a strategy.

    Args:
      updates: a dense gradient for each parameter.
      parameters: the same ones at each call.
    """
    self._initialize(parameters)
    step = tf.cast(self.step.assign_add(1), tf.float32)
    beta1_power, beta2_power = self.beta1 ** step, self.beta2 ** step
    # The kernel adds epsilon before it corrects the second moment's bias. Sonnet,
    # like the paper (arXiv:1412.6980, algorithm 1), adds it after.
    epsilon = self.epsilon * tf.sqrt(1. - beta2_power)
    for update, parameter, m, v in zip(updates, parameters, self.m, self.v):
      tf.raw_ops.ResourceApplyAdam(
          var=parameter.handle, m=m.handle, v=v.handle,
          beta1_power=beta1_power, beta2_power=beta2_power,
          lr=self.learning_rate, beta1=self.beta1, beta2=self.beta2,
          epsilon=epsilon, grad=update)


@_fast_path_of(snt.optimizers.Adam)
def adam(*args, **kwargs) -> snt.Optimizer:
  """Makes an Adam optimiser with the arguments of Sonnet's."""
  return FusedAdam(*args, **kwargs)


# From Python into TensorFlow.


_Call = Callable[..., list[tf.Tensor]]


def _checked_call(function: Callable[..., Any],
                  *signature: tf.TensorSpec) -> _Call:
  traced = tf.function(function).get_concrete_function(*signature)
  return lambda *args: list(traced(*map(tf.constant, args)))


def _shares_rendezvous(function: Callable[..., Any]) -> Any:
  """Makes a TensorFlow function whose calls may share one rendezvous.

  TensorFlow 2.8 leaks a rendezvous of about 400 bytes at each call (its issue
  50765), unless calls share one, as those by `PartitionedCall` can. With one
  device, nothing goes through it.
  """
  traced = graph_function(function)
  traced._shared_rendezvous = True
  return traced


@_fast_path_of(_checked_call)
def caller(function: Callable[..., Any], *signature: tf.TensorSpec) -> _Call:
  """Traces a function for one device, and returns a callable that takes arrays.

  TensorFlow checks the arguments of an ordinary call in Python. Environments push
  that code out of the processor's caches between calls, so that the checks would
  take half of a call's time. And an ordinary call would leak memory.

  Args:
    function: takes tensors; returns a flat tuple of tensors.
    signature: the specs of its arguments.
  """
  traced = _shares_rendezvous(function).get_concrete_function(*signature)
  # Looked up once: the property flattens them again at each access.
  captured = traced.captured_inputs
  dtypes = [output.dtype for output in traced.outputs]
  return lambda *args: tf.raw_ops.PartitionedCall(
      args=[*args, *captured], Tout=dtypes, f=traced)


def _function(python_function: Callable[..., Any]) -> Callable[..., Any]:
  return graph_function(python_function)


@_fast_path_of(_function)
def function(python_function: Callable[..., Any]) -> Callable[..., Any]:
  """Makes a `graph_function` for one device, whose calls leak no memory.

  Args:
    python_function: takes nests of tensors; returns a nest of tensors and None.
  """
  made = _shares_rendezvous(python_function)

  def call(*args):
    traced = made.get_concrete_function(*args)
    tensors = iter(tf.raw_ops.PartitionedCall(
        args=[*tf.nest.flatten(args), *traced.captured_inputs],
        Tout=[output.dtype for output in traced.outputs], f=traced))
    return tf.nest.map_structure(
        lambda output: None if output is None else next(tensors),
        traced.structured_outputs)

  return call


def _checked_assign(variables: Sequence[tf.Variable],
                    values: Sequence[np.ndarray]) -> None:
  for variable, value in zip(variables, values):
    variable.assign(value)


@_fast_path_of(_checked_assign)
def assign(variables: Sequence[tf.Variable],
           values: Sequence[np.ndarray]) -> None:
  """Copies arrays of the right shapes into variables, in a third of the time."""
  for variable, value in zip(variables, values):
    tf.raw_ops.AssignVariableOp(
        resource=variable.handle,
        value=np.asarray(value, variable.dtype.as_numpy_dtype))


def _contiguous(array: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(array)


@_fast_path_of(_contiguous)
def contiguous(array: np.ndarray) -> np.ndarray:
  """Copies [..., C] to C order if it is a view of C planes, as Atari's is.

  It copies plane by plane, which is twice as fast as pixel by pixel.
  """
  if array.flags.c_contiguous:
    return array
  copy = np.empty(array.shape, array.dtype)
  for channel in range(copy.shape[-1]):
    copy[..., channel] = array[..., channel]
  return copy


# Slices of pixels.


def _every_by_slicing(x: tf.Tensor, period: int) -> tf.Tensor:
  return x[:, ::period]


@_fast_path_of(_every_by_slicing)
def every(x: tf.Tensor, period: int) -> tf.Tensor:
  """Returns `x[:, ::period]`.

  Slicing with a stride copies pixel by pixel, and takes twenty times as long.
  """
  return tf.gather(x, tf.range(0, x.shape[1], period), axis=1)


def _newest_and_change_by_slicing(
    frames: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  newest = frames[..., -1:]
  return newest, newest - frames[..., -2:-1]


@_fast_path_of(_newest_and_change_by_slicing)
def newest_and_change(frames: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Returns the last channel of [..., C], and its change from the one before.

  This is one matrix product; slicing the innermost axis takes ten times as long.
  """
  num_frames = frames.shape[-1]
  newest = tf.one_hot(num_frames - 1, num_frames)
  before = tf.one_hot(num_frames - 2, num_frames)
  picked = tf.tensordot(frames, tf.stack([newest, newest - before], 1), 1)
  frame, change = tf.split(picked, 2, axis=-1)
  return frame, change


def _stack_frames_by_masking(frames: tf.Tensor, is_first: tf.Tensor,
                             frame_stack: int) -> tf.Tensor:
  num_stacks = frames.shape[1] - frame_stack + 1
  episode = tf.cumsum(tf.cast(is_first, tf.int32), axis=1)
  planes = []
  for start in range(frame_stack):
    same_episode = (episode[:, start:start + num_stacks] ==
                    episode[:, frame_stack - 1:])
    planes.append(frames[:, start:start + num_stacks] *
                  tf.cast(same_episode, frames.dtype)[..., None, None])
  return tf.stack(planes, axis=-1)


@_fast_path_of(_stack_frames_by_masking)
def stack_frames(frames: tf.Tensor, is_first: tf.Tensor,
                 frame_stack: int) -> tf.Tensor:
  """Rebuilds stacked observations from single frames.

  Gathering whole frames, with a blank one for those of another episode, is three
  times as fast as masking and stacking pixels. Transposing a matrix takes half
  the time of transposing five dimensions.

  Args:
    frames: [B, T + S, H, W], beginning S - 1 frames before the first
      observation.
    is_first: [B, T + S] bool, true where a frame is an episode's first.
    frame_stack: S.

  Returns:
    [B, T + 1, H, W, S], newest frame last, zeros before an episode's first.
  """
  num_frames, *image_shape = frames.shape[1:]
  rows = (tf.range(num_frames - frame_stack + 1)[:, None] +
          tf.range(frame_stack))  # [T + 1, S]
  episode = tf.cumsum(tf.cast(is_first, tf.int32), axis=1)
  same_episode = (tf.gather(episode, rows, axis=1) ==
                  episode[:, frame_stack - 1:, None])
  frames = tf.concat([frames, tf.zeros_like(frames[:, :1])], axis=1)
  rows = tf.where(same_episode, rows, num_frames)
  rows += (num_frames + 1) * tf.range(tf.shape(frames)[0])[:, None, None]
  planes = tf.gather(tf.reshape(frames, [-1, *image_shape]),
                     tf.transpose(rows, [2, 0, 1]))  # [S, B, T + 1, H, W]
  stacks = tf.transpose(tf.reshape(planes, [frame_stack, -1]))
  return tf.reshape(stacks, [-1, rows.shape[1], *image_shape, frame_stack])
