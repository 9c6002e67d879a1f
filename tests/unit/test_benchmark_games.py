"""Several games against peers: scores, their intervals, and what is run."""

import json
import pathlib
import sys

import numpy as np
import pytest
from scipy import stats

from agents import games as games_lib
from benchmarks import common
from benchmarks import games


@pytest.fixture
def results(tmp_path, monkeypatch):
  monkeypatch.setattr(common, 'RESULTS', tmp_path / 'results')
  return tmp_path / 'results'


def keep(player, game, seed, *means, minutes=15., train_flags=()):
  games.runs.keep(player, game, seed, [
      {'timesteps': 1000. * i, 'walltime_seconds': 60. * i, 'episodes': 100,
       'episode_return_mean_100': mean} for i, mean in enumerate(means)],
       minutes=minutes, memory=1., machine={}, train_flags=train_flags)


@pytest.mark.parametrize('game', games.REFERENCES)
def test_random_play_is_0_and_a_person_1(game):
  random, human = games.REFERENCES[game]
  assert games.normalized(game, random) == 0.
  assert games.normalized(game, human) == 1.
  assert games_lib.atari_rom(game) == game


def test_the_middle_half_is_of_all_runs_and_intervals_of_seeds_within_games():
  scores = {'breakout': [0., 2.], 'boxing': [5., 7.], 'freeway': [1., 1.],
            'asterix': [100., -100.]}
  estimate = games.interquartile_mean(scores)
  # Of eight scores the middle four: 1, 1, 2, 5.
  assert estimate.centre == pytest.approx(2.25)
  # Each game gives one seed or the other twice, or both: every outcome, weighed.
  outcomes, weights = [], []
  choices = [((a, a), (b, b), (a, b), (b, a)) for a, b in scores.values()]
  for index in np.ndindex(*[4] * len(choices)):
    drawn = np.concatenate([choice[i] for choice, i in zip(choices, index)])
    outcomes.append(stats.trim_mean(drawn, 0.25))
    weights.append(1 / 4**len(choices))
  order = np.argsort(outcomes)
  reached = np.cumsum(np.array(weights)[order])
  low, high = (np.array(outcomes)[order][np.searchsorted(reached, q)]
               for q in (0.025, 0.975))
  assert (estimate.low, estimate.high) == pytest.approx((low, high))


def test_report_has_the_last_means_and_no_estimate_where_a_game_is_missing(
    results, capsys):
  for seed in (0, 1):
    keep('ours', 'boxing', seed, 0., 50. + seed)
    keep('ours', 'freeway', seed, 0., 29.6)
  keep('sb3_ppo', 'boxing', 0, *[0.1] * 6)
  games.main(['--report', '--game', 'boxing', 'freeway',
              '--peer', 'ours', 'sb3_ppo'])
  assert capsys.readouterr().out == """\
| boxing | after 5 minutes | after 10 minutes | at the end \
| after 1,000 timesteps | timesteps in all |
| --- | --- | --- | --- | --- | --- |
| ours | - | - | 50.5 | 50.5 | 1,000 |
| sb3_ppo | 0.1 | - | 0.1 | 0.1 | 5,000 |

| freeway | after 5 minutes | after 10 minutes | at the end \
| after 1,000 timesteps | timesteps in all |
| --- | --- | --- | --- | --- | --- |
| ours | - | - | 29.6 | 29.6 | 1,000 |

| game | ours | sb3_ppo |
| --- | --- | --- |
| boxing | 50.5 (2) | 0.1 (1) |
| freeway | 29.6 (2) | - |
| interquartile mean, normalised (seeds: 0, 1) | 2.579 (2.579 to 2.621) | - |
"""


def test_returns_are_of_the_last_row_that_is_not_past():
  rows = [{'timesteps': 100. * i, 'walltime_seconds': 7. + 60. * i,
           'episode_return_mean_100': 10. * i} for i in range(12)]
  assert games.return_after(rows) == 110.
  assert [games.return_after(rows, minutes=m) for m in (0, 4.9, 5, 12)] == [
      0., 40., 50., 110.]
  assert games.return_after(rows, minutes=12.1) is None  # It was over before.
  assert [games.return_after(rows, timesteps=t) for t in (0, 499, 500, 1e9)] == [
      0., 40., 50., 110.]
  # The first row stands for what was before it.
  assert games.return_after(rows[3:], timesteps=50) == 30.


