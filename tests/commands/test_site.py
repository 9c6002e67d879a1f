"""The documents as a site."""

import re
import subprocess
import sys

import pytest

from tests.commands import runs


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
  built = subprocess.run(
      [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', tmp_path],
      cwd=runs.ROOT, capture_output=True, text=True, timeout=240)
  assert built.returncode == 0, built.stderr
  start = (tmp_path / 'index.html').read_text()
  assert 'PPO-IMPALA' in start and 'href="extending/"' in start
  api = (tmp_path / 'api' / 'index.html').read_text()
  # From docstrings: names, arguments and what they mean.
  assert 'agents.impala_ppo.builder.ImpalaPPOBuilder.make_learner' in api
  assert re.search(r'sample.{0,40}in.{0,300}evaluation', api, re.DOTALL)
  results = (tmp_path / 'results' / 'index.html').read_text()
  picture, = re.findall(r'src="\.\./(pictures/pong\.png)"', results)
  assert (tmp_path / picture).read_bytes().startswith(b'\x89PNG')
