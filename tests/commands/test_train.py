"""The commands as a person uses them: train, stop, resume, evaluate, err."""

import csv
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from launch import evaluate
from launch import train
from programs.runtime import checkpoints

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ['--num_actors', '1', '--envs_per_actor', '8', '--batch_size', '12',
         '--sequence_length', '8', '--latent_size', '32',
         '--evaluation_interval', '0', '--progress_seconds', '1']


def command(module, *args):
  return [sys.executable, '-m', module, *map(str, args)]


def run(module, *args, timeout=120):
  return subprocess.run(command(module, *args), cwd=ROOT, timeout=timeout,
                        capture_output=True, text=True)


def rows(run_dir):
  path = os.path.join(run_dir, 'progress.csv')
  if not os.path.exists(path):
    return []
  with open(path, newline='') as f:
    return list(csv.DictReader(f))


def start(*args):
  """Starts training; returns the process once the learner has learned."""
  process = subprocess.Popen(command('launch.train', *args), cwd=ROOT,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             start_new_session=True)
  run_dir = args[args.index('--run_dir') + 1]
  steps = ([0] + [int(row['learner_steps']) for row in rows(run_dir)])[-1]
  deadline = time.monotonic() + 90
  while not any(int(row['learner_steps']) > steps + 20 for row in rows(run_dir)):
    if process.poll() is not None or time.monotonic() > deadline:
      process.terminate()
      raise AssertionError(process.communicate()[0].decode())
    time.sleep(0.2)
  return process


def stop(process, how):
  """Stops training as told; returns its exit code and what survived it."""
  family = psutil.Process(process.pid).children(recursive=True)
  assert len(family) > 5
  began = time.monotonic()
  how(process)
  try:
    process.communicate(timeout=20)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    raise
  _, alive = psutil.wait_procs(family, timeout=15 - (time.monotonic() - began))
  return process.returncode, alive


def node(launcher, name):
  """Returns the process of a node, or None where it has not started yet."""
  for process in launcher.children(recursive=True):
    try:
      # The process that passes a node's output on is its parent.
      if name in process.cmdline():
        return next((p for p in process.children() if 'sed' not in p.name()),
                    None)
    except psutil.NoSuchProcess:
      pass
  return None


def handles_sigterm(process):
  with open(f'/proc/{process.pid}/status') as f:
    caught = int(re.search(r'SigCgt:\s*(\w+)', f.read()).group(1), 16)
  return bool(caught >> (signal.SIGTERM - 1) & 1)


def refusal(capsys, main, *args):
  """Returns the one line in which a command refuses its arguments.

  Without a process of its own, which would import for seconds.
  """
  with pytest.raises(SystemExit) as ended:
    main([*map(str, args)])
  assert ended.value.code == 2
  line, = capsys.readouterr().err.strip().splitlines()
  return line


def interrupt(process):
  """Ctrl-C in a terminal signals the whole foreground process group."""
  os.killpg(process.pid, signal.SIGINT)


def terminate(process):
  process.terminate()


@pytest.mark.timeout(280)
def test_train_stop_resume_finish_and_evaluate(tmp_path, capsys):
  run_dir = str(tmp_path / 'run')
  game = ['--game', 'pong', '--run_dir', run_dir, *SMALL]
  port = 29_481
  process = start(*game, '--replay_port', port, '--seed', 3)
  code, alive = stop(process, interrupt)
  assert (code, alive) == (0, [])
  with socket.socket() as s:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('', port))  # The port is free again.

  # The last step is in the last row and in the checkpoint.
  first = rows(run_dir)
  path = checkpoints.latest(run_dir)
  assert path is not None
  saved_steps = checkpoints.learner_steps(path)
  assert saved_steps == int(first[-1]['learner_steps']) > 20
  config = json.load(open(os.path.join(run_dir, 'config.json')))
  assert config['run']['seed'] == 3 and config['versions']['tensorflow']

  assert 'holds another run' in refusal(capsys, train.main, *game)
  assert 'another network' in refusal(
      capsys, train.main, '--run_dir', run_dir, '--resume', '--latent_size', 48)
  assert checkpoints.latest(run_dir) == path

  process = start('--run_dir', run_dir, '--resume')
  code, alive = stop(process, terminate)
  assert (code, alive) == (0, [])
  second = rows(run_dir)[len(first):]
  for column in ('timesteps', 'learner_steps', 'walltime_seconds'):
    assert float(second[0][column]) >= float(first[-1][column])
  assert float(second[-1]['learner_steps']) > saved_steps
  # The schedule went on as well.
  assert float(second[-1]['learning_rate']) < float(first[-1]['learning_rate'])

  budget = int(second[-1]['timesteps']) + 2000
  finished = run('launch.train', '--run_dir', run_dir, '--resume',
                 '--max_timesteps', budget)
  assert finished.returncode == 0, finished.stdout + finished.stderr
  assert int(rows(run_dir)[-1]['timesteps']) >= budget

  evaluated = run('launch.evaluate', '--run_dir', run_dir, '--episodes', 2,
                  '--seed', 1)
  assert evaluated.returncode == 0, evaluated.stderr
  assert re.search(r'mean -?\d+\.\d+, standard deviation \d+\.\d+, min -?\d+, '
                   r'max -?\d+', evaluated.stdout)


