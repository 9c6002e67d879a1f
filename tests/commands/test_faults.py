"""Any process may die, hang or lose its terminal: what a run makes of it."""

import signal
import subprocess
import time

import psutil
import pytest

from programs.runtime import checkpoints
from programs.runtime import processes as node_processes
from tests import processes
from tests.commands import runs

CARTPOLE = ['--game', 'tests.unhurried:SlowCartPole-v0', *runs.SMALL,
            '--checkpoint_minutes', '0.02']


def wait_for(condition, seconds=120.):
  processes.wait_for(condition, 'what a test waits for', seconds)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_every_node_that_is_killed_is_restarted_in_the_same_run(tmp_path):
  run_dir = str(tmp_path / 'run')
  process = runs.start('--run_dir', run_dir, *CARTPOLE,
                       '--evaluation_interval', '1000')
  launcher = psutil.Process(process.pid)
  killed = ['actor/0', 'evaluator/0', 'counter/0', 'replay/0', 'learner/0']
  for number, name in enumerate(killed):
    before = node_processes.find_node(launcher, name)
    others = {p.pid for p in launcher.children()} - {before.pid}
    before.kill()
    wait_for(lambda: before != (  # noqa: B023
        node_processes.find_node(launcher, name) or before))  # noqa: B023
    steps = runs.learner_steps(run_dir)
    wait_for(lambda: len(runs.restarts(run_dir)) == number + 1)  # noqa: B023
    # It learns on, and nobody else was disturbed.
    wait_for(lambda: 'back after' in runs.log(run_dir, name))  # noqa: B023
    wait_for(lambda: runs.learner_steps(run_dir) != steps)  # noqa: B023
    assert others <= {p.pid for p in launcher.children()}
  assert [node for node, _ in runs.restarts(run_dir)] == killed
  wait_for(lambda: runs.rows(run_dir)[-1]['restarts'] == len(killed))
  assert runs.stop(process, runs.terminate) == (0, [])
  rows = runs.rows(run_dir)
  # The counter was away, but what had been counted was not lost.
  assert rows[-1]['timesteps'] >= max(row['timesteps'] for row in rows)
  path = checkpoints.latest(run_dir)
  assert checkpoints.learner_steps(path) == rows[-1]['learner_steps']


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_without_restarts_the_first_death_ends_the_run_with_a_checkpoint(tmp_path):
  run_dir = str(tmp_path / 'run')
  process = runs.start('--run_dir', run_dir, *CARTPOLE, '--no_restart',
                       '--checkpoint_minutes', '60')
  launcher = psutil.Process(process.pid)
  family = launcher.children()
  node_processes.find_node(launcher, 'counter/0').kill()
  output = process.communicate(timeout=30)[0].decode()
  assert process.returncode == 1
  last = output.strip().splitlines()[-1]
  assert 'node counter/0 was killed by signal 9' in last
  assert 'counter_0.log' in last
  assert psutil.wait_procs(family, timeout=5)[1] == []
  # Without the counter, too, the last step is saved.
  assert checkpoints.learner_steps(checkpoints.latest(run_dir)) > 20


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGHUP])
def test_nothing_outlives_the_launcher(tmp_path, number):
  run_dir = str(tmp_path / 'run')
  process = runs.start('--run_dir', run_dir, *CARTPOLE)
  family = psutil.Process(process.pid).children()
  process.send_signal(number)
  wait_for(lambda: not any(map(node_processes.lives, family)), 12.)
  process.communicate(timeout=5)
  if number == signal.SIGHUP:  # As when a terminal is closed.
    assert process.returncode == 0
  assert (checkpoints.learner_steps(checkpoints.latest(run_dir)) >=
          runs.rows(run_dir)[-1]['learner_steps'])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_environment_that_fails_again_and_again_ends_the_run(tmp_path):
  result = runs.run('launch.train', '--run_dir', tmp_path / 'run', *CARTPOLE,
                    '--game', 'tests.misbehaving:Raises-v0')
  assert result.returncode == 1
  assert [node for node, _ in runs.restarts(tmp_path / 'run')] == 2 * ['actor/0']
  last = result.stderr.strip().splitlines()[-1]
  assert 'node actor/0' in last and '3 times within 60 seconds' in last
  assert last.endswith('RuntimeError: the simulator lost its licence')
  assert checkpoints.latest(str(tmp_path / 'run')) is not None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_actor_whose_environment_hangs_is_restarted(tmp_path):
  run_dir = str(tmp_path / 'run')
  process = runs.launch('--run_dir', run_dir, *CARTPOLE, '--step_timeout', '2',
                        '--game', 'tests.misbehaving:Hangs-v0')
  wait_for(lambda: [node for node, _ in runs.restarts(run_dir)] == ['actor/0'])
  process.terminate()
  output = process.communicate(timeout=20)[0].decode()
  assert 'in one step for 2 s' in output
  assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_environment_that_hangs_does_not_outlive_the_launcher(tmp_path):
  run_dir = str(tmp_path / 'run')
  process = runs.launch('--run_dir', run_dir, *CARTPOLE,
                        '--game', 'tests.misbehaving:Hangs-v0')
  launcher = psutil.Process(process.pid)
  wait_for(lambda: 'the simulator hangs' in runs.log(run_dir, 'actor/0'))
  actor = node_processes.find_node(launcher, 'actor/0')
  process.kill()
  process.communicate()
  wait_for(lambda: not node_processes.lives(actor), 20.)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_training_goes_on_when_nobody_reads_what_it_prints(tmp_path):
  run_dir = str(tmp_path / 'run')
  process = subprocess.Popen(
      runs.command('launch.train', '--run_dir', run_dir, *CARTPOLE),
      cwd=runs.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  process.stdout.readline()
  process.stdout.close()  # As `| head -1` does.
  wait_for(lambda: runs.learner_steps(run_dir) > 20)
  assert 'weights' in runs.log(run_dir, 'actor/0')
  process.terminate()
  assert process.wait(timeout=20) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_or_run_that_stood_still_goes_on_or_ends(tmp_path):
  run_dir = str(tmp_path / 'run')
  process = runs.start('--run_dir', run_dir, *CARTPOLE, '--step_timeout', '3')
  launcher = psutil.Process(process.pid)
  nodes = [node_processes.find_node(launcher, name) for name in (
      'replay/0', 'counter/0', 'learner/0', 'actor/0')]
  for node in nodes:
    node.suspend()
    time.sleep(4)  # Longer than a step may take.
    steps = runs.learner_steps(run_dir)
    node.resume()
    wait_for(lambda: runs.learner_steps(run_dir) > steps)  # noqa: B023

  def pause():
    process.send_signal(signal.SIGTSTP)  # Ctrl-Z
    wait_for(lambda: all(p.status() == psutil.STATUS_STOPPED
                         for p in (launcher, *nodes)))

  pause()
  used = sum(sum(p.cpu_times()[:2]) for p in nodes)
  time.sleep(4)
  assert sum(sum(p.cpu_times()[:2]) for p in nodes) == used
  steps = runs.learner_steps(run_dir)
  process.send_signal(signal.SIGCONT)
  wait_for(lambda: runs.learner_steps(run_dir) > steps)
  assert runs.restarts(run_dir) == []
  pause()
  process.kill()
  process.communicate()
  wait_for(lambda: not any(map(node_processes.lives, nodes)), 20.)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_messages_reach_a_redirected_log_at_once_and_plain(tmp_path):
  run_dir = tmp_path / 'run'
  with open(tmp_path / 'out', 'w') as out:
    process = subprocess.Popen(
        runs.command('launch.train', '--run_dir', run_dir, *CARTPOLE),
        cwd=runs.ROOT, stdout=out, stderr=subprocess.STDOUT)
    wait_for(lambda: runs.rows(run_dir))
    row = f'{runs.rows(run_dir)[0]["timesteps"]:,.0f} timesteps'
    wait_for(lambda: row in (tmp_path / 'out').read_text(), 20.)
    process.terminate()
    assert process.wait(timeout=20) == 0
  assert '\x1b' not in (tmp_path / 'out').read_text()
