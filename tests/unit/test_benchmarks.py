"""What the benchmarks share, and the table of a game's results."""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import signal
import subprocess
import sys

import pytest
from scipy import stats

from benchmarks import common
from benchmarks import estimate
from benchmarks import sweep
from benchmarks import throughput
from benchmarks import watching
from launch import settings as settings_lib
from programs.runtime import records


def rows_of(means, episodes=100, seconds=60.):
  return [{'timesteps': 1000. * (i + 1), 'walltime_seconds': seconds * (i + 1),
           'episodes': episodes, 'episode_return_mean_100': mean}
          for i, mean in enumerate(means)]


@pytest.mark.parametrize('episodes, mean, solved', [
    (100, 18., True), (100, 17.99, False), (99, 21., False), (250, 18.01, True),
    (100, float('nan'), False)])
def test_solved_takes_a_hundred_episodes_of_a_mean_of_18(episodes, mean, solved):
  row, = rows_of([mean], episodes)
  assert common.solved_row([row], 'pong') == (row if solved else None)


def test_solved_is_the_first_row_that_is_good_enough():
  rows = rows_of([-20., 18.5, 17., 19.])
  assert common.solved_row(rows, 'pong') is rows[1]
  assert common.solved_row(rows, 'breakout') is None  # It has no such mark.


