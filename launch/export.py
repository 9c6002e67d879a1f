"""Exports a policy for TensorFlow alone: `python -m launch.export --run_dir R`."""

# ruff: noqa: E402
import dataclasses
import importlib
import os
import sys
from typing import Annotated, Any, Optional, Sequence

from pydantic import Field

from agents import validation
from launch import errors
from launch import flags
from launch import settings as settings_lib
from programs import config as run_config


@dataclasses.dataclass
class ExportCommand:
  """What to export.

  Attributes:
    run_dir: the directory of a training run; its newest checkpoint is exported.
    pretrained: a policy that comes with the package, in place of a run's.
    out: the directory to write: a SavedModel, and a README that says how to
      call it.
    onnx: whether to write model.onnx beside it as well, with the same argument and
      outputs as the SavedModel's serving_default.
  """
  run_dir: run_config.Directory
  out: run_config.Directory
  pretrained: Optional[Annotated[str, Field(min_length=1, max_length=100)]] = None
  onnx: bool = False

  def __post_init__(self):
    validation.check(self)


FLAGS = flags.Flags('python -m launch.export', 'Exports a policy as a SavedModel.',
                    {'command': ExportCommand},
                    derived={'run_dir': 'none, with --pretrained'})


def parse(argv: Sequence[str]) -> ExportCommand:
  """Reads the flags of the command.

  Args:
    argv: the flags; `--help` prints the help and exits.

  Returns:
    The command.

  Raises:
    ValueError: for a bad flag; the message is one line.
  """
  given = FLAGS.parse(argv)['command']
  if ('run_dir' in given) == (given.get('pretrained') is not None):
    raise ValueError('give --run_dir, the directory of a run, or --pretrained, the '
                     'name of a policy that comes with the package.')
  if given.get('pretrained') is not None:
    given['run_dir'] = settings_lib.pretrained(given['pretrained'])
  if 'out' not in given:
    raise ValueError('--out is missing; give a directory to write.')
  return ExportCommand(**given)


if __name__ == '__main__':
  # Neither --help nor a bad flag waits for the imports below.
  with errors.in_one_line():
    parse(sys.argv[1:])

import tensorflow as tf

from agents import games
from agents.impala_ppo import networks as networks_lib
from agents.impala_ppo import ops
from launch import policies

# All ALE screens have this width; some are 210 high, some 250.
_SCREEN_WIDTH = 160
ONNX_FILE = 'model.onnx'
_ONNX_OPSET = 13


def _signatures(policy: policies.LoadedPolicy) -> dict[str, Any]:
  """Returns the functions to export from a policy, by signature name.

  They are traced without fast paths, which not every device has.
  """
  observation = policy.environment_spec.observations
  with ops.plain_forms():
    act = ops.graph_function(
        lambda observation: _act(policy.networks.actor_critic, observation)
    ).get_concrete_function(tf.TensorSpec(
        [None, *observation.shape], observation.dtype, name='observation'))
  signatures = {'serving_default': act}
  size = screens_size(policy)
  if size is not None:
    signatures['act_on_screens'] = ops.graph_function(
        lambda screens: act(observation=preprocess(screens, size))
    ).get_concrete_function(tf.TensorSpec(
        [None, games.ATARI_FRAME_STACK, 2, None, _SCREEN_WIDTH], tf.uint8,
        name='screens'))
  return signatures


def _act(actor_critic: networks_lib.ActorCritic,
         observation: tf.Tensor) -> dict[str, tf.Tensor]:
  logits, values = actor_critic(observation)
  return {'action': tf.argmax(logits, axis=-1, output_type=tf.int32),
          'logits': logits, 'value': values}


def screens_size(policy: policies.LoadedPolicy) -> Optional[int]:
  """Returns the size of the frames made from an emulator's screens, or None.

  It is None if the game is not Atari, if arguments may change what is made of its
  screens, or if frames are larger than those.
  """
  environment = policy.settings.environment
  if (environment.frame_stack == 1 or environment.env_arg or
      environment.frame_size > _SCREEN_WIDTH):
    return None
  return environment.frame_size


def preprocess(screens: tf.Tensor, size: int) -> tf.Tensor:
  """Makes observations from an emulator's screens, as the environment does.

  Args:
    screens: [N, 4, 2, height, 160] uint8, grey: the last two screens of each of the
      last four timesteps, oldest first.
    size: height and width of a frame.

  Returns:
    [N, size, size, 4] uint8.
  """
  frames = tf.transpose(tf.reduce_max(screens, axis=2), [0, 2, 3, 1])
  small = tf.image.resize(frames, [size, size], method='area')
  return tf.cast(tf.round(small), tf.uint8)


