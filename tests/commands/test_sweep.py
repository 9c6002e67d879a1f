"""Sweeps: which runs they train, where they go on, and what they report."""

import json
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from launch import cells
from launch import settings as settings_lib
from launch import sweep
from programs.runtime import checkpoints
from programs.runtime import locks
from programs.runtime import processes as node_processes
from tests import processes
from tests.commands import runs

FLAGS = ['--game', 'CartPole-v1', '--max_timesteps', '1000']


@pytest.fixture
def training(tmp_path, monkeypatch):
  """Replaces the training command; returns what tells of it, and stops it."""
  log, stop = tmp_path / 'log', tmp_path / 'stop'
  script = tmp_path / 'training'
  script.write_text('#!/bin/sh\n'
                    f'exec {sys.executable} -m tests.pretend_training "$@"\n')
  script.chmod(0o755)
  monkeypatch.setattr(sys, 'executable', str(script))
  monkeypatch.setenv('PRETEND_LOG', str(log))
  monkeypatch.setenv('PRETEND_STOP', str(stop))
  return log, stop


def swept(tmp_path, *argv):
  return sweep.main(['--out', str(tmp_path / 'out'), *FLAGS, *argv])


@pytest.mark.slow
def test_a_grid_is_trained_seed_by_seed_and_drawn(training, tmp_path, capsys):
  log, _ = training
  grid = ['--grid', 'learning_rate=0.1,0.2', 'autoencoder=true,false']
  assert swept(tmp_path, *grid, '--seeds', '0-1') == 0
  names = [f'learning_rate={rate},autoencoder={code}'
           for rate in ('0.1', '0.2') for code in ('true', 'false')]
  assert log.read_text().splitlines() == [
      f'{name}/seed{seed} False' for seed in (0, 1) for name in names]
  settings = settings_lib.load(str(
      tmp_path / 'out' / 'learning_rate=0.2,autoencoder=false' / 'seed1'))
  assert (settings.agent.learning_rate, settings.agent.autoencoder,
          settings.run.seed, settings.run.max_timesteps) == (0.2, False, 1, 1000)
  printed = capsys.readouterr().out
  # Of returns of 100 and 101, and of 200 and 201.
  assert re.search(r'autoencoder=false, learning_rate=0.1 +\| 2 +\| 1,000 +\| '
                   '100.5 ', printed)
  assert (tmp_path / 'out' / 'curves.png').stat().st_size > 10_000
  # Once more, it trains nothing; with another seed, that one.
  assert swept(tmp_path, *grid, '--seeds', '0-1') == 0
  assert swept(tmp_path, *grid, '--seeds', '0-2') == 0
  assert log.read_text().splitlines()[8:] == [
      f'{name}/seed2 False' for name in names]


@pytest.mark.slow
def test_runs_of_a_sweep_differ_in_whatever_it_is_over(training, tmp_path, capsys):
  del training
  assert swept(tmp_path, '--learning_rate', '0.1', '--seeds', '0-1', '--grid',
               'evaluation_interval=0,500') == 0
  printed = capsys.readouterr().out
  for interval in (0, 500):
    assert re.search(rf'\| evaluation_interval={interval} +\| 2 ', printed)


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_stopped(training, tmp_path, capsys):
  log, stop = training
  stop.touch()
  argv = ['--grid', 'learning_rate=0.1,0.2', '--seeds', '0']
  assert swept(tmp_path, *argv) == 130
  assert 'the same command goes on' in capsys.readouterr().out
  assert swept(tmp_path, *argv) == 0
  assert log.read_text().splitlines() == [
      'learning_rate=0.1/seed0 False', 'learning_rate=0.1/seed0 True',
      'learning_rate=0.2/seed0 False']
  rows = cells.Cell(str(tmp_path / 'out' / 'learning_rate=0.1' / 'seed0'), []).rows()
  assert [row['timesteps'] for row in rows] == list(range(0, 1001, 100))


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_the_others_are_trained(training, tmp_path,
                                                             capsys):
  log, _ = training
  assert swept(tmp_path, '--seeds', '13,4') == 1
  printed = capsys.readouterr().out
  assert 'seed13: failed with exit code 1' in printed
  assert '1 of 2 runs failed' in printed and '| 1 ' in printed
  assert log.read_text().splitlines() == ['all/seed13 False', 'all/seed4 False']


