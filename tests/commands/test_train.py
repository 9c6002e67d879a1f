"""The commands as a person uses them: train, stop, resume, evaluate, err."""

import json
import os
import re
import shutil
import signal
import socket
import time

import psutil
import pytest

from launch import evaluate
from launch import train
from programs.runtime import checkpoints
from programs.runtime import processes as node_processes
from programs.runtime import servers
from tests import processes
from tests.commands import runs


def handles_sigterm(process):
  with open(f'/proc/{process.pid}/status') as f:
    caught = int(re.search(r'SigCgt:\s*(\w+)', f.read()).group(1), 16)
  return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
def test_train_stop_resume_finish_and_evaluate(tmp_path, capsys):
  run_dir = str(tmp_path / 'run')
  game = ['--game', 'pong', '--run_dir', run_dir, *runs.SMALL]
  port = processes.free_ports(1)
  process = runs.start(*game, '--replay_port', port, '--seed', 3)
  code, alive = runs.stop(process, runs.interrupt)
  assert (code, alive) == (0, [])
  with socket.socket() as s:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('', port))  # The port is free again.

  # The last step is in the last row and in the checkpoint.
  first = runs.rows(run_dir)
  path = checkpoints.latest(run_dir)
  assert path is not None
  saved_steps = checkpoints.learner_steps(path)
  assert saved_steps == first[-1]['learner_steps'] > 20
  config = json.load(open(os.path.join(run_dir, 'config.json')))
  assert config['run']['seed'] == 3 and config['versions']['tensorflow']

  assert 'holds another run' in runs.refusal(capsys, train.main, *game)
  assert 'another network' in runs.refusal(
      capsys, train.main, '--run_dir', run_dir, '--resume', '--latent_size', 48)
  assert checkpoints.latest(run_dir) == path

  process = runs.start('--run_dir', run_dir, '--resume')
  code, alive = runs.stop(process, runs.terminate)
  assert (code, alive) == (0, [])
  second = runs.rows(run_dir)[len(first):]
  for column in ('timesteps', 'learner_steps', 'walltime_seconds'):
    assert second[0][column] >= first[-1][column]
  assert second[-1]['learner_steps'] > saved_steps
  # The schedule went on as well.
  assert second[-1]['learning_rate'] < first[-1]['learning_rate']

  budget = int(second[-1]['timesteps']) + 2000
  finished = runs.run('launch.train', '--run_dir', run_dir, '--resume',
                      '--max_timesteps', budget)
  assert finished.returncode == 0, finished.stdout + finished.stderr
  assert runs.rows(run_dir)[-1]['timesteps'] >= budget

  evaluated = runs.run('launch.evaluate', '--run_dir', run_dir, '--episodes', 2,
                       '--seed', 1, '--max_episode_steps', 300)
  assert evaluated.returncode == 0, evaluated.stderr
  number = r'-?\d+\.\d+'
  assert re.search(
      rf'mean {number} \(95% interval {number} to {number}\), standard deviation '
      rf'{number}, min -?\d+, max -?\d+', evaluated.stdout)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize('how', [runs.interrupt, runs.terminate])
def test_a_run_can_be_stopped_while_its_nodes_start(tmp_path, how):
  process = runs.launch('--run_dir', str(tmp_path / 'run'), *runs.SMALL)
  while len(psutil.Process(process.pid).children()) < 4:
    assert process.poll() is None
    time.sleep(0.1)
  assert runs.stop(process, how) == (0, [])
  # Nothing was learned, so nothing is in the way of starting anew.
  assert set(os.listdir(tmp_path / 'run')) - {servers.FILE} == {
      'config.json', 'lock', 'logs'}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_can_be_stopped_while_the_learner_waits_for_replay(tmp_path):
  process = runs.launch('--run_dir', str(tmp_path / 'run'), *runs.SMALL)
  launcher = psutil.Process(process.pid)
  frozen = None
  while frozen is None:
    assert process.poll() is None
    time.sleep(0.02)
    frozen = node_processes.find_node(launcher, 'replay/0')
  frozen.suspend()
  learner = None
  while learner is None or not handles_sigterm(learner):
    time.sleep(0.1)
    learner = node_processes.find_node(launcher, 'learner/0')
  time.sleep(5)  # Builds its networks, and then asks the replay for its tables.
  assert runs.stop(process, runs.terminate, stuck=['replay/0']) == (0, [])


@pytest.mark.slow
def test_vectors_train_under_threads_to_the_end_and_quietly(tmp_path):
  run_dir = str(tmp_path / 'run')
  result = runs.run('launch.train', '--game', 'CartPole-v1', '--run_dir', run_dir,
                    '--lp_launch_type', 'local_mt', '--max_timesteps', 3000,
                    '--quiet', *runs.SMALL)
  assert (result.returncode, result.stdout) == (0, ''), result.stderr
  assert runs.rows(run_dir)[-1]['timesteps'] >= 3000
  assert checkpoints.latest(run_dir) is not None


@pytest.mark.slow
@pytest.mark.parametrize('is_broken', [False, True])
def test_threads_end_with_the_terminal_and_tell_if_nothing_could_be_saved(
    tmp_path, is_broken):
  run_dir = tmp_path / 'run'
  process = runs.start('--game', 'CartPole-v1', '--run_dir', str(run_dir),
                       '--lp_launch_type', 'local_mt', *runs.SMALL)
  if is_broken:
    shutil.rmtree(run_dir / 'checkpoints')
    (run_dir / 'checkpoints').touch()
  process.send_signal(signal.SIGHUP)
  output = process.communicate(timeout=60)[0].decode()
  assert process.returncode == is_broken, output
  assert ('the learner failed, so its last steps' in output) == is_broken
  if not is_broken:
    assert checkpoints.learner_steps(checkpoints.latest(str(run_dir))) == (
        runs.rows(str(run_dir))[-1]['learner_steps'])


