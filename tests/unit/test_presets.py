"""Presets are what was measured, and less than files and flags."""

import dataclasses
import json
import statistics

import pytest

from benchmarks import common
from launch import presets
from launch import settings as settings_lib
from programs.runtime import records


@pytest.mark.parametrize('name', presets.PRESETS)
def test_a_preset_has_the_settings_and_figures_of_its_results(name):
  preset = presets.PRESETS[name]
  settings = settings_lib.from_train_flags(['--preset', name])
  agent = json.loads(json.dumps(dataclasses.asdict(settings.agent)))
  cells = sorted((common.RESULTS / 'pong' / preset.variant).glob('seed*'))
  assert cells
  solved = []
  for cell in cells:
    measured = json.loads((cell / 'config.json').read_text())['agent']
    assert {setting: agent[setting] for setting in measured} == measured
    row = common.solved_row(records.read(str(cell / 'progress.csv')), 'pong')
    solved.append(row['timesteps'])
  # Of many runs their ends and their median, of few each.
  told = solved if len(solved) <= 3 else [
      min(solved), statistics.median(solved), max(solved)]
  for timesteps in told:
    assert f'{timesteps:,.0f}' in preset.measured
  # No setting is there that is a default anyhow.
  defaults = dataclasses.asdict(settings_lib.from_train_flags([]).agent)
  assert all(defaults[setting] != value
             for setting, value in preset.values['agent'].items())


def test_files_and_flags_override_a_preset(tmp_path):
  path = tmp_path / 'mine.yaml'
  path.write_text('agent: {latent_size: 100, loss: ppo}')
  agent = settings_lib.from_train_flags([
      '--preset', 'large_net', '--config', str(path), '--conv_channels', '8']).agent
  assert (agent.latent_size, agent.conv_channels, agent.autoencoder) == (
      100, (8,), False)


def test_presets_are_listed_with_what_was_measured(capsys):
  with pytest.raises(SystemExit) as ended:
    settings_lib.parse_train(['--list_presets'])
  assert not ended.value.code
  printed = capsys.readouterr().out
  for name, preset in presets.PRESETS.items():
    assert f'{name}: {preset.about}.' in printed and preset.measured in printed
  assert 'conv_channels=32,64,64' in printed
  with pytest.raises(ValueError, match='one of fewest_timesteps, least_time'):
    settings_lib.parse_train(['--preset', 'fastest'])
