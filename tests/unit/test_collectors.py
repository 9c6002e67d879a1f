"""Where rows of progress go."""

import csv

from acme.utils import loggers

from programs.runtime import collectors
from programs.runtime import records
from programs.runtime import tracking
from tests.unit import test_health

ROW = {**dict.fromkeys(records.PROGRESS_COLUMNS, 0.5), **test_health.HEALTHY,
       'episodes': 3}


def test_rows_reach_file_terminal_tracker_and_who_warns(tmp_path, monkeypatch,
                                                        capsys):
  tracked = []

  class Tracker(loggers.NoOpLogger):

    def __init__(self, run_dir, settings):
      tracked.append(run_dir)

    def write(self, data):
      tracked.append(data['timesteps'])

  monkeypatch.setattr(tracking, 'TRACKERS', {'mlflow': Tracker})
  logger = collectors.progress_logger(str(tmp_path), True, 'mlflow')
  for step in range(30):
    logger.write({**ROW, 'timesteps': step, 'learner_steps': step,
                  **test_health.SICK['starved']})
  logger.close()
  assert tracked == [str(tmp_path), *range(30)]
  with open(tmp_path / records.PROGRESS_FILE) as f:
    assert [int(row['timesteps']) for row in csv.DictReader(f)] == list(range(30))
  output = capsys.readouterr()
  assert len(output.out.splitlines()) == 30
  assert 'starved' in output.err and output.err.endswith('See docs/metrics.md.\n')
  assert list(tmp_path.glob('events.out.tfevents.*'))
