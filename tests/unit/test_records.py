"""Rows, written and read."""

import io
import json
import math
import os
import pathlib

import numpy as np
from PIL import Image
import pytest

from programs.runtime import collectors
from programs.runtime import processes
from programs.runtime import records
from tests import disks

with io.BytesIO() as _file:
  Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).save(_file, 'png')
  PNG = _file.getvalue()
COLUMNS = ('timesteps', 'loss', 'episodes')


def lines(path):
  with open(path, newline='') as f:
    return f.read().split('\r\n')


@pytest.fixture
def path(tmp_path):
  return str(tmp_path / 'rows.csv')


def test_rows_have_the_columns_in_their_order(path):
  logger = records.CsvLogger(path, COLUMNS)
  assert not os.path.exists(path)
  logger.write({'episodes': 12345678, 'loss': 1 / 3, 'timesteps': 7, 'other': 1})
  # Integers whole, floats with seven digits; what is missing is nan.
  logger.write({'timesteps': 8, 'loss': 1e-9})
  assert lines(path) == ['timesteps,loss,episodes', '7,0.3333333,12345678',
                         '8,1e-09,nan', '']


def test_rows_are_appended_without_a_second_header(path):
  for timesteps in (1, 2):
    records.CsvLogger(path, COLUMNS).write({'timesteps': timesteps})
  assert lines(path) == ['timesteps,loss,episodes', '1,nan,nan', '2,nan,nan', '']


def test_columns_are_added_as_rows_come_that_have_them(path):
  logger = records.CsvLogger(path, COLUMNS, lambda row: [
      name for name in row if name not in COLUMNS])
  logger.write({'timesteps': 1, 'loss': 0.5, 'episodes': 3})
  with open(path, 'a') as f:
    f.write('2,0.25\r\n')  # That is not whole.
  logger.write({'timesteps': 3, 'loss': 1., 'episodes': 4, 'b, or c': 7.})
  logger.write({'timesteps': 4, 'a': 8., 'loss': 2., 'episodes': 5})
  # Another process, as of a run that is resumed.
  records.CsvLogger(path, COLUMNS, lambda row: ['a']).write(
      {'timesteps': 5, 'a': 1.})
  rows = records.read(path)
  assert list(rows[0]) == ['timesteps', 'loss', 'episodes', 'b, or c', 'a']
  nan = math.nan
  np.testing.assert_array_equal([list(row.values()) for row in rows], [
      [1, 0.5, 3, nan, nan], [3, 1, 4, 7, nan], [4, 2, 5, nan, 8],
      [5, nan, nan, nan, 1]])


def test_columns_that_are_added_complete_no_row_that_was_cut_short(path):
  rows = [{'timesteps': 71, 'loss': 1.25e-09, 'episodes': 11},
          {'timesteps': 82, 'loss': 2.25e-10, 'episodes': 22}]
  logger = records.CsvLogger(path, COLUMNS)
  for row in rows:
    logger.write(row)
  content = pathlib.Path(path).read_bytes()
  first_row = content.index(b'\n') + 1
  for size in range(first_row, len(content) + 1):
    pathlib.Path(path).write_bytes(content[:size])
    whole = content[:size].count(b'\n') - 1
    records.CsvLogger(path, COLUMNS, records.own_metrics).write(
        {'timesteps': 93, 'my_loss': 4.})
    found = records.read(path)
    assert [row['timesteps'] for row in found] == [71, 82][:whole] + [93], size
    assert [row['loss'] for row in found[:-1]] == [
        row['loss'] for row in rows[:whole]]


def test_columns_that_there_is_no_room_for_take_no_row_away(path):
  logger = records.CsvLogger(path, COLUMNS, records.own_metrics)
  row = {'timesteps': 1, 'loss': 0.5, 'episodes': 3}
  logger.write(row)
  with disks.full(os.path.getsize(path) + 5), pytest.raises(OSError):
    logger.write({**row, 'my_loss': 4.})
  assert records.read(path) == [row]
  logger.write({**row, 'my_loss': 4.})
  assert [r['my_loss'] for r in records.read(path)][-1] == 4.


def test_own_metrics_are_numbers_that_not_every_run_has():
  row = {**dict.fromkeys(records.PROGRESS_COLUMNS, 1.), records.EVALUATION: 2.,
         records.RETURNS: [3.], records.PICTURE: PNG, 'why': 'text',
         'my_loss': 0.5, 'my_count': np.int64(6), 'my_mean': np.float32(7)}
  assert records.own_metrics(row) == ['my_loss', 'my_count', 'my_mean']


def test_a_file_that_was_moved_away_begins_anew(path):
  logger = records.CsvLogger(path, COLUMNS)
  logger.write({'timesteps': 1})
  os.rename(path, f'{path}.old')
  logger.write({'timesteps': 2})
  assert lines(path) == ['timesteps,loss,episodes', '2,nan,nan', '']


def test_what_was_written_is_read(path):
  logger = records.CsvLogger(path, COLUMNS)
  rows = [{'timesteps': 7, 'loss': 0.25, 'episodes': 1},
          {'timesteps': 8, 'loss': -1e-9, 'episodes': 2}]
  for row in rows:
    logger.write(row)
  assert records.read(path) == rows


def test_no_file_has_no_rows(path):
  assert records.read(path) == []