@pytest.mark.slow
def test_other_settings_are_not_mixed_into_a_sweep(training, tmp_path, capsys):
  del training
  assert swept(tmp_path, '--seeds', '0') == 0
  with pytest.raises(SystemExit) as ended:
    swept(tmp_path, '--seeds', '0', '--latent_size', '8')
  assert ended.value.code == 2
  assert 'holds a run with latent_size 256, not 8' in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_prunes_what_is_worse_and_finds_what_is_best(
    training, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(cells, '_POLL_SECONDS', 0.05)  # Or what is fast is not seen.
  log, _ = training
  argv = ['--seeds', '0', '--search', 'learning_rate=1e-3..0.5:log',
          'loss=ppo,vtrace']
  assert swept(tmp_path, *argv, '--trials', '8') == 0
  printed = capsys.readouterr().out
  trials = re.findall(r'trial (\d+), after \d+ of 8: learning_rate=(\S+) loss=(\w+)',
                      printed)
  assert [int(trial) for trial, _, _ in trials] == list(range(8))
  assert {loss for _, _, loss in trials} <= {'ppo', 'vtrace'}
  best = max(float(rate) for _, rate, _ in trials)
  assert f'returned {1000 * best:.4g}: learning_rate={best}' in printed
  pruned = {int(n) for n in re.findall(r'trial (\d+) is pruned', printed)}
  rates = {int(trial): float(rate) for trial, rate, _ in trials}
  assert pruned and all(rates[n] < sorted(rates.values())[4] for n in pruned)
  # It goes on, with what has not been tried.
  before = len(log.read_text().splitlines())
  assert swept(tmp_path, *argv, '--trials', '9') == 0
  assert len(log.read_text().splitlines()) == before + 1


@pytest.mark.slow
def test_a_search_goes_on_in_the_trial_that_was_stopped(training, tmp_path):
  log, stop = training
  argv = ['--seeds', '0', '--search', 'learning_rate=0.1..0.5', '--trials', '2']
  stop.touch()
  assert swept(tmp_path, *argv) == 130
  assert swept(tmp_path, *argv) == 0
  assert log.read_text().splitlines() == [
      'trial0/seed0 False', 'trial0/seed0 True', 'trial1/seed0 False']


@pytest.mark.slow
@pytest.mark.parametrize('what, told', [
    ('latent_size', 'holds a run with latent_size 256, not 8'),
    ('journal', 'holds a run with learning_rate'),
    ('scale', 'drew learning_rate otherwise, from 0.1..0.5; give that again'),
    ('seeds', 'have --seeds 0, and')])
def test_other_settings_are_not_mixed_into_a_search(training, tmp_path, capsys,
                                                    what, told):
  del training
  argv = ['--trials', '1', '--search', 'learning_rate=0.1..0.5']
  assert swept(tmp_path, *argv, '--seeds', '0') == 0
  if what == 'journal':
    (tmp_path / 'out' / 'optuna.log').unlink()
    argv[-1] = 'learning_rate=0.6..0.7'
  elif what == 'scale':
    argv[-1] = 'learning_rate=0.1..0.5:log'
  elif what == 'latent_size':
    argv += ['--latent_size', '8']
  argv += ['--seeds', '0-1' if what == 'seeds' else '0']
  with pytest.raises(SystemExit) as ended:
    swept(tmp_path, *argv)
  assert ended.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.slow
def test_settings_are_checked_with_those_they_go_with(training, tmp_path, capsys):
  log, _ = training
  # Neither goes with the other's default.
  assert swept(tmp_path, '--seeds', '0', '--samples_per_insert', '4', '--grid',
               'batch_size=8,16') == 0
  assert log.read_text().splitlines() == [
      'batch_size=8/seed0 False', 'batch_size=16/seed0 False']
  with pytest.raises(SystemExit):
    sweep.main(['--out', str(tmp_path / 'other'), *FLAGS, '--grid',
                'samples_per_insert=4,5', 'batch_size=8,20'])
  assert 'batch_size must be a multiple' in capsys.readouterr().err
  assert len(log.read_text().splitlines()) == 2
  # A search leaves those out, and tries as many as it was told to all the same.
  assert sweep.main(['--out', str(tmp_path / 'search'), *FLAGS, '--seeds', '0',
                     '--trials', '6', '--search', 'samples_per_insert=4,5',
                     'batch_size=8,10,20', 'learning_rate=0.1..0.5']) == 0
  assert 'is left out: batch_size must be a multiple' in capsys.readouterr().out
  assert len(log.read_text().splitlines()) == 2 + 6
  with pytest.raises(SystemExit):
    sweep.main(['--out', str(tmp_path / 'none'), *FLAGS, '--batch_size', '7',
                '--search', 'learning_rate=0.1..0.5'])
  assert '20 settings in a row do not go together: batch_size must' in (
      capsys.readouterr().err)


def test_a_run_that_somebody_trains_is_not_removed(training, tmp_path):
  log, _ = training
  cell = cells.Cell(str(tmp_path / 'run'), [*FLAGS, '--learning_rate', '0.1'])
  settings = cell.settings()
  os.makedirs(cell.run_dir)
  settings_lib.save(settings)
  with locks.held(cell.run_dir):
    with pytest.raises(ValueError, match='is in use by the run of process'):
      cell.train()
  assert settings_lib.load(cell.run_dir) == settings and not log.exists()
  assert cell.train() == 0 and cell.is_done()


def test_a_run_whose_checkpoints_cannot_be_read_begins_anew(training, tmp_path):
  log, _ = training
  cell = cells.Cell(str(tmp_path / 'run'), [*FLAGS, '--learning_rate', '0.1'])
  folder = tmp_path / 'run' / 'checkpoints'
  folder.mkdir(parents=True)
  settings_lib.save(cell.settings())
  (folder / 'broken-ckpt-1.index').touch()  # As a resumption has named it.
  assert cell.train() == 0 and cell.is_done()
  assert log.read_text().endswith('/run False\n')
  assert not (folder / 'broken-ckpt-1.index').exists()


@pytest.mark.parametrize('rows, ended', [
    ([], False),
    ([(900, 99, 20.)], False),  # Too few episodes for the target.
    ([(900, 100, 17.9)], False),
    ([(900, 100, float('nan'))], False),
    ([(900, 100, 18.)], True),
    ([(900, 100, 18.), (950, 104, 17.5)], True),  # Until every actor had stopped.
    ([(900, 99, 20.), (1000, 99, 20.)], True)])
def test_a_run_has_ended_once_a_row_has_what_ends_it(tmp_path, rows, ended):
  (tmp_path / 'progress.csv').write_text('\n'.join([
      'timesteps,episodes,episode_return_mean_100',
      *(','.join(map(str, row)) for row in rows), '']))
  cell = cells.Cell(str(tmp_path), ['--max_timesteps', '1000', '--target_return',
                                    '18', '--game', 'CartPole-v1'])
  assert cell._has_ended() == ended


@pytest.mark.slow
def test_a_real_sweep_pauses_and_saves_what_it_has_when_it_is_stopped(tmp_path):
  argv = ['--out', str(tmp_path / 'out'), '--game', 'CartPole-v1', '--seeds', '0',
          '--max_timesteps', '100000000', *runs.SMALL]
  process = subprocess.Popen(
      runs.command('launch.sweep', *argv), cwd=runs.ROOT, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, text=True)
  run_dir = str(tmp_path / 'out' / 'all' / 'seed0')
  processes.wait_for(lambda: process.poll() is not None or any(
      row['learner_steps'] > 5 for row in runs.rows(run_dir)), 'steps', seconds=240.)

  sweep = psutil.Process(process.pid)
  training, = sweep.children()
  learner = node_processes.find_node(training, 'learner/0')
  process.send_signal(signal.SIGTSTP)  # Ctrl-Z
  processes.wait_for(lambda: all(p.status() == psutil.STATUS_STOPPED for p in (
      sweep, training, learner)), 'a pause')
  steps = runs.learner_steps(run_dir)
  process.send_signal(signal.SIGCONT)
  processes.wait_for(lambda: runs.learner_steps(run_dir) > steps, 'more steps')

  process.send_signal(signal.SIGINT)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 130, output
  assert 'every node has ended' in output and 'the same command goes on' in output
  with open(os.path.join(run_dir, 'config.json')) as f:
    assert json.load(f)['run']['seed'] == 0
  # So the last of its rows is of a checkpoint.
  steps = checkpoints.learner_steps(checkpoints.latest(run_dir))
  assert runs.rows(run_dir)[-1]['learner_steps'] == steps > 5
  assert not os.path.exists(os.path.join(run_dir, 'done'))


@pytest.mark.parametrize('argv, told', [
    (['--grid', 'learning_rate'], 'NAME=VALUE,VALUE'),
    (['--grid'], '--grid is empty'), (['--search'], '--search is empty'),
    (['--search', 'discount=0..1', '--latent_size', '0'], 'latent_size must be'),
    (['--search', 'discount=0..1', '--config', 'none.yaml'], 'none.yaml'),
    (['--grid', 'learning_rat=1e-3'], 'did you mean learning_rate?'),
    (['--grid', 'seed=1,2'], "no setting 'seed'"),
    (['--grid', 'learning_rate=1,2'], 'learning_rate must be a number in (0, 1]'),
    (['--grid', 'learning_rate=1e-3,1e-3'], 'must be different'),
    (['--grid', 'discount=1', '--grid', 'loss=ppo'], '--grid is given twice'),
    (['--grid', 'loss=ppo', 'loss=vtrace'], 'loss is given twice'),
    (['--grid', 'autoencoder=yes'], 'autoencoder must be true or false'),
    (['--grid', 'loss=ppo', '--search', 'discount=0..1'], 'either --grid or'),
    (['--search', 'discount=0.9..0.1'], 'discount cannot be searched'),
    (['--search', 'discount=0..7'], 'discount must be a number in [0, 1]'),
    (['--search', 'loss=ppo..vtrace'], 'loss cannot be searched'),
    (['--search', 'latent_size=1.5..3'], 'latent_size cannot be searched'),
    (['--seeds', '3-1'], 'seeds must be such as'),
    (['--seed', '1'], 'a sweep has no --seed; give --seeds'),
    (['--run_dir', 'x'], 'a sweep has no --run_dir; give --out'),
    (['--loss', 'dqn'], 'loss must be one of'),
    (['--ray_address', 'auto'], '--num_actors is missing'),
    (['--ray_address', '127.0.0.1:9', '--config', 'ACTORS'], 'no Ray cluster at'),
    (['--ray_address', 'auto', '--search', 'discount=0..1'], 'without --ray'),
    (['--ray_address', '127.0.0.1:9', '--num_actors', '2'], 'no Ray cluster at'),
])
def test_bad_sweeps_are_told_in_one_line(argv, told, training, tmp_path, capsys):
  log, _ = training
  actors = tmp_path / 'actors.yaml'
  actors.write_text('run: {num_actors: 2}')
  with pytest.raises(SystemExit) as ended:
    swept(tmp_path, *(arg.replace('ACTORS', str(actors)) for arg in argv))
  assert ended.value.code == 2
  said = capsys.readouterr().err
  assert told in said and said.count('\n') == 1
  assert not log.exists()
