"""The file that says where a run's replay is."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from programs.runtime import doors
from programs.runtime import processes
from programs.runtime import servers

REPLAY = ('127.0.0.1:5000', '[::1]:5001')


@pytest.fixture
def launcher():
  """A process that lives as long as the test."""
  with subprocess.Popen([sys.executable, '-c', 'input()'],
                        stdin=subprocess.PIPE) as process:
    yield dataclasses.replace(
        processes.this_process(), pid=process.pid,
        started=processes.started(process.pid)), process


def test_a_process_is_known_by_when_it_started():
  uptime = float(pathlib.Path('/proc/uptime').read_text().split()[0])
  ticks = os.sysconf('SC_CLK_TCK')
  with subprocess.Popen(['sleep', '60']) as process:
    assert processes.started(process.pid) / ticks == pytest.approx(uptime, abs=5.)
    process.kill()
  with pytest.raises(OSError):
    processes.started(process.pid)
  assert processes.this_process().is_this()


def refusal(run_dir):
  with pytest.raises(ValueError) as error:
    servers.read(run_dir)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_what_is_written_is_read_as_long_as_the_run_goes_on(tmp_path, launcher):
  of_run, process = launcher
  servers.write(str(tmp_path), list(REPLAY), of_run)
  assert servers.read(str(tmp_path)) == servers.Servers(REPLAY, of_run)
  # Its id may be another's by now.
  before = dataclasses.replace(of_run, started=of_run.started - 1)
  assert before.is_gone() and not of_run.is_gone()
  process.communicate(b'\n')
  assert f'its process {process.pid} has ended' in refusal(str(tmp_path))


def test_a_run_in_a_network_of_its_own_says_how_to_get_in(tmp_path, launcher,
                                                         monkeypatch):
  monkeypatch.setattr(doors, 'own_network', lambda: ('net:[7]', '--target 9 --net'))
  servers.write(str(tmp_path), REPLAY, launcher[0])
  monkeypatch.setattr(sys, 'orig_argv', ['python', '-m', 'x', 'with space'])
  assert "`nsenter --target 9 --net python -m x 'with space'`" in refusal(
      str(tmp_path))
  monkeypatch.setattr(doors, 'network', lambda: 'net:[7]')
  assert servers.read(str(tmp_path)).replay == REPLAY


@pytest.mark.parametrize('content', [
    '', '[]', '{}', 'null', '{"replay": 3, "launcher": {}}',
    '{"replay": ["a:1"], "launcher": {"host": "x"}}'])
def test_what_is_no_such_file_is_refused(tmp_path, content):
  assert 'has no servers.json' in refusal(str(tmp_path))
  (tmp_path / servers.FILE).write_text(content)
  assert 'cannot be read' in refusal(str(tmp_path))


def test_a_full_disk_is_a_warning(tmp_path, capsys):
  servers.write(str(tmp_path / 'missing'), REPLAY, processes.this_process())
  assert 'needs --address' in capsys.readouterr().err
  servers.write(str(tmp_path), REPLAY, processes.this_process())
  assert json.loads((tmp_path / servers.FILE).read_text())['replay'] == list(REPLAY)
