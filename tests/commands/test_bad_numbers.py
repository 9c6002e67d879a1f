"""Training and evaluating in environments that give bad numbers."""

import csv
import re

import numpy as np
import pytest
import tensorflow as tf

from launch import evaluate
from tests import bad_readings
from tests.commands import runs

SMALL = ['--num_actors', '1', '--envs_per_actor', '6', '--batch_size', '6',
         '--sequence_length', '8', '--latent_size', '16',
         '--evaluation_interval', '0', '--progress_seconds', '0.5']


def assert_checkpoints_are_finite(run_dir):
  paths = list((run_dir / 'checkpoints').glob('*.index'))
  assert paths
  for path in paths:
    reader = tf.train.load_checkpoint(str(path.with_suffix('')))
    for name, dtype in reader.get_variable_to_dtype_map().items():
      if dtype.is_floating:
        assert np.isfinite(reader.get_tensor(name)).all(), (path, name)


@pytest.mark.slow
@pytest.mark.parametrize('kind, launch_type', [
    ('InfObservation', 'local_mp'), ('NanReward', 'local_mt')])
def test_stop_is_one_line_and_leaves_finite_checkpoints(
    tmp_path, capsys, kind, launch_type):
  game = f'tests.bad_readings:{kind}-v0'
  ended = runs.run('launch.train', '--game', game, '--run_dir', tmp_path,
              '--lp_launch_type', launch_type, *SMALL)
  assert ended.returncode == 1
  said = (ended.stdout + ended.stderr).strip().splitlines()
  what = {'NanReward': 'reward is nan',
          'InfObservation': 'observation[2] is -inf'}[kind]
  about, *others = (line for line in said if what in line)
  begins = (r'train: error: actor/\d' if launch_type == 'local_mp' else
            'this ends the run')
  assert re.match(f'{begins}: ' + re.escape(
      f'{game}, copy 0, step 2 of its episode: {what}; '), about)
  assert '--on_bad_number skip' in about
  # Threads say what they have to before anyone can tell them to end.
  assert launch_type == 'local_mt' or (about == said[-1] and not others)
  # It would only happen again.
  assert not any('Traceback' in line or 'restarting' in line for line in said)
  assert not (tmp_path / 'restarts.csv').exists()
  assert_checkpoints_are_finite(tmp_path)

  code = evaluate.main(['--run_dir', str(tmp_path), '--episodes', '2000'])
  line, = capsys.readouterr().err.strip().splitlines()
  assert code == 1 and what in line and line.startswith('evaluate: error: ')


@pytest.mark.slow
def test_skip_trains_to_the_end(tmp_path, capsys):
  ended = runs.run('launch.train', '--game', 'tests.bad_readings:InfObservation-v0',
              '--run_dir', tmp_path, '--on_bad_number', 'skip',
              '--max_timesteps', 8000, '--target_return', 1e9, *SMALL)
  assert ended.returncode == 0, ended.stdout
  with open(tmp_path / 'progress.csv', newline='') as f:
    *_, last = csv.DictReader(f)
  assert int(last['timesteps']) >= 8000
  # Each copy in every 302nd of its calls: five timesteps of an episode, and a reset.
  expected = int(last['timesteps']) * 6 / 5 / 302
  assert expected - 12 <= int(last['bad_numbers']) <= expected + 6
  assert float(last['skipped_updates']) == 0
  # Those of the episodes that were cut would lower the mean.
  assert float(last['episode_return_mean_100']) == bad_readings.EPISODE_STEPS
  assert_checkpoints_are_finite(tmp_path)

  assert evaluate.main(['--run_dir', str(tmp_path), '--episodes', '2000']) == 0
  assert ('2000 episodes: mean 5.00 (95% interval 5.00 to 5.00), standard '
          'deviation 0.00, ') in capsys.readouterr().out
