"""Evaluations: their intervals, and what becomes of runs meanwhile."""

import json
import shutil

import numpy as np
import pytest

from launch import evaluate
from launch import settings as settings_lib
from programs.nodes import evaluator


def test_intervals_of_many_returns_are_those_of_the_normal_distribution():
  returns = np.random.default_rng(0).exponential(size=1000)
  low, high = evaluate.bootstrap_interval(returns.tolist())
  half = 1.96 * returns.std() / np.sqrt(len(returns))
  assert low == pytest.approx(returns.mean() - half, abs=0.1 * half)
  assert high == pytest.approx(returns.mean() + half, abs=0.1 * half)
  assert evaluate.bootstrap_interval(returns.tolist()) == (low, high)


def test_intervals_of_few_returns():
  assert evaluate.bootstrap_interval([3.]) is None
  assert evaluate.bootstrap_interval([3., 3., 3.]) == (3., 3.)
  # Of two, a quarter of all resamples are the one and a quarter the other.
  assert evaluate.bootstrap_interval([0., 1.]) == (0., 1.)


def test_a_run_that_goes_on_training_may_replace_what_is_evaluated(
    tmp_path, capsys, monkeypatch):
  run_dir = tmp_path / 'run'
  shutil.copytree(settings_lib.pretrained('pong'), run_dir)
  play = evaluator.play_episodes

  def play_while_it_trains(*args):
    shutil.rmtree(run_dir / 'checkpoints', ignore_errors=True)
    return play(*args)

  monkeypatch.setattr(evaluator, 'play_episodes', play_while_it_trains)
  argv = ['--run_dir', str(run_dir), '--episodes', '1', '--max_episode_steps', '5']
  assert evaluate.main([*argv, '--json']) == 0
  result, = json.loads(capsys.readouterr().out)
  assert result['learner_steps'] == 12_837


def test_a_path_is_no_markup_in_a_table(tmp_path, capsys):
  paths = [str(tmp_path / name) for name in (':smile:', ':dog:')]
  for path in paths:
    shutil.copytree(settings_lib.pretrained('pong'), path)
  assert evaluate.main(['--run_dir', *paths, '--episodes', '1',
                        '--max_episode_steps', '1']) == 0
  printed = capsys.readouterr().out
  assert all(path in printed for path in paths)