@pytest.mark.parametrize('seeds_of_freeway, row', [
    ([], '-'), ([2], '-'), ([1], '0.500'), ([0, 1], '0.000 (0.000 to 0.500)')])
def test_games_count_alike_whatever_seeds_they_have(
    results, capsys, seeds_of_freeway, row):
  for seed in (0, 1):
    keep('ours', 'boxing', seed, 0., 0.1 + 12. * seed)
  for seed in seeds_of_freeway:
    keep('ours', 'freeway', seed, 0., 0.)
  games.report(['ours'], ['boxing', 'freeway'])
  assert capsys.readouterr().out.splitlines()[-1].endswith(f' | {row} |')


def test_each_run_is_made_once_with_the_peers_command_and_the_games_name(
    results, monkeypatch, tmp_path, capsys):
  for name in ('cleanrl_ppo', 'sb3_ppo'):
    python = tmp_path / name / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\necho \'[{{"name": "{name}", "version": "3.1"}}]\'\n')
    python.chmod(0o755)
  commands = []

  def run(command, run_dir, seconds, until=None):
    assert seconds == 30. and pathlib.Path(run_dir).is_dir()
    commands.append([word.replace(run_dir, 'RUN').replace(str(tmp_path), 'AT')
                     for word in command])
    return [{'timesteps': 9., 'episode_return_mean_100': 1.}], 0.512

  monkeypatch.setattr(games.runs, 'run', run)
  keep('ours', 'ms_pacman', 3, 60., minutes=0.5,
       train_flags=['--batch_size', '6'])  # Not run again.
  flags = ['--environments', str(tmp_path), '--minutes', '0.5',
           '--game', 'ms_pacman', '--seed', '3', '4', '--', '--batch_size', '6']
  games.main(flags)
  games.main(flags)
  scripts = [pathlib.Path(command[1]).name for command in commands]
  assert scripts == ['cleanrl_ppo.py', 'cleanrl_ppo.py', 'sb3_ppo.py', '-m',
                     'cleanrl_ppo.py', 'cleanrl_ppo.py', 'sb3_ppo.py']
  assert commands[0][0] == 'AT/cleanrl_ppo/bin/python'
  assert [command[2:] for command in commands[:3]] == [
      ['RUN/progress.csv', '3', 'ms_pacman', '84'],
      ['RUN/progress.csv', '3', 'ms_pacman', '42'],
      ['RUN/progress.csv', '3', 'ms_pacman']]
  assert commands[3] == [
      sys.executable, '-m', 'launch.train', '--game', 'ms_pacman',
      '--run_dir', 'RUN', '--seed', '4', '--max_timesteps', '1000000000',
      '--batch_size', '6']
  made = json.loads(
      (results / 'ms_pacman/peer_cleanrl_ppo_42/seed4/run.json').read_text())
  assert made['versions'] == {'cleanrl_ppo': '3.1'}
  assert (made['minutes'], made['train_flags'], made['peak_memory_gib']) == (
      0.5, [], 0.51)


@pytest.mark.parametrize('flags, told', [
    ([], 'is of a run of 1 minutes'), (['--minutes', '1'], "'--batch_size 6'"),
    (['--minutes', '1', '--seed', '5'], 'does not say how')])
def test_kept_runs_of_another_kind_are_refused(results, flags, told, capsys):
  keep('ours', 'boxing', 0, 60., minutes=1., train_flags=['--batch_size', '6'])
  keep('ours', 'boxing', 5, 60.)
  (results / 'boxing' / 'peer_ours' / 'seed5' / 'run.json').unlink()
  with pytest.raises(SystemExit) as error:
    games.main(['--peer', 'ours', '--game', 'boxing', '--seed', '0', *flags])
  assert error.value.code == 2
  printed = capsys.readouterr().err
  assert told in printed and printed.count('\n') == 1


@pytest.mark.parametrize('flags, told', [
    ([], 'has no cleanrl_ppo; make it with'),
    (['--game', 'chess'], "'chess'"),
    (['--minutes', '0'], 'must be positive'),
    (['--peer', 'rllib_appo'], "'rllib_appo'"),
])
def test_bad_flags_are_refused_in_one_line(results, flags, told, capsys):
  with pytest.raises(SystemExit) as error:
    games.main(['--environments', 'nowhere', *flags])
  assert error.value.code == 2
  printed = capsys.readouterr().err
  assert told in printed and printed.count('\n') == 1