def test_a_row_that_is_not_whole_is_passed_over(path):
  logger = records.CsvLogger(path, COLUMNS)
  rows = [{'timesteps': 71, 'loss': 1.25e-09, 'episodes': 11},
          {'timesteps': 82, 'loss': 2.25e-10, 'episodes': 22}]
  for row in rows:
    logger.write(row)
  with open(path, 'rb') as f:
    content = f.read()
  for size in range(len(content)):
    with open(path, 'wb') as f:
      f.write(content[:size])
    # The header's line is none of them.
    whole = max(content[:size].count(b'\n') - 1, 0)
    assert records.read(path) == rows[:whole], content[:size]


@pytest.mark.parametrize('num_before', [0, 2])
def test_a_row_that_there_is_no_room_for_leaves_no_part(path, num_before):
  logger = records.CsvLogger(path, COLUMNS)
  rows = [{'timesteps': i, 'loss': i / 4, 'episodes': i} for i in range(4)]
  for row in rows[:num_before]:
    logger.write(row)
  content = pathlib.Path(path).read_bytes() if num_before else b''
  with disks.full(len(content) + 5):
    for _ in range(2):
      with pytest.raises(OSError):
        logger.write(rows[2])
  assert pathlib.Path(path).read_bytes() == content
  logger.write(rows[3])
  assert records.read(path) == [*rows[:num_before], rows[3]]


@pytest.mark.parametrize('line', [
    '5,0.2', '5,0.25,0.2582,0.5,3', 'a,b,c', '', '\0' * 9])
def test_what_is_no_row_is_passed_over(path, line):
  logger = records.CsvLogger(path, COLUMNS)
  rows = [{'timesteps': i, 'loss': i / 4, 'episodes': i} for i in range(2)]
  logger.write(rows[0])
  with open(path, 'a') as f:
    f.write(f'{line}\r\n')
  logger.write(rows[1])
  assert records.read(path) == rows


def test_a_file_of_zeros_is_begun_anew(tmp_path):
  path = tmp_path / records.RESTARTS_FILE
  path.write_text('\0' * 50)
  assert records.count_restarts(str(tmp_path)) == 0
  for number in (1, 2):  # As after each resumption.
    records.csv_logger(str(tmp_path), records.RESTARTS_FILE,
                       records.RESTARTS_COLUMNS).write(
        {'time': number, 'node': 'actor/0', 'how': 'was killed'})
    assert records.count_restarts(str(tmp_path)) == number


def test_a_row_is_printed_in_one_line(capsys):
  records.TerminalLogger().write({
      'timesteps': 1234567, 'walltime_seconds': 61.6, 'episodes': 1000,
      'timesteps_per_second': 2345.6, 'episode_return_mean_100': -3.456,
      'learner_steps': 4321, 'learner_wait_fraction': 0.256})
  assert capsys.readouterr().out.split() == (
      '1,234,567 timesteps 62 s 2,346/s return -3.46 (1,000 episodes, 4,321 '
      'learner steps, waiting 26%)').split()


@pytest.mark.parametrize('obstacle', ['no directory', 'a directory in its place'])
def test_rows_that_cannot_be_written_are_warned_of_once(
    tmp_path, capsys, obstacle):
  run_dir = tmp_path / 'run'
  path = run_dir / records.PROGRESS_FILE
  if obstacle == 'a directory in its place':
    path.mkdir(parents=True)
  logger = records.csv_logger(str(run_dir), records.PROGRESS_FILE,
                              records.PROGRESS_COLUMNS)
  for timesteps in range(3):
    logger.write({'timesteps': timesteps})
  warning, = capsys.readouterr().err.splitlines()
  assert warning.startswith(f'warning: {path} cannot be written (')

  # Once the obstacle has gone, rows are kept again.
  path.rmdir() if path.exists() else run_dir.mkdir()
  logger.write({'timesteps': 3})
  assert [row['timesteps'] for row in records.read(str(path))] == [3]


def row(**values):
  """A row of progress, as the counter has it."""
  return {**dict.fromkeys(records.PROGRESS_COLUMNS, 1), **values}


def test_the_terminal_and_boards_go_on_where_files_cannot(
    tmp_path, capsys, monkeypatch):
  monkeypatch.delenv(processes.NODE_VARIABLE, raising=False)
  logger = collectors.progress_logger(str(tmp_path / 'missing'), verbose=True)
  for timesteps in (5, 6):
    logger.write(row(timesteps=timesteps))
  (tmp_path / 'missing').mkdir()
  logger.write(row(timesteps=7))
  output = capsys.readouterr()
  assert '5 timesteps' in output.out and '6 timesteps' in output.out
  of_rows, of_board = output.err.splitlines()
  assert records.PROGRESS_FILE in of_rows and 'TensorBoard' in of_board
  kept = sorted(path.name[:14] for path in (tmp_path / 'missing').iterdir())
  assert kept == ['events.out.tfe', 'progress.csv']


def test_the_launcher_is_told_of_rows_in_json(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv(processes.NODE_VARIABLE, 'counter/0')
  logger = collectors.progress_logger(str(tmp_path), verbose=True)
  logger.write(row(timesteps=7, loss=float('nan'), **{
      records.RETURNS: [1.], records.PICTURE: PNG, records.EVALUATION: 3.}))
  line, = capsys.readouterr().out.splitlines()
  assert line.startswith(records.ROW)
  told = json.loads(line[len(records.ROW):])
  assert math.isnan(told.pop('loss'))
  assert told == {**{name: 1 for name in records.PROGRESS_COLUMNS
                     if name != 'loss'}, 'timesteps': 7, records.EVALUATION: 3.}


def test_only_what_the_system_refuses_is_survived():
  class Broken(records.TerminalLogger):

    def write(self, data):
      raise KeyError('a mistake of ours')

  with pytest.raises(KeyError):
    records.SurvivingLogger(Broken(), 'it').write({})
