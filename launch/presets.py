"""Presets: settings for one purpose each, with their measurements."""

import dataclasses
from typing import Any, Literal, Mapping

PresetName = Literal['fewest_timesteps', 'least_time', 'large_net']

_HOW = ('Measured on two cores, no GPU; docs/results.md tells how. What 4cec730 '
        'reached\nis in docs/notebook.md, and was not measured again since.')
# The defaults at 4cec730.
_THEN = {'value_loss': 'squared', 'variable_update_period': 8, 'batch_size': 12,
         'replay_capacity': 16, 'discount': 0.99,
         'learning_rate_decay_timesteps': 2_000_000, 'final_learning_rate': 1e-5}


@dataclasses.dataclass(frozen=True)
class Preset:
  """Settings for a purpose, and their measurements.

  Attributes:
    about: what they are for.
    variant: the variant of `benchmarks.sweep` that has their results.
    measured: the results in short; docs/results.md has the rest.
    values: the settings that differ from the defaults, by section.
  """
  about: str
  variant: str
  measured: str
  values: Mapping[str, Mapping[str, Any]]


PRESETS: Mapping[PresetName, Preset] = {
    'fewest_timesteps': Preset(
        'where timesteps are dear: the defaults, with all parts',
        'full',
        'Pong solved after 319,268 to 908,757 timesteps, a median of 391,714, '
        'in 3.8 to 11.1 minutes (seeds 0 to 9; AMD EPYC, 58aa148 to 86bb19c)',
        {'agent': {}}),
    'least_time': Preset(
        'where timesteps are cheap: IMPALA, with neither replay nor auto-encoder',
        'impala',
        'Pong solved in 3.9, 4.2 and 4.6 minutes, after 541,632, 579,125 and '
        '676,940 timesteps (seeds 1, 0, 2; Intel Xeon, 4cec730)',
        {'agent': {**_THEN, 'loss': 'vtrace', 'samples_per_insert': 1.,
                   'batch_size': 4, 'autoencoder': False},
         'run': {'envs_per_actor': 8}}),
    'large_net': Preset(
        'the trunk of the Nature DQN, as for a GPU, which it was not measured on',
        'nature_cnn',
        'Pong solved after 446,498 timesteps, in 10.3 minutes (seed 0; Intel Xeon, '
        '4cec730)',
        {'agent': {**_THEN, 'autoencoder': False, 'conv_channels': (32, 64, 64),
                   'latent_size': 512},
         'run': {'envs_per_actor': 8}}),
}


def listed() -> str:
  """Returns all presets as text for people to read."""
  lines = [_HOW]
  for name, preset in PRESETS.items():
    lines += [f'{name}: {preset.about}.', f'  {preset.measured}.',
              '  ' + (' '.join(
                  f'{setting}={",".join(map(str, value))}'
                  if isinstance(value, tuple) else f'{setting}={value}'
                  for values in preset.values.values()
                  for setting, value in values.items()) or 'the defaults')]
  return '\n'.join(lines)
