"""What the README and the documents say to type does what they say."""

import argparse
import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from launch import main
from launch import plans
from launch import settings as settings_lib
from tests.commands import runs

ROOT = pathlib.Path(__file__).parents[2]
# What snippets presuppose, and what has to be true after them, by a name that
# is only in one of them.
AROUND = {
    'run(num_episodes=100)': ("""
from agents import environments
from agents import games
environment = environments.SingleEnvironment(
    games.EnvironmentConfig('tests.catch:Catch-v0').make(1, 0))
seed = 2
""", """
# A hundred episodes of seven steps and a reset make 24 trajectories, and each
# learner step takes two new ones.
import time
deadline = time.monotonic() + 60
while learner.num_steps < 12 and time.monotonic() < deadline:
  time.sleep(0.1)
assert learner.num_steps == 12, learner.num_steps
"""),
    'class Guess': ('', """
assert np.mean(returns[:20]) < 5.5 and np.mean(returns[-20:]) > 6.5, returns
"""),
    'class Walk': ('', """
from agents import environments
from agents import games
spec = games.EnvironmentConfig(
    'mygame:Walk-v0', env_arg=('length=9',)).try_out(0)
assert spec.observations.shape == (1,)
spec = games.EnvironmentConfig(
    'pong', env_wrapper='mygame:cropped', env_arg=('frameskip=2',)).try_out(0)
assert spec.observations.shape == (40, 40, 3)
"""),
    'class ResidualEncoder': ('', """
logits, values = networks.actor_critic(tf.ones([5, 4]))
assert logits.shape == [5, 2] and values.shape == [5]
latent = networks.actor_critic.encoder(tf.ones([5, 4]))
assert networks.decoder(latent).shape == [5, 4]
assert any('residual' in v.name for v in networks.trainable_variables)
"""),
    'logit_loss': ('', """
from tests.unit import test_losses
import numpy as np
config = ImpalaPPOConfig()
outputs, batch = test_losses.random_outputs_and_batch(config)
plain = losses.impala_ppo_loss(outputs, batch, config, tf.reduce_sum)
more = loss_with_small_logits(outputs, batch, config, tf.reduce_sum)
square = np.mean(np.square(outputs.logits))
np.testing.assert_allclose(more.loss - plain.loss, 0.01 * square, rtol=1e-4)
np.testing.assert_allclose(more.metrics['logit_loss'], square, rtol=1e-5)
assert builder._loss is loss_with_small_logits
"""),
    "'runs/mine'": ('', """
from programs.runtime import records
rows = records.read('runs/mine/progress.csv')
assert rows[-1]['timesteps'] >= 5000 and rows[-1]['learner_steps'] > 50
import launch, numpy as np
assert launch.load_policy('runs/mine')(np.zeros(4)) in (0, 1)
"""),
    'curves.aggregate': ('', """
assert curve.num_runs == 3 and curve.low[-1] < curve.centre[-1] < curve.high[-1]
"""),
    'launch.load_policy': ('', """
assert timestep.observation.shape == (4, 42, 42, 4)
"""),
    'server_info': ("""
import agents, reverb, numpy as np
from agents import environments
from agents import games
from agents.impala_ppo import ImpalaPPOBuilder, ImpalaPPOConfig
from acme import specs
config = ImpalaPPOConfig(frame_stack=4, queue_capacity=4)
environment = games.EnvironmentConfig('pong').make(2, 0)
builder = ImpalaPPOBuilder(config)
server = reverb.Server(
    builder.make_replay_tables(specs.make_environment_spec(environment)))
adder = builder.make_adder(reverb.Client(f'localhost:{server.port}'))
adder.add_first(environment.reset())
extras = {'behaviour_logits': np.zeros((2, 6)), 'policy_version': 0}
action = np.zeros(2, np.int32)
for _ in range(40):
  adder.add(action, environment.step(action), extras)
""", """
info = client.server_info()
assert sorted(info) == ['queue', 'replay']
steps = next(iter(client.sample('replay', 1)))
assert len(steps) == 36
"""),
}


