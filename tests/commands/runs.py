"""Training runs as a person starts and stops them, for the tests."""

import csv
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from agents.impala_ppo import builder as builder_lib
from launch import policies
from launch import settings as settings_lib
from programs.runtime import records
from tests import processes

ROOT = pathlib.Path(__file__).parents[2]
_launched: list[subprocess.Popen] = []
SMALL = ['--num_actors', '1', '--envs_per_actor', '8', '--batch_size', '12',
         '--sequence_length', '8', '--latent_size', '32',
         '--evaluation_interval', '0', '--progress_seconds', '1']


def command(module, *args):
  return [sys.executable, '-m', module, *map(str, args)]


def run(module, *args, timeout=240):
  return subprocess.run(command(module, *args), cwd=ROOT, timeout=timeout,
                        capture_output=True, text=True)


def rows(run_dir):
  return records.read(os.path.join(run_dir, records.PROGRESS_FILE))


def learner_steps(run_dir):
  """Returns how many the last row tells of."""
  return ([0.] + [row['learner_steps'] for row in rows(run_dir)])[-1]


def refusal(capsys, main, *args):
  """Returns the one line in which a command refuses its arguments.

  Without a process of its own, which would import for seconds.
  """
  with pytest.raises(SystemExit) as ended:
    main([*map(str, args)])
  assert ended.value.code == 2
  line, = capsys.readouterr().err.strip().splitlines()
  return line


def restarts(run_dir):
  """Returns which nodes were restarted, in order, and how they had ended."""
  path = os.path.join(run_dir, records.RESTARTS_FILE)
  if not os.path.exists(path):
    return []
  with open(path, newline='') as f:
    return [(row['node'], row['how']) for row in csv.DictReader(f)]


def log(run_dir, node):
  """Returns what a node has printed so far."""
  path = os.path.join(run_dir, 'logs', node.replace('/', '_') + '.log')
  if not os.path.exists(path):
    return ''
  with open(path) as f:
    return f.read()


def launch(*args):
  """Starts training in a process group of its own."""
  process = subprocess.Popen(command('launch.train', *args), cwd=ROOT,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             start_new_session=True)
  _launched.append(process)
  return process


def end_launched():
  """Kills the launchers that failed tests have left; nodes end soon after them."""
  while _launched:
    process = _launched.pop()
    if process.poll() is None:
      process.kill()
      process.wait()


def start(*args):
  """Starts training; returns the process once the learner has learned."""
  run_dir = args[args.index('--run_dir') + 1]
  steps = learner_steps(run_dir)
  process = launch(*args)
  wait_until_learned(process, run_dir, steps + 20)
  return process


def wait_until_learned(process, run_dir, steps):
  """Waits for more learner steps than so many; or else terminates the process."""
  def has_learned():
    if process.poll() is not None:
      raise AssertionError(process.communicate()[0].decode())
    return learner_steps(run_dir) > steps

  try:
    processes.wait_for(has_learned, 'learner steps', seconds=180.)
  except AssertionError:
    process.terminate()
    raise


def stop(process, how, stuck=()):
  """Stops training as told; returns its exit code and what survived it.

  All nodes have to end by themselves, but for those that are stuck and are killed.
  """
  family = psutil.Process(process.pid).children(recursive=True)
  assert len(family) >= 4  # Each node is a process.
  began = time.monotonic()
  how(process)
  try:
    printed = process.communicate(timeout=20)[0].decode()
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    raise
  killed = re.findall(r'node (\S+) did not end in time', printed)
  assert killed == list(stuck), printed
  left = max(0., 15. - (time.monotonic() - began))
  _, alive = psutil.wait_procs(family, timeout=left)
  return process.returncode, alive


def interrupt(process):
  """Ctrl-C in a terminal signals the whole foreground process group."""
  os.killpg(process.pid, signal.SIGINT)


def terminate(process):
  process.terminate()


def write_policy(path, *flags, make_builder=builder_lib.ImpalaPPOBuilder):
  """Writes what a run leaves whose weights are random; returns its directory."""
  settings = settings_lib.from_train_flags([
      *flags, '--run_dir', str(path), '--latent_size', '16'])
  settings_lib.save(settings)
  spec = settings.environment.try_out(0)
  networks = make_builder(settings.agent).make_networks(spec)
  networks.create_variables()
  random = np.random.default_rng(1)
  for variable in networks.actor_critic.variables:
    low = 0.5 if 'variance' in variable.name else -0.3
    variable.assign(random.uniform(low, abs(low) + 0.01, variable.shape))
  policies.save_weights(networks.actor_critic, 7, str(path))
  return str(path)