def _readme(policy: policies.LoadedPolicy) -> str:
  """Returns the README of the export."""
  observation = policy.environment_spec.observations
  shape = ', '.join(map(str, observation.shape))
  num_actions = policy.environment_spec.actions.num_values
  signatures = [('serving_default', 'observation',
                 f'[N, {shape}] {observation.dtype}',
                 'as the environment gives them, not normalised')]
  if screens_size(policy) is not None:
    signatures.append((
        'act_on_screens', 'screens', '[N, 4, 2, height, 160] uint8',
        "grey screens of the emulator (ALE's `getScreenGrayscale`), oldest first: "
        'of each of the last four timesteps the last two, where a timestep repeats '
        'its action for four screens; zeros from before the episode'))
  outputs = [
      ('action', '[N] int32', f'the most likely of {num_actions} actions'),
      ('logits', f'[N, {num_actions}] float32',
       'of the distribution over actions, to draw from'),
      ('value', '[N] float32', 'the expected discounted return, of rewards clipped '
       f'to {policy.settings.agent.max_abs_reward:g}')]
  return '\n'.join([
      f'# A policy for {policy.settings.environment.game}', '',
      f'Of {policy.checkpoint}. It needs TensorFlow, and nothing else:', '',
      '```python',
      'import tensorflow as tf',
      "act = tf.saved_model.load('.').signatures['serving_default']",
      f'outputs = act(observation=tf.zeros([1, {shape}], tf.{observation.dtype}))',
      "print(outputs['action'])",
      '```', '',
      '| signature | argument | shape, type | what it is |',
      '| --- | --- | --- | --- |',
      *(f'| `{name}` | `{argument}` | {form} | {what} |'
        for name, argument, form, what in signatures), '',
      '| output | shape, type | what it is |',
      '| --- | --- | --- |',
      *(f'| `{name}` | {form} | {what} |' for name, form, what in outputs), ''])


def export(policy: policies.LoadedPolicy, out: str) -> None:
  """Writes a SavedModel and its README.

  Args:
    policy: what to export.
    out: a directory that does not exist yet, or is empty.

  Raises:
    ValueError: if it is not empty or cannot be written; the message is one line.
  """
  try:
    os.makedirs(out, exist_ok=True)
    is_empty = not os.listdir(out)
  except OSError as e:
    raise ValueError(f'nothing can be written to {out} ({e.strerror}); give another '
                     '--out.') from None
  if not is_empty:
    raise ValueError(f'{out} is not empty; give another --out.')
  module = tf.Module()
  module.weights = policy.networks.actor_critic.variables
  try:
    tf.saved_model.save(module, out, _signatures(policy))
  except tf.errors.OpError as e:  # Such as on a full disk.
    raise ValueError(f'{out} cannot be written: {e.message}') from None
  with open(os.path.join(out, 'README.md'), 'w') as f:
    f.write(_readme(policy))


def export_onnx(out: str) -> None:
  """Writes model.onnx beside a SavedModel, from its `serving_default`."""
  import tf2onnx  # Only needed here.
  # Loads what was written: a graph without any of our variables.
  model = tf.saved_model.load(out)
  act = model.signatures['serving_default']
  (observation,) = act.structured_input_signature[1].values()
  tf2onnx.convert.from_function(
      ops.graph_function(lambda observation: act(observation=observation)),
      input_signature=[observation], opset=_ONNX_OPSET,
      output_path=os.path.join(out, ONNX_FILE))


def main(argv: Optional[Sequence[str]] = None) -> int:
  """Exports, and returns the exit code."""
  with errors.in_one_line():
    command = parse(sys.argv[1:] if argv is None else argv)
    if command.onnx:
      with errors.extra('onnx'):  # Fails before anything is written.
        importlib.import_module('tf2onnx')
    policy = policies.load(command.run_dir)
    out = os.path.expanduser(command.out)
    export(policy, out)
    if command.onnx:
      export_onnx(out)
    print(f'{policy.settings.environment.game}, {policy.checkpoint}: exported to '
          f'{out}; its README.md says how to call it.')
  return 0


if __name__ == '__main__':
  sys.exit(main())