@pytest.mark.parametrize('number', [
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_benchmark_that_is_told_to_end_does_so_without_a_traceback(number):
  code = ('import time\nfrom benchmarks import common\n'
          'def main():\n'
          '  try:\n    print("begins", flush=True)\n'
          # A signal just before a sleep is only seen after it.
          '    while True:\n      time.sleep(0.1)\n'
          '  finally:\n    print("tidies up")\n'
          'common.run(main)')
  process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)
  assert process.stdout.readline() == 'begins\n'
  process.send_signal(number)
  assert process.communicate(timeout=30) == ('tidies up\n', '')
  assert process.returncode == 130


def test_a_benchmark_ends_quietly_if_nobody_reads_its_table_any_more():
  code = ('from benchmarks import common\n'
          'def main():\n  input()\n  common.print_row(["a", "b"])\n'
          'common.run(main)')
  process = subprocess.Popen(
      [sys.executable, '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, text=True)
  process.stdout.close()
  process.stdin.write('\n')
  process.stdin.close()
  assert process.stderr.read() == ''
  assert process.wait(timeout=30) == 128 + signal.SIGPIPE


@pytest.mark.parametrize('code', [None, 0, 3])
def test_a_benchmark_ends_with_the_code_of_its_main(code, monkeypatch):
  monkeypatch.setattr(signal, 'signal', lambda *_: None)
  with pytest.raises(SystemExit) as ended:
    common.run(lambda: code)
  assert ended.value.code == code


@pytest.mark.parametrize('num_rows', [1, 2, 299, 300, 301, 599, 600, 5000])
def test_thinned_rows_are_spread_evenly_up_to_the_last(num_rows):
  rows = rows_of(range(num_rows))
  thinned = common.thin(rows)
  assert min(num_rows, 150) <= len(thinned) <= 300
  assert thinned[0] is rows[0] and thinned[-1] is rows[-1]
  steps = {b['timesteps'] - a['timesteps']
           for a, b in zip(thinned[:-1], thinned[1:-1])}
  assert len(steps) <= 1
  if num_rows <= 300:
    assert thinned == rows
  for always in rows[-2:]:
    also = common.thin(rows, always)
    assert [row for row in also if row is not always] == [
        row for row in thinned if row is not always]
    assert any(row is always for row in also)


@pytest.fixture
def results(tmp_path, monkeypatch):
  monkeypatch.setattr(common, 'RESULTS', tmp_path)
  return tmp_path


def test_the_row_that_solves_a_game_is_kept(results):
  means = [-20.] * 1000
  means[-2] = 18.1
  rows = [{**row, 'episodes': 100.} for row in rows_of(means)]
  common.keep_rows('pong', 'full', 1, rows)
  kept = records.read(str(results / 'pong/full/seed1/progress.csv'))
  assert common.solved_row(kept, 'pong') == rows[-2]


def test_kept_rows_are_read_back(results):
  rows = [{'timesteps': 3_000_943., 'loss': 7.6599e-05, 'policy_lag': 2.6875},
          {'timesteps': 3_001_000., 'loss': -0.0142122, 'policy_lag': 3.}]
  assert common.keep_rows('boxing', 'full', 1, rows) == results / 'boxing/full/seed1'
  path = results / 'boxing' / 'full' / 'seed1' / 'progress.csv'
  assert records.read(str(path)) == rows
  assert path.read_text() == ('timesteps,loss,policy_lag\n'
                              '3000943,7.6599e-05,2.6875\n'
                              '3001000,-0.0142122,3\n')


def test_spread_is_the_median_quartiles_and_ends(capsys):
  common.print_spread('rate', {'here': [5., 1., 2., 4., 3.]}, '.1f')
  assert capsys.readouterr().out == (
      '| rate | median of 5 | a quarter below | a quarter above | from | to |\n'
      '| --- | --- | --- | --- | --- | --- |\n'
      '| here | 3.0 | 2.0 | 4.0 | 1.0 | 5.0 |\n')


def test_report_tells_what_each_part_adds(results, capsys):
  for (variant, parts), seed in itertools.product(sweep._PARTS.items(), (0, 1)):
    early = 4. * ('replay' in parts)
    late = 10. * ('replay' in parts) + 2. * ({'replay', 'ppo'} <= parts)
    rows = rows_of([early, late + 0.5 * seed, 99.])
    for row, timesteps in zip(rows, (200_000, 300_000, 300_001)):
      row['timesteps'] = timesteps
    if (variant, seed) == ('impala_alone', 1):
      rows = rows[:1]  # It was stopped early.
    common.keep_rows('boxing', variant, seed, rows)
  assert sweep.main(['--game', 'boxing', '--report']) == 0
  half = stats.t.ppf(0.975, 4) * 0.25
  assert f"""
| part | beside | adds at 200,000 | adds at 300,000 |
| --- | --- | --- | --- |
| replay | any | 4.0 (4.0 to 4.0) | - |
| ppo | any | 0.0 (0.0 to 0.0) | - |
| ppo | replay | 0.0 (0.0 to 0.0) | 2.0 ({2 - half:.1f} to {2 + half:.1f}) |
| autoencoder | any | 0.0 (0.0 to 0.0) | - |
| autoencoder | replay | 0.0 (0.0 to 0.0) | 0.0 ({-half:.1f} to {half:.1f}) |
""" in capsys.readouterr().out


@pytest.mark.parametrize('text', ['0', '-1', 'nan', 'inf', 'many'])
def test_what_is_not_positive_is_refused_in_one_line(text, capsys):
  parser = common.Parser('scale', None)
  parser.add_argument('--seconds', type=common.positive(float))
  assert parser.parse_args(['--seconds', '0.5']) == argparse.Namespace(seconds=0.5)
  with pytest.raises(SystemExit) as error:
    parser.parse_args(['--seconds', text])
  assert error.value.code == 2
  printed = capsys.readouterr().err
  assert printed.startswith('scale: error: argument --seconds: ')
  assert text in printed and printed.count('\n') == 1


def test_report_tells_of_all_runs_of_a_game(results, capsys):
  pytest.importorskip('matplotlib')
  for variant, seed, means in (
      ('peer_cleanrl_ppo', 0, [-21., -20.44]), ('impala', 0, [-20., 17.99]),
      ('full', 10, [-20., 0., 18., 18.5]), ('full', 2, [18.])):
    common.keep_rows('pong', variant, seed, rows_of(means))
  common.keep_rows('boxing', 'full', 0, rows_of([50.]))
  assert sweep.main(['--report']) == 0
  table, _, curves = capsys.readouterr().out.partition('\ncurves: ')
  assert table == """\
| variant | seed | solved at (timesteps) | minutes | timesteps run | last mean return |
| --- | --- | --- | --- | --- | --- |
| full | 2 | 1,000 | 1.0 | 1,000 | 18.0 |
| full | 10 | 3,000 | 3.0 | 4,000 | 18.5 |
| impala | 0 | - | - | 2,000 | 18.0 |
| peer_cleanrl_ppo | 0 | - | - | 2,000 | -20.4 |

| variant | runs | solved | median (timesteps) | return at 300,000 | 95% interval |
| --- | --- | --- | --- | --- | --- |
| full | 2 | 2 | 2,000 | 18.2 | 15.1 to 21.4 |
| impala | 1 | 0 | - | - | - |
| peer_cleanrl_ppo | 1 | 0 | - | - | - |
"""  # noqa: E501
  assert curves.strip() == str(results / 'pong.png')
  assert (results / 'pong.png').read_bytes().startswith(b'\x89PNG')


def test_return_at_is_the_last_of_a_run_that_was_solved_sooner():
  rows = rows_of([-20., -10., 5., 17.])
  assert sweep.return_at(rows, 'pong', 2_500) == 5.
  assert sweep.return_at(rows, 'pong', 4_000) == 17.
  assert sweep.return_at(rows, 'pong', 4_001) is None
  assert sweep.return_at(rows_of([-20., 19.]), 'pong', 4_001) == 19.


def test_interval_of_a_mean_is_students():
  # 12.706 and 4.303 are of 1 and 2 degrees of freedom in any table.
  assert sweep.mean_interval([0., 2.]) == pytest.approx(
      (1 - 12.706, 1 + 12.706), abs=1e-3)
  assert sweep.mean_interval([1., 2., 3.]) == pytest.approx(
      (2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
  assert sweep.mean_interval([1.]) is None


@pytest.mark.parametrize('flags, told', [
    (['--report', '--game', 'boxing'], 'no results of boxing'),
    (['--variant', 'full', 'fall'], "'fall'"),
])
def test_sweep_refuses_what_it_does_not_know(results, flags, told, capsys):
  with pytest.raises(SystemExit) as error:
    sweep.main(flags)
  assert error.value.code == 2
  printed = capsys.readouterr().err
  assert told in printed and printed.count('\n') == 1


TRAINING = f"""#!{sys.executable}
import json, pathlib, sys
flags = dict(zip(sys.argv[3::2], sys.argv[4::2]))
run_dir = pathlib.Path(flags['--run_dir'])
run_dir.mkdir(parents=True)
(run_dir / 'config.json').write_text(json.dumps({{'run': flags}}))
last = 999 if flags['--seed'] == '5' else int(flags['--max_timesteps'])
(run_dir / 'progress.csv').write_text(
    'timesteps,episodes,episode_return_mean_100\\n' +
    ''.join(f'{{i}},0,0\\n' for i in [*range(999), last]))
sys.exit(flags['--seed'] == '3')
"""


def test_sweep_trains_one_after_the_other_and_keeps_what_ended_well(
    results, tmp_path, monkeypatch):
  training = tmp_path / 'training'
  training.write_text(TRAINING)
  training.chmod(0o755)
  monkeypatch.setattr(sys, 'executable', str(training))
  assert sweep.main(['--variant', 'full', 'without_ppo', '--seeds', '0', '1',
                     '--max_timesteps', '9']) == 0
  assert sweep.main(['--game', 'boxing', '--variant', 'new', '--seed', '2', '3',
                     '4', '--', '--batch_size', '6']) == 1
  kept = {str(path.parent.relative_to(results)): json.loads(path.read_text())
          for path in results.glob('*/*/*/config.json')}
  assert set(kept) == {'pong/full/seed0', 'pong/full/seed1',
                       'pong/without_ppo/seed0',
                       'pong/without_ppo/seed1', 'boxing/new/seed2'}
  flags = kept['pong/without_ppo/seed1']['run']
  assert flags == {'--game': 'pong', '--seed': '1', '--run_dir': flags['--run_dir'],
                   'run_dir': 'seed1', '--loss': 'vtrace', '--max_timesteps': '9',
                   '--target_return': '18.0'}
  flags = kept['boxing/new/seed2']['run']
  assert flags['--batch_size'] == '6' and '--target_return' not in flags
  rows = records.read(str(results / 'boxing' / 'new' / 'seed2' / 'progress.csv'))
  assert len(rows) == 251 and rows[-1]['timesteps'] == 3_000_000
  with pytest.raises(KeyboardInterrupt):  # Somebody told the run to stop.
    sweep.main(['--game', 'boxing', '--variant', 'full', '--seed', '5', '6'])
  assert not (results / 'boxing' / 'full').exists()


@pytest.mark.parametrize(
    'path', sorted(common.RESULTS.glob('*/*/seed*/config.json')),
    ids=lambda path: '/'.join(path.parts[-4:-1]))
def test_committed_results_are_of_their_variants_flags(path):
  settings = settings_lib.from_train_flags(sweep.VARIANTS[path.parts[-3]])
  agent = json.loads(json.dumps(dataclasses.asdict(settings.agent)))
  config = json.loads(path.read_text())
  committed = config['agent']
  assert {name: agent[name] for name in committed} == committed
  # As many learn otherwise.
  assert config['run']['envs_per_actor'] == settings.run.envs_per_actor


class Program:
  """Stands in for `throughput.Whole`, at the rates of each that is started."""

  def __init__(self, started, rates, train_flags=(), checkout=common.CHECKOUT,
               stdout=None):
    self._rates = iter(rates[len(started)])
    started.append((list(train_flags), checkout))

  def measure(self, seconds):
    assert seconds == 2.
    return {'timesteps_per_second': next(self._rates)}

  def close(self):
    pass


@pytest.fixture
def started(monkeypatch):
  started = []
  rates = [[300., 100., 440.], [100., 100., 220.]]
  monkeypatch.setattr(throughput, 'Whole',
                      functools.partial(Program, started, rates))
  return started


def test_compare_pairs_what_it_measures_in_a_round(started, tmp_path, capsys):
  out = tmp_path / 'figures.json'
  throughput.main(['--compare', '--rounds', '3', '--seconds', '2', '--json',
                   str(out), '--', '--batch_size', '6'])
  assert started == [([], common.CHECKOUT),
                     (['--batch_size', '6'], common.CHECKOUT)]
  assert json.loads(out.read_text())['ratio'] == 2.  # And not 300 / 100.
  assert '| here | 300 | 200 | 370 | 100 | 440 |\n' in capsys.readouterr().out


def test_each_comes_first_as_often_as_the_others():
  called = []

  def measure(name):
    called.append(name)
    return len(called)

  rounds = common.take_turns(
      {name: functools.partial(measure, name) for name in 'ab'}, 3)
  assert called == ['a', 'b', 'b', 'a', 'a', 'b']
  assert rounds == [{'a': 1, 'b': 2}, {'a': 4, 'b': 3}, {'a': 5, 'b': 6}]


def test_what_watching_costs_is_a_difference_of_shares(started, monkeypatch,
                                                       tmp_path, capsys):
  # By when it is asked: before and after each of a run's rounds.
  shares = iter([(10., 5., 100.), (12., 6., 197.),  # Watched: 2% and 1%.
                 (9., 9., 9.), (9., 9.5, 108.5)])  # The least: 0 and 0.5%.
  monkeypatch.setattr(Program, 'core_seconds', lambda _: dict(
      zip(('launcher', 'counter', 'actor'), next(shares))), raising=False)
  out = tmp_path / 'figures.json'
  watching.main(['--rounds', '1', '--seconds', '2', '--json', str(out)])
  (_, watched), (least_flags, least) = started
  assert least_flags == ['--quiet', *watching._PATIENT]
  assert watched == common.CHECKOUT != least
  said = capsys.readouterr().out
  assert '| watched / least: timesteps/s | 3 |' in said
  assert '| watched - least: % of core time | 2.5 |' in said


@pytest.mark.slow
def test_the_least_keeps_rows_of_progress_only():
  code = ('import os; from programs.runtime import collectors\n'
          'from programs.nodes import learner\n'
          'logger = collectors.progress_logger("kept", verbose=True)\n'
          'logger.write({"timesteps": 1})\n'
          'print(os.listdir("kept"), learner._PICTURE_SECONDS)')
  with watching.unwatched_code() as checkout:
    (checkout / 'kept').mkdir()
    said = subprocess.run(
        [sys.executable, '-c', code], cwd=checkout, check=True, text=True,
        stdout=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': str(checkout)})
  assert said.stdout == "['progress.csv'] inf\n"


def test_compare_takes_another_checkout(started, tmp_path, capsys):
  with pytest.raises(SystemExit) as error:
    throughput.main(['--compare', str(tmp_path)])
  assert error.value.code == 2
  assert 'has no launch/train.py' in capsys.readouterr().err
  (tmp_path / 'launch').mkdir()
  (tmp_path / 'launch' / 'train.py').touch()
  throughput.main(['--compare', str(tmp_path), '--rounds', '1', '--seconds', '2'])
  assert started == [([], common.CHECKOUT), ([], tmp_path)]


def test_a_larger_machine_is_estimated_in_proportion():
  # A timestep costs 4 ms of acting, 0.5 of a shard and 0.5 of the learner's host.
  parts = {'efficiency': 0.8, 'parts': {
      'environment': {'core_seconds': 0.002}, 'policy': {'core_seconds': 0.0015},
      'insertion': {'core_seconds': 0.0005}, 'learner': {'core_seconds': 9.}}}
  rows = [{'in/s': 1000., 'replay cores': 0.5, 'learner cores': 0.5,
           'bytes': 2000., 'step ms': 30.},
          {'in/s': 10., 'replay cores': 9., 'learner cores': 9., 'bytes': 9.,
           'step ms': 9.}]
  figures = {'by cores': 16_000., 'acting': 64., 'replay': 8., 'learner': 8.}
  assert estimate.estimate(parts, rows, 100, 300) == pytest.approx({
      **figures, 'by learner': 10_000., 'MB/s': 20., '1.7 million, min': 17 / 6})
  assert estimate.estimate(parts, rows, 100, 600) == pytest.approx({
      **figures, 'by learner': 20_000., 'MB/s': 32.,
      '1.7 million, min': 1.7e6 / 16_000 / 60})
