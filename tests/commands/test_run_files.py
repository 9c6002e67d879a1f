"""Training into a directory that is in use, moved, harmed, full or done."""

import csv
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import psutil
import pytest

from launch import evaluate
from launch import train
from launch.engines import local
from programs.runtime import checkpoints
from programs.runtime import locks
from programs.runtime import records
from tests.commands import runs

ARGS = ['--game', 'tests.bad_readings:Behaving-v0', '--num_actors', '1',
        '--envs_per_actor', '4', '--batch_size', '6', '--sequence_length', '8',
        '--latent_size', '16', '--evaluation_interval', '0',
        '--progress_seconds', '0.5']
BUDGET = 4000


def rows(path):
  with open(path, newline='') as f:
    return list(csv.DictReader(f))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The directory of a run that has reached its budget."""
  run_dir = tmp_path_factory.mktemp('runs') / 'original'
  ended = runs.run('launch.train', '--run_dir', run_dir, '--max_timesteps', BUDGET,
                   '--checkpoint_minutes', 0.02, *ARGS)
  assert ended.returncode == 0, ended.stdout + ended.stderr
  return run_dir


@pytest.fixture
def copied(finished, tmp_path):
  """A copy of it, to be harmed."""
  return pathlib.Path(shutil.copytree(finished, tmp_path / 'copy'))


@pytest.fixture
def launched(monkeypatch):
  """The run directories of programs that would have been launched."""
  launched = []

  def run_program(program, launch_type, run_dir, *args):
    launched.append(run_dir)
    return 0

  monkeypatch.setattr(local, 'run_program', run_program)
  return launched


def resume(run_dir, *args):
  return train.main(['--resume', '--run_dir', str(run_dir), *map(str, args)])


def contents(run_dir):
  return {path: path.read_bytes() for path in run_dir.rglob('*')
          if path.is_file() and path.name != locks.FILE}


pytestmark = pytest.mark.slow


def test_a_run_that_has_reached_its_budget_says_so_and_adds_nothing(
    finished, launched, capsys):
  before = contents(finished)
  assert resume(finished) == 0
  _, line = capsys.readouterr().out.strip().splitlines()
  assert re.fullmatch(
      rf'train: {finished} has reached its budget, with \d,\d+ of 4,000 '
      'timesteps; give a larger --max_timesteps to go on.', line)
  assert contents(finished) == before and not launched


def test_a_run_ends_at_its_target(tmp_path):
  ended = runs.run('launch.train', '--run_dir', tmp_path / 'run', '--target_return',
                   5, '--max_timesteps', 10**9, *ARGS)
  assert ended.returncode == 0, ended.stdout + ended.stderr
  last = runs.rows(str(tmp_path / 'run'))[-1]
  assert last['episode_return_mean_100'] == 5 and last['timesteps'] < 10**6


def test_a_run_that_has_reached_its_target_says_so(finished, launched, capsys):
  args = ['--max_timesteps', 10**6]
  assert resume(finished, *args, '--target_return', 5) == 0
  assert ('has reached its target, with a mean return of 5; give a higher '
          '--target_return' in capsys.readouterr().out)
  assert not launched
  assert resume(finished, *args, '--target_return', 6) == 0
  assert launched == [str(finished)]


@pytest.mark.parametrize('flags', [['--discount', 0.5], ['--max_abs_reward', 9]])
def test_values_that_were_learned_go_on_meaning_the_same(
    finished, launched, capsys, flags):
  before = contents(finished)
  with pytest.raises(SystemExit) as ended:
    resume(finished, '--max_timesteps', 10**6, *flags)
  assert ended.value.code == 2
  assert ('has learned values with --discount 0.97 --max_abs_reward 1, from which' in
          capsys.readouterr().err)
  assert contents(finished) == before and not launched


def test_what_is_resumed_in_a_copy_is_the_copy(
    finished, copied, launched, monkeypatch):
  before = contents(finished)
  # As where the run's name follows from its game.
  monkeypatch.chdir(copied.parent)
  os.makedirs('runs')
  os.rename(copied, 'runs/tests_bad_readings_behaving_v0')
  copied = copied.parent / 'runs' / 'tests_bad_readings_behaving_v0'
  assert train.main(['--resume', '--game', 'tests.bad_readings:Behaving-v0',
                     '--max_timesteps', '10000']) == 0
  assert launched == [str(copied)]
  with open(copied / 'config.json') as f:
    assert json.load(f)['run']['run_dir'] == str(copied)
  assert contents(finished) == before


def test_rows_past_the_checkpoint_are_moved_and_told(copied, launched, capsys):
  path = checkpoints.latest(str(copied))
  timesteps = checkpoints.progress(path)['counts']['actor_steps']
  records.csv_logger(str(copied), 'evaluation.csv',
                     records.EVALUATION_COLUMNS).write({'timesteps': timesteps})
  whole = {}
  for file, past in (('progress.csv', [timesteps + 1, timesteps + 500]),
                     ('evaluation.csv', [timesteps + 1])):
    whole[file] = (copied / file).read_text()
    num_columns = len(whole[file].splitlines()[0].split(','))
    with open(copied / file, 'a') as f:
      f.writelines(f'{n}{",0" * (num_columns - 1)}\n' for n in past)
  (copied / 'counter.json').write_text('{"counts": {"actor_steps": 99999}}')
  assert resume(copied, '--max_timesteps', 10**6) == 0
  said = capsys.readouterr().out
  assert f'progress.csv: moved 2 rows past the {timesteps:,} timesteps' in said
  assert f'evaluation.csv: moved 1 rows past the {timesteps:,} timesteps' in said
  for file, text in whole.items():
    assert (copied / file).read_text() == text
  assert [int(row['timesteps']) for row in rows(copied / 'progress.csv.cut')] == [
      timesteps + 1, timesteps + 500]
  # A counter that is restarted before its first row must not jump ahead.
  assert not (copied / 'counter.json').exists()


@pytest.mark.parametrize('index', (b'', b'model_checkpoint_p', b'\xff\xfe', None))
def test_checkpoints_without_their_index_are_resumed_and_evaluated(
    copied, launched, capsys, index):
  file = copied / 'checkpoints' / 'checkpoint'
  file.write_bytes(index) if index is not None else file.unlink()
  newest = checkpoints.latest(str(copied))
  assert evaluate.main(['--run_dir', str(copied), '--episodes', '2']) == 0
  assert f'{os.path.basename(newest)}, greedy' in capsys.readouterr().out
  assert resume(copied, '--max_timesteps', 10**6) == 0
  assert launched and 'passed over' not in capsys.readouterr().out


def test_an_older_checkpoint_is_used_and_told_why(copied, launched, capsys):
  number = int(checkpoints.latest(str(copied)).rpartition('-')[2])
  assert number > 1
  data = next((copied / 'checkpoints').glob(f'ckpt-{number}.data-00000-*'))
  os.truncate(data, data.stat().st_size // 2)
  assert evaluate.main(['--run_dir', str(copied), '--episodes', '2']) == 0
  told = f'checkpoint ckpt-{number} is passed over'
  output = capsys.readouterr()
  assert told in output.err
  assert f'ckpt-{number - 1}, greedy, 2 episodes' in output.out
  assert resume(copied, '--max_timesteps', 10**6) == 0
  assert told in capsys.readouterr().out and launched


def test_too_full_a_disk_is_refused(copied, tmp_path, monkeypatch, capsys):
  class Usage:
    free = 10**5

  monkeypatch.setattr(checkpoints.shutil, 'disk_usage', lambda path: Usage)
  for args in (['--run_dir', tmp_path / 'new', *ARGS],
               ['--resume', '--run_dir', copied, '--max_timesteps', 10**6]):
    assert re.search(r' has 0\.1 MB of disk left, and checkpoints need 1\.\d MB; '
                     'make room', runs.refusal(capsys, train.main, *args))


def test_the_space_that_is_asked_for_is_what_checkpoints_take(finished):
  asked = []

  def check_space(run_dir, variable_bytes, trained_bytes):
    asked.append(variable_bytes + 2 * trained_bytes)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoints, 'check_space', check_space)
    patch.setattr(local, 'run_program', lambda *args, **kwargs: 0)
    resume(finished, '--max_timesteps', 10**6)
  newest = checkpoints.latest(str(finished))
  data = sum(path.stat().st_size for path in (finished / 'checkpoints').glob(
      os.path.basename(newest) + '.data-*'))
  # Beside them, how they hang together, the counter's state and some scalars.
  assert asked[0] < data < asked[0] + 20_000


def test_a_directory_in_use_is_refused_until_all_of_its_run_has_ended(
    tmp_path, capsys, launched):
  run_dir = tmp_path / 'run'
  process = subprocess.Popen(
      runs.command('launch.train', '--run_dir', run_dir,
                   '--checkpoint_minutes', 0.02, *ARGS),
      cwd=runs.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  try:
    deadline = time.monotonic() + 120.
    while not checkpoints.latest(str(run_dir)):
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.2)
    in_use = f'is in use by the run of process {process.pid}; '
    before = (run_dir / 'config.json').read_bytes()
    assert in_use in runs.refusal(
        capsys, train.main, '--resume', '--run_dir', run_dir)
    assert 'holds another run' in runs.refusal(
        capsys, train.main, '--run_dir', run_dir, *ARGS)
    assert (run_dir / 'config.json').read_bytes() == before
    nodes = psutil.Process(process.pid).children(recursive=True)
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  # Its nodes, which end soon, may be saving a last checkpoint.
  refused = 0
  deadline = time.monotonic() + 30.
  while not launched:
    try:
      resume(run_dir, '--max_timesteps', 10**9)
    except SystemExit:
      assert (f'still held by nodes of process {process.pid}, which has ended'
              in capsys.readouterr().err)
      assert time.monotonic() < deadline
      refused += 1
      time.sleep(0.2)
  assert refused
  # Zombies are of who has adopted them.
  assert not [node for node in nodes if node.is_running() and
              node.status() != psutil.STATUS_ZOMBIE]


def test_training_goes_on_without_its_rows(copied):
  before = checkpoints.latest(str(copied))
  os.remove(copied / 'progress.csv')
  os.mkdir(copied / 'progress.csv')
  budget = BUDGET * 2
  ended = runs.run('launch.train', '--resume', '--run_dir', copied,
                   '--max_timesteps', budget)
  said = ended.stdout + ended.stderr
  assert ended.returncode == 0, said
  assert said.count(f'{copied / "progress.csv"} cannot be written') == 1
  assert 'restarting' not in said and 'Traceback' not in said
  path = checkpoints.latest(str(copied))
  assert path != before
  assert checkpoints.progress(path)['counts']['actor_steps'] >= budget


def test_a_copy_is_trained_on_and_its_rows_never_jump_back(finished, copied):
  before = contents(finished)
  with open(copied / 'progress.csv', 'a') as f:
    f.write('99999')  # A row that was being written.
  ended = runs.run('launch.train', '--resume', '--run_dir', copied,
                   '--max_timesteps', BUDGET * 2)
  assert ended.returncode == 0, ended.stdout + ended.stderr
  assert contents(finished) == before
  for column in ('timesteps', 'learner_steps', 'walltime_seconds', 'episodes'):
    values = [float(row[column]) for row in rows(copied / 'progress.csv')]
    assert values == sorted(values), column
  assert values[-1] > float(rows(finished / 'progress.csv')[-1]['episodes'])
  assert (copied / 'progress.csv.cut').read_text().endswith('\n99999')