@pytest.mark.timeout(120)
@pytest.mark.parametrize('how', [interrupt, terminate])
def test_a_run_can_be_stopped_while_its_nodes_start(tmp_path, how):
  args = ['--run_dir', str(tmp_path / 'run'), *SMALL]
  process = subprocess.Popen(command('launch.train', *args), cwd=ROOT,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             start_new_session=True)
  while len(psutil.Process(process.pid).children(recursive=True)) <= 5:
    assert process.poll() is None
    time.sleep(0.1)
  assert stop(process, how) == (0, [])
  # Nothing was learned, so nothing is in the way of starting anew.
  assert os.listdir(tmp_path / 'run') == ['config.json']


@pytest.mark.timeout(120)
def test_a_run_can_be_stopped_while_the_learner_waits_for_replay(tmp_path):
  process = subprocess.Popen(
      command('launch.train', '--run_dir', str(tmp_path / 'run'), *SMALL),
      cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      start_new_session=True)
  launcher = psutil.Process(process.pid)
  frozen = None
  while frozen is None:
    assert process.poll() is None
    time.sleep(0.02)
    frozen = node(launcher, 'replay/0')
  frozen.suspend()
  learner = None
  while learner is None or not handles_sigterm(learner):
    time.sleep(0.1)
    learner = node(launcher, 'learner/0')
  time.sleep(5)  # Builds its networks, and then asks the replay for its tables.
  assert stop(process, terminate) == (0, [])


@pytest.mark.timeout(150)
def test_vectors_train_under_threads_to_the_end(tmp_path):
  run_dir = str(tmp_path / 'run')
  result = run('launch.train', '--game', 'CartPole-v1', '--run_dir', run_dir,
               '--lp_launch_type', 'local_mt', '--max_timesteps', 3000, *SMALL)
  assert result.returncode == 0, result.stdout + result.stderr
  assert int(rows(run_dir)[-1]['timesteps']) >= 3000
  assert checkpoints.latest(run_dir) is not None


@pytest.mark.timeout(150)
def test_a_dead_node_ends_the_run_with_an_error(tmp_path):
  process = start('--run_dir', str(tmp_path / 'run'), *SMALL)
  launcher = psutil.Process(process.pid)
  family = launcher.children(recursive=True)
  node(launcher, 'actor/0').kill()
  output = process.communicate(timeout=30)[0].decode()
  assert process.returncode == 1, output
  assert 'a node failed' in output
  assert psutil.wait_procs(family, timeout=5)[1] == []


def test_an_unknown_game_gets_one_line(tmp_path):
  run_dir = tmp_path / 'run'
  result = run('launch.train', '--run_dir', run_dir, '--game', 'pongg')
  assert result.returncode == 2
  assert 'close matches: pong' in result.stderr
  assert len(result.stderr.strip().splitlines()) == 1
  assert not run_dir.exists()


@pytest.mark.parametrize('args, message', [
    (['--game', 'Pendulum-v1'], 'Discrete action space'),
    (['--num_actors', '-1'], 'num_actors must be an integer in'),
    (['--max_timesteps', '0'], 'max_timesteps must be an integer in'),
    (['--num_gpus', '-1'], 'num_gpus must be an integer in'),
    (['--num_gpus', '99'], 'num_gpus is 99, but TensorFlow finds'),
    (['--batch_size', 'many'], 'batch_size must be an integer in'),
    (['--no_such_flag', '1'], "unknown flag '--no_such_flag'"),
    (['--resume'], 'holds no run'),
])
def test_bad_input_gets_one_line(tmp_path, capsys, args, message):
  run_dir = tmp_path / 'run'
  assert message in refusal(capsys, train.main, '--run_dir', run_dir, *args)
  assert not run_dir.exists()


def test_a_port_in_use_gets_one_line(tmp_path, capsys):
  with socket.socket() as taken:
    taken.bind(('', 0))
    taken.listen()
    port = taken.getsockname()[1]
    assert f'replay port {port}' in refusal(
        capsys, train.main, '--run_dir', tmp_path / 'run', '--replay_port', port)


def test_evaluating_nothing_gets_one_line(tmp_path, capsys):
  assert 'holds no run' in refusal(capsys, evaluate.main, '--run_dir', tmp_path)