# Runs the snippets of a document, each in a namespace of its own.
RUN = """
import agents, json, os, sys, traceback
for name, code in json.load(open(sys.argv[1])):
  print('===', name, flush=True)
  exec(compile(code, name, 'exec'), {'__name__': '__main__'})
os._exit(0)  # Without the threads that serve and learn.
"""


def documents():
  return [ROOT / name for name in ('README.md', 'CONTRIBUTING.md')] + sorted(
      (ROOT / 'docs').glob('*.md'))


def blocks(path, language):
  return re.findall(rf'^```{language}\n(.*?)^```', path.read_text(),
                    re.MULTILINE | re.DOTALL)


def with_python():
  return [path for path in documents() if blocks(path, 'python')]


@pytest.fixture
def folder(tmp_path):
  """Has what snippets find where they are run: a run, and the kept results."""
  runs.write_policy(tmp_path / 'runs' / 'pong', '--game', 'pong')
  os.symlink(ROOT / 'benchmarks', tmp_path / 'benchmarks')
  return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize('path', with_python(), ids=lambda path: path.name)
def test_snippets_run_as_they_are_written(path, folder):
  codes = []
  for snippet in blocks(path, 'python'):
    around = [parts for name, parts in AROUND.items() if name in snippet]
    before, after = around[0] if around else ('', '')
    # A port that another run may have.
    snippet = snippet.replace("'localhost:9000'", "f'localhost:{server.port}'")
    codes.append((snippet.splitlines()[0], '\n'.join([before, snippet, after])))
    if path.name == 'extending.md' and 'class Walk' in snippet:
      (folder / 'mygame.py').write_text(snippet)
  (folder / 'snippets.json').write_text(json.dumps(codes))
  ended = subprocess.run(
      [sys.executable, '-c', RUN, 'snippets.json'], cwd=folder, timeout=280,
      capture_output=True, text=True,
      env={**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{folder}'})
  assert ended.returncode == 0, ended.stdout + ended.stderr


def commands():
  for path in documents():
    if path.name == 'notebook.md':
      continue  # What was typed then.
    for block in blocks(path, 'sh'):
      for name, value in re.findall(r'^(\w+)="(.*)"$', block, re.MULTILINE):
        block = block.replace(f'${name}', value)
      for line in block.replace('\\\n', ' ').splitlines():
        line = line.partition(' |')[0].partition(' > ')[0]
        if not re.match(r'(python -m|impala-ppo) ', line):
          continue
        words = shlex.split(line, comments=True)
        if words[:2] == ['python', '-m']:
          yield pytest.param(words[2], words[3:], id=f'{path.name}: {line.strip()}')
        elif words[:1] == ['impala-ppo'] and not words[1].startswith('-'):
          yield pytest.param(f'launch.{words[1]}', words[2:],
                             id=f'{path.name}: {line.strip()}')


class Parsed(Exception):
  """Raised in place of what a benchmark would do next."""


@pytest.mark.parametrize('module, argv', list(commands()))
def test_commands_of_documents_have_flags_that_there_are(module, argv, monkeypatch):
  package, _, name = module.partition('.')
  if package != 'launch':
    parse_args = argparse.ArgumentParser.parse_args

    def parse_only(*args, **kwargs):
      raise Parsed(parse_args(*args, **kwargs))

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_only)
    monkeypatch.setattr(sys, 'argv', [module, *argv])
    command = importlib.import_module(module)
    if hasattr(command, '__path__'):
      command = importlib.import_module(f'{module}.__main__')
    with pytest.raises(Parsed) as parsed:
      command.main()
    flags, = parsed.value.args
    settings_lib.parse_train(getattr(flags, 'train_flags', []))
    return
  command = importlib.import_module(module)
  parse = {'train': settings_lib.parse_train,
           'sweep': plans.parse}.get(name) or command.parse
  try:
    parse(argv)
  except SystemExit as ended:
    assert not ended.code
  except ValueError as e:
    # Of the settings of a run that only the reader has.
    assert 'holds no run' in str(e) or 'no module' in str(e).lower(), e


def test_every_command_is_in_the_documents():
  told = {param.values[0] for param in commands()}
  assert {f'launch.{name}' for name in main.commands()} <= told
