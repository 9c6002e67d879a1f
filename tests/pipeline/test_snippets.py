"""The Python of the README and the documents runs as it is written there."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# What snippets presuppose, and what has to be true after them, by a name that
# is only in one of them.
AROUND = {
    'make_learner': ("""
from agents import environments
environment = environments.SingleEnvironment(
    environments.EnvironmentConfig('tests.catch:Catch-v0').make(1, 0))
seed = 2
""", """
# A hundred episodes of seven steps and a reset make 24 trajectories, and each
# learner step takes four new ones.
import time
deadline = time.monotonic() + 60
while learner.num_steps < 6 and time.monotonic() < deadline:
  time.sleep(0.1)
assert learner.num_steps == 6, learner.num_steps
"""),
    'server_info': ("""
import agents, reverb, numpy as np
from agents import environments
from agents.impala_ppo import ImpalaPPOBuilder, ImpalaPPOConfig
from acme import specs
config = ImpalaPPOConfig(frame_stack=4, queue_capacity=4)
environment = environments.EnvironmentConfig('pong').make(2, 0)
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


def snippets():
  for path in [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]:
    for snippet in re.findall(r'^```python\n(.*?)^```', path.read_text(),
                              re.MULTILINE | re.DOTALL):
      yield pytest.param(snippet, id=f'{path.name}: {snippet.splitlines()[0]}')


@pytest.mark.slow
@pytest.mark.parametrize('snippet', list(snippets()))
def test_snippet(snippet):
  around = [parts for name, parts in AROUND.items() if name in snippet]
  before, after = around[0] if around else ('', '')
  # A port that another run may have.
  snippet = snippet.replace("'localhost:9000'", "f'localhost:{server.port}'")
  # The process ends without the threads that serve and learn.
  code = '\n'.join([before, snippet, after, 'import os; os._exit(0)'])
  ended = subprocess.run([sys.executable, '-c', code], cwd=ROOT, timeout=240,
                         capture_output=True, text=True)
  assert ended.returncode == 0, ended.stderr
