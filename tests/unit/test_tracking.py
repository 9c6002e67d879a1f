"""Experiment trackers, with their own stores on this machine."""

import importlib.util
import shutil
import threading

import pytest

from launch import train
from programs.runtime import records
from programs.runtime import tracking
from tests.unit.test_board import PNG
from tests.unit.test_board import SETTINGS

ROWS = [{'timesteps': step, 'loss': loss, records.RETURNS: [1., 2.],
         records.PICTURE: PNG} for step, loss in ((0, 3.), (100, 2.))]
LATER = [{'timesteps': 200, 'loss': 1.}]


class Slow:
  """A tracker that does not answer yet."""

  def __init__(self):
    self.answers = threading.Event()
    self.rows = []
    self.is_closed = False

  def write(self, data):
    self.answers.wait()
    self.rows.append(data['timesteps'])

  def close(self):
    self.is_closed = True


def test_rows_wait_in_the_background_and_go_on_in_order():
  slow = Slow()
  logger = tracking.InBackground(slow)
  for timesteps in range(50):
    logger.write({'timesteps': timesteps})
  assert slow.rows == []
  slow.answers.set()
  logger.close()
  assert slow.rows == list(range(50)) and slow.is_closed


def test_one_that_never_answers_holds_nobody_up(monkeypatch):
  monkeypatch.setattr(tracking, '_BACKLOG', 3)
  monkeypatch.setattr(tracking, '_CLOSE_SECONDS', 0.1)
  slow = Slow()
  logger = tracking.InBackground(slow)
  for timesteps in range(50):
    logger.write({'timesteps': timesteps})
  logger.close()
  assert slow.rows == []
  slow.answers.set()


@pytest.mark.parametrize('track', tracking.TRACKERS)
def test_a_package_that_is_missing_gets_one_line(tmp_path, capsys, monkeypatch,
                                                 track):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(SystemExit) as ended:
    train.main(['--track', track, '--run_dir', str(tmp_path / 'run')])
  line, = capsys.readouterr().err.splitlines()
  assert ended.value.code == 2 and f'pip install "impala-ppo[{track}]"' in line


def test_a_new_run_in_the_place_of_another_has_an_id_of_its_own(tmp_path):
  run_dir = tmp_path / 'run'
  run_dir.mkdir()
  first = tracking._id(str(run_dir))
  assert tracking._id(str(run_dir)) == first
  (run_dir / 'tracker_id').write_text(16 * '\0')  # As a power failure leaves it.
  second = tracking._id(str(run_dir))
  assert tracking._id(str(run_dir)) == second != first
  run_dir = run_dir.rename(tmp_path / 'moved')
  assert tracking._id(str(run_dir)) == second
  restored = shutil.copytree(run_dir, tmp_path / 'elsewhere')
  shutil.rmtree(run_dir)
  restored.rename(run_dir)
  assert tracking._id(str(run_dir)) == second
  copied = shutil.copytree(run_dir, tmp_path / 'copied')
  assert tracking._id(str(copied)) not in (first, second)
  shutil.rmtree(run_dir)
  run_dir.mkdir()
  assert tracking._id(str(run_dir)) not in (first, second)


@pytest.mark.slow
def test_mlflow_goes_on_with_the_run_that_is_resumed(tmp_path, monkeypatch):
  mlflow = pytest.importorskip('mlflow')
  monkeypatch.setenv('MLFLOW_TRACKING_URI', f'sqlite:///{tmp_path}/mlflow.db')
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'run').mkdir()
  for rows in (ROWS, LATER):
    logger = tracking.Mlflow(str(tmp_path / 'run'), lambda: SETTINGS)
    for row in rows:
      logger.write(row)
    logger.close()
  client = mlflow.MlflowClient()
  run, = client.search_runs(
      [client.get_experiment_by_name('impala-ppo').experiment_id])
  assert run.info.run_name == 'run' and run.info.status == 'FINISHED'
  assert run.data.params['agent.learning_rate'] == '0.0007'
  assert [(metric.step, metric.value) for metric in
          client.get_metric_history(run.info.run_id, 'loss/total')] == [
              (0, 3.), (100, 2.), (200, 1.)]
  assert client.list_artifacts(run.info.run_id, 'images')


@pytest.mark.slow
def test_wandb_takes_rows_offline(tmp_path, monkeypatch):
  pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  monkeypatch.setenv('WANDB_ERROR_REPORTING', 'false')
  logger = tracking.Wandb(str(tmp_path), lambda: SETTINGS)
  for row in ROWS:
    logger.write(row)
  logger.close()
  kept, = tmp_path.glob('wandb/offline-run-*/*.wandb')
  content = kept.read_bytes()
  assert b'learning_rate' in content and b'loss/total' in content
  # The two are the same picture.
  assert list(tmp_path.glob('wandb/offline-run-*/files/media/images/*/*.png'))