@pytest.mark.slow
def test_an_unknown_game_gets_one_line(tmp_path):
  run_dir = tmp_path / 'run'
  result = runs.run('launch.train', '--run_dir', run_dir, '--game', 'pongg')
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
    (['--num_gpus', '0', '--compute_dtype', 'float16'], 'float16 is for GPUs'),
    (['--batch_size', 'many'], 'batch_size must be an integer in'),
    (['--no_such_flag', '1'], "unknown flag '--no_such_flag'"),
    (['--resume'], 'holds no run'),
    (['--frame_size', 100_000], 'frame_size must be an integer in [16, 1024]'),
    (['--learning_rate', 'inf'], 'learning_rate must be a number in (0, 1]'),
    (['--progress_seconds', 'inf'], 'progress_seconds must be a number in'),
    (['--target_return', 'nan'], 'target_return must be a number in'),
    (['--seed', 10**30], 'seed must be an integer in'),
    (['--num_actors', 10**6], 'for each core that may be used'),
    (['--num_fetch_workers', 10**6], 'for each core that may be used'),
    (['--replay_capacity', 10**18], 'GiB of memory would be needed'),
    (['--replay_capacity', 10**20], 'replay_capacity must be an integer in'),
    (['--latent_size', 10**12], 'for weights (latent_size'),
    (['--sequence_length', 10**12], 'for batches (batch_size, sequence_length'),
    (['--envs_per_actor', 10**9], 'for the replay (replay_capacity'),
    (['--conv_channels', ','.join(1000 * '1')], 'are 1000 convolutions, more than'),
    (['--game', '.:x'], "its module '.' cannot be imported"),
    (['--game', 'nowhere:X-v0'], "No module named 'nowhere'"),
    (['--game', 'combat'], 'one player'),
    (['--game', 'ALE/Pong-v99'], 'close matches: ALE/Pong-v5'),
    (['--game', 'tests.misbehaving:BadConstructor-v0'], 'no display found'),
    (['--game', 'tests.misbehaving:BadReset-v0'], 'no map'),
    (['--game', 'tests.misbehaving:BadStep-v0'], 'cannot be played'),
    (['--game', 'tests.misbehaving:Empty-v0'], 'with elements'),
])
def test_bad_input_gets_one_line(tmp_path, capfd, args, message):
  run_dir = tmp_path / 'run'
  line = runs.refusal(capfd, train.main, '--run_dir', run_dir, *args)
  assert message in line and len(line) < 300
  assert not run_dir.exists()


@pytest.mark.parametrize('run_dir, message', [
    ('', 'run_dir must be a text of 1 to 1000 characters'),
    (1001 * 'x', 'run_dir must be a text of 1 to 1000 characters'),
    (500 * 'x', 'nothing can be written to run_dir'),
    ('/dev/null', 'nothing can be written to run_dir'),
    ('/dev/null/run', 'nothing can be written to run_dir'),
    ('/proc/run', 'nothing can be written to run_dir'),
    ('runs/pong[1]', 'run_dir must have no [ and no'),
    ('runs\\pong', 'run_dir must have no [ and no'),
])
def test_a_run_has_to_go_somewhere(capfd, run_dir, message):
  assert message in runs.refusal(capfd, train.main, '--run_dir', run_dir)


def test_what_has_nothing_to_resume_from_is_told(tmp_path, capfd):
  (tmp_path / 'progress.csv').touch()  # As of a run without a learner step.
  assert 'is not empty, and holds no checkpoint to resume from; remove it' in (
      runs.refusal(capfd, train.main, '--run_dir', tmp_path))


@pytest.mark.slow
def test_large_seeds_and_odd_infos_train_behind_a_proxy(tmp_path, monkeypatch):
  for name in ('http_proxy', 'https_proxy', 'grpc_proxy'):
    monkeypatch.setenv(name, 'http://127.0.0.1:9')  # Nobody listens there.
  run_dir = str(tmp_path / 'run')
  result = runs.run('launch.train', '--game', 'tests.misbehaving:OddInfos-v0',
                    '--seed', 2**63 - 1, '--run_dir', run_dir,
                    '--max_timesteps', 3000, *runs.SMALL)
  assert result.returncode == 0, result.stdout + result.stderr
  assert runs.rows(run_dir)[-1]['learner_steps'] > 20


def test_a_port_in_use_gets_one_line(tmp_path, capsys):
  with socket.socket() as taken:
    taken.bind(('', 0))
    taken.listen()
    port = taken.getsockname()[1]
    assert f'replay port {port}' in runs.refusal(
        capsys, train.main, '--run_dir', tmp_path / 'run', '--replay_port', port)


def test_evaluating_nothing_gets_one_line(tmp_path, capsys):
  assert 'holds no run' in runs.refusal(capsys, evaluate.main, '--run_dir', tmp_path)


@pytest.mark.parametrize('there, batch_size, used', [
    (0, 6, 0), (1, 6, 1), (2, 6, 2), (4, 6, 3), (8, 6, 6), (4, 12, 4), (2, 7, 1)])
def test_as_many_gpus_are_used_as_share_batches_evenly(there, batch_size, used,
                                                       monkeypatch, capsys):
  monkeypatch.setattr(train.tf.config, 'list_physical_devices',
                      lambda kind: [kind] * there)
  assert train._num_gpus(None, batch_size, None) == used
  warned = f'{used} of {there} GPUs are used' in capsys.readouterr().err
  assert warned == (used < there)
  assert train._num_gpus(there, batch_size, None) == there
