"""The whole program through Launchpad's launchers, learning Catch."""

import csv
import os
import pathlib
import time

from absl.testing import absltest
from acme import specs
import launchpad as lp
import numpy as np
import pytest
import reverb

from agents import environments
from agents.impala_ppo import ImpalaPPOBuilder
from agents.impala_ppo import ImpalaPPOConfig
from agents.impala_ppo import replay
from programs import config as run_config
from programs import impala_ppo
from programs.runtime import doors

GAME = environments.EnvironmentConfig('tests.catch:Catch-v0')


@pytest.fixture(autouse=True)
def importable(monkeypatch):
  """Lets the program's processes start, wherever they do."""
  root = str(pathlib.Path(__file__).parents[2])
  monkeypatch.setenv('PYTHONPATH', root)
  for variable in ('LD_PRELOAD', 'IMPALA_PPO_LISTEN'):  # Restored at the end.
    monkeypatch.setenv(variable, os.environ.get(variable, ''))
  doors.close()
  lp.flags.FLAGS(['test'])


class Case(absltest.TestCase):
  """What Launchpad's test launchers want: somewhere to leave a clean-up."""

  def runTest(self):
    pass


def make_program(run_dir, agent=None, **kwargs):
  run = run_config.RunConfig(**{**dict(
      run_dir=str(run_dir), num_actors=2, envs_per_actor=16,
      max_timesteps=10_000_000, progress_seconds=1., evaluation_interval=4000,
      evaluation_episodes=20), **kwargs})
  config = ImpalaPPOConfig(**{**dict(
      batch_size=24, sequence_length=16, latent_size=64), **(agent or {})})
  spec = specs.make_environment_spec(GAME.make(1, 0))
  return impala_ppo.make_program(ImpalaPPOBuilder(config), GAME.make, spec, run)


def rows(run_dir, name='progress.csv'):
  path = os.path.join(run_dir, name)
  if not os.path.exists(path):
    return []
  with open(path, newline='') as f:
    return list(csv.DictReader(f))


def wait_for(condition, seconds, message):
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    result = condition()
    if result:
      return result
    time.sleep(0.5)
  raise AssertionError(message)


def test_program_has_the_documented_groups(tmp_path):
  program = make_program(tmp_path, num_replay_shards=2)
  assert {label: len(nodes) for label, nodes in program.groups.items()} == {
      'replay': 2, 'counter': 1, 'learner': 1, 'actor': 2, 'evaluator': 1}


@pytest.mark.timeout(150)
def test_learns_catch_in_processes_with_two_shards(tmp_path):
  program = make_program(tmp_path, num_replay_shards=2, replay_port=29_471)
  case = Case()
  try:
    lp.launch(program, 'test_mp', test_case=case)

    def learned():
      last = rows(tmp_path)[-1:]
      return last and float(last[0]['episode_return_mean_100']) > 0.9 and last[0]

    # From outside, while it trains: both shards, by plain Reverb calls.
    wait_for(lambda: len(rows(tmp_path)) > 2, 60, 'no progress')
    for port in (29_471, 29_472):
      client = reverb.Client(f'localhost:{port}')
      info = wait_for(lambda: client.server_info(5), 20, 'no server')  # noqa: B023
      assert set(info) == {replay.QUEUE_TABLE, replay.REPLAY_TABLE}
      wait_for(lambda: client.server_info()[replay.REPLAY_TABLE].current_size,  # noqa: B023
               30, 'nothing in replay')
      sample = next(iter(client.sample(replay.REPLAY_TABLE, 1)))
      assert len(sample) == 17  # Sixteen timesteps and the one after them.
      columns = dict(zip(sorted(info[replay.REPLAY_TABLE].signature),
                         sample[0].data))
      assert columns['frame'].shape == (16, 16, 16, 1)

    last = wait_for(learned, 90, 'Catch was not learnt')
    assert float(last['policy_lag']) > 0
    assert int(last['learner_steps']) > 0
    assert 0 <= float(last['learner_wait_fraction']) <= 1
    evaluated = wait_for(
        lambda: rows(tmp_path, 'evaluation.csv'), 20, 'no evaluation')
    assert int(evaluated[0]['episodes']) == 20
  finally:
    case.doCleanups()


@pytest.mark.timeout(120)
def test_runs_in_threads(tmp_path):
  # Threads of this process, whose doors are open since it started.
  program = make_program(tmp_path, agent=dict(replay_sampler='prioritized'),
                         listen='all')
  case = Case()
  try:
    lp.launch(program, 'test_mt', test_case=case, serialize_py_nodes=True)
    wait_for(lambda: [r for r in rows(tmp_path) if int(r['learner_steps']) > 20],
             90, 'the learner took no steps')
  finally:
    case.doCleanups()
  timesteps = [int(row['timesteps']) for row in rows(tmp_path)]
  assert timesteps == sorted(timesteps) and timesteps[-1] > 0
  assert np.isfinite(float(rows(tmp_path)[-1]['loss']))
  assert os.path.exists(tmp_path / 'checkpoints' / 'checkpoint')
