"""The whole program through Launchpad's launchers, learning Catch."""

import os
import pathlib

from absl.testing import absltest
from acme import specs
import launchpad as lp
import numpy as np
import pytest
import reverb

from agents import games
from agents.impala_ppo import ImpalaPPOBuilder
from agents.impala_ppo import ImpalaPPOConfig
from agents.impala_ppo import losses
from agents.impala_ppo import replay
from programs import config as run_config
from programs import impala_ppo
from programs.runtime import checkpoints
from programs.runtime import doors
from programs.runtime import records
from tests import processes

GAME = games.EnvironmentConfig('tests.catch:Catch-v0')


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
  __test__ = False

  def runTest(self):
    pass


def make_config(**settings):
  return ImpalaPPOConfig(**{**dict(
      batch_size=24, sequence_length=16, latent_size=64,
      learning_rate=2e-3), **settings})


def loss_with_own_metric(*args):
  loss = losses.impala_ppo_loss(*args)
  return loss._replace(metrics={**loss.metrics, 'mine': loss.metrics['entropy']})


def make_program(run_dir, agent=None, **kwargs):
  run = run_config.RunConfig(**{**dict(
      run_dir=str(run_dir), num_actors=2, envs_per_actor=16,
      max_timesteps=10_000_000, progress_seconds=1., evaluation_interval=4000,
      evaluation_episodes=20), **kwargs})
  config = make_config(**(agent or {}))
  spec = specs.make_environment_spec(GAME.make(1, 0))
  builder = ImpalaPPOBuilder(config, loss=loss_with_own_metric)
  return impala_ppo.make_program(builder, GAME.make, spec, run)


def progress(run_dir):
  return records.read(os.path.join(run_dir, records.PROGRESS_FILE))


def assert_adds_up(row):
  """Checks a row of progress against what its terms make of it."""
  config = make_config()
  assert row['loss'] == pytest.approx(
      row['policy_loss'] + config.baseline_cost * row['value_loss'] -
      config.entropy_cost * row['entropy'] +
      config.reconstruction_cost * row['reconstruction_loss'], rel=1e-4, abs=1e-4)
  assert 0. <= row['clip_fraction'] <= 1.
  assert 0. <= row['learner_wait_fraction'] <= 1.
  assert row['entropy'] <= np.log(3) + 1e-5  # Of three actions.
  # Each timestep passes the queue once; reports come up to a second late.
  learned = row['learner_steps'] * config.timesteps_per_learner_step
  assert 0.6 < learned / row['timesteps'] < 1.4


def test_program_has_the_documented_groups(tmp_path):
  program = make_program(tmp_path, num_replay_shards=2)
  assert {label: len(nodes) for label, nodes in program.groups.items()} == {
      'replay': 2, 'counter': 1, 'learner': 1, 'actor': 2, 'evaluator': 1}


@pytest.mark.slow
def test_learns_catch_in_processes_with_two_shards(tmp_path):
  port = processes.free_ports(2)
  program = make_program(tmp_path, num_replay_shards=2, replay_port=port)
  case = Case()
  try:
    lp.launch(program, 'test_mp', test_case=case)

    # From outside, while it trains: both shards, by plain Reverb calls.
    processes.wait_for(lambda: len(progress(tmp_path)) > 2, 'progress')
    for client in (reverb.Client(f'localhost:{port + i}') for i in range(2)):
      info = client.server_info(30)
      assert set(info) == {replay.QUEUE_TABLE, replay.REPLAY_TABLE}
      sample = next(iter(client.sample(replay.REPLAY_TABLE, 1)))
      assert len(sample) == 17  # Sixteen timesteps and the one after them.
      columns = dict(zip(sorted(info[replay.REPLAY_TABLE].signature),
                         sample[0].data))
      assert columns['frame'].shape == (16, 16, 16, 1)

    # A random policy's mean is -0.5.
    row = processes.wait_for(
        lambda: [row for row in progress(tmp_path)
                 if row['episode_return_mean_100'] > 0.8], 'learning Catch', 200.)[0]
    assert_adds_up(row)
    assert row['mine'] == row['entropy'] > 0.
    evaluation = os.path.join(tmp_path, records.EVALUATION_FILE)
    evaluated = processes.wait_for(lambda: records.read(evaluation), 'evaluation')[0]
    assert evaluated['timesteps'] >= 4000 and evaluated['episodes'] == 20
    assert -1. <= evaluated['return_min'] <= evaluated['return_mean'] <= 1.
  finally:
    case.doCleanups()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_runs_in_threads(tmp_path):
  # Threads of this process, whose doors are open since it started.
  program = make_program(tmp_path, agent=dict(replay_sampler='prioritized'),
                         listen='all')
  case = Case()
  try:
    lp.launch(program, 'test_mt', test_case=case, serialize_py_nodes=True)
    row = processes.wait_for(
        lambda: [row for row in progress(tmp_path) if row['learner_steps'] > 60],
        'learner steps')[0]
  finally:
    case.doCleanups()
  assert_adds_up(row)
  rows = progress(tmp_path)
  for column in ('timesteps', 'episodes', 'learner_steps', 'walltime_seconds'):
    counts = [row[column] for row in rows]
    assert counts == sorted(counts), column
  # The last row is of the last checkpoint.
  path = checkpoints.latest(str(tmp_path))
  assert checkpoints.learner_steps(path) == rows[-1]['learner_steps']
