"""Learning curves of groups of runs, against closed forms."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

from launch import plot
from launch.views import curves


def write_run(path, rows, game='pong', seed=0, run=(), **agent):
  """Writes a run's directory; rows are (timesteps, seconds, return)."""
  path.mkdir(parents=True)
  (path / 'config.json').write_text(json.dumps({
      'environment': {'game': game}, 'agent': agent,
      'run': {'run_dir': str(path), 'seed': seed, **dict(run)}}))
  with open(path / 'progress.csv', 'w') as f:
    f.write('timesteps,walltime_seconds,learner_steps,episode_return_mean_100\n')
    f.writelines(f'{t},{s},{t // 10},{r}\n' for t, s, r in rows)
  return str(path)


def line(slope, steps=(0, 100, 200), offset=0.):
  return [(t, 6 * t, offset + slope * t) for t in steps]


def test_the_mean_of_lines_is_a_line(tmp_path):
  # Rows at other timesteps, and of other lengths.
  runs = [curves.read(write_run(tmp_path / 'a', line(1., (0, 100, 200)))),
          curves.read(write_run(tmp_path / 'b', line(3., (20, 70, 90, 300))))]
  curve = curves.aggregate(runs, 'timesteps', curves.RETURN, 'mean')
  assert (curve.x[0], curve.x[-1], curve.num_runs) == (20, 200, 2)
  np.testing.assert_allclose(curve.centre, 2 * curve.x)
  # Of two runs, a resample is either of them twice, or both.
  np.testing.assert_allclose(curve.low, curve.x)
  np.testing.assert_allclose(curve.high, 3 * curve.x)
  minutes = curves.aggregate(runs, 'minutes', curves.RETURN, 'mean')
  np.testing.assert_allclose(minutes.centre, 20 * minutes.x)
  steps = curves.aggregate(runs, 'learner_steps', curves.RETURN, 'mean')
  assert (steps.x[0], steps.x[-1]) == (2, 20)


def test_rows_without_returns_are_passed_over(tmp_path):
  run = curves.read(write_run(
      tmp_path / 'a', [(0, 0, 'nan'), (10, 1, 5.), (20, 2, 'nan'), (30, 3, 7.)]))
  xs, ys = curves.points(run, 'timesteps', curves.RETURN)
  assert xs.tolist() == [10, 30] and ys.tolist() == [5, 7]


def test_a_torn_row_is_passed_over(tmp_path):
  path = write_run(tmp_path / 'a', line(1.))
  with open(f'{path}/progress.csv', 'a') as f:
    f.write('300,9300,600,30,300\n\0\0\n400,2400,40,400\n')
  xs, _ = curves.points(curves.read(path), 'timesteps', curves.RETURN)
  assert xs.tolist() == [0, 100, 200, 400]


def test_runs_from_before_there_was_a_setting_are_one_with_what_they_did(tmp_path):
  run = curves.read(write_run(tmp_path / 'today', line(1.)))
  assert run.settings['value_loss'] == 'hl_gauss'
  for name, said in (('older', {}), ('newer', {'value_loss': 'squared'})):
    path = write_run(tmp_path / name, line(1.))
    file = tmp_path / name / 'config.json'
    content = json.loads(file.read_text())
    content['agent'].pop('value_loss', None)
    file.write_text(json.dumps({**content, 'versions': {},
                                'agent': {**content['agent'], **said}}))
    assert curves.read(path).settings['value_loss'] == 'squared'


def test_the_interquartile_mean_ignores_the_outer_quarters():
  values = np.array([[-1000.], [1.], [2.], [3.], [4.], [5.], [6.], [9999.]])
  assert curves.interval(values, 'iqm')[0] == pytest.approx([3.5])
  assert curves.interval(values[:3], 'iqm')[0] == pytest.approx(
      values[:3].mean(axis=0))


def test_the_interval_of_a_mean_is_that_of_a_normal_distribution():
  values = np.random.default_rng(1).normal(5., 2., [400, 3])
  centre, low, high = curves.interval(values)
  half = stats.norm.ppf(0.975) * values.std(axis=0) / 20
  np.testing.assert_allclose(high - centre, half, rtol=0.1)
  np.testing.assert_allclose(centre - low, half, rtol=0.1)


def labels(tmp_path, *settings):
  runs = [curves.read(write_run(tmp_path / str(i), line(1.), seed=i, **kwargs))
          for i, kwargs in enumerate(settings)]
  return {label: [int(run.path.rpartition('/')[2]) for run in group]
          for label, group in curves.group_by_settings(runs).items()}


def test_runs_are_grouped_by_what_differs(tmp_path):
  assert labels(tmp_path / 'seeds', {}, {}) == {'pong': [0, 1]}
  # A setting that an older run did not have is its default.
  assert labels(
      tmp_path / 'rates', {}, {'learning_rate': 1e-3, 'loss': 'ppo'},
      {'loss': 'ppo'}) == {'learning_rate=0.0007': [0, 2],
                           'learning_rate=0.001': [1]}
  # Where a run goes and for how long says nothing about how it learns.
  assert labels(
      tmp_path / 'run', {'run': {'max_timesteps': 10}}, {},
      {'conv_channels': [8, 16]}, {'conv_channels': [8, 16], 'gone': 1},
  ) == {'conv_channels=16,32, no gone': [0, 1],
        'conv_channels=8,16, no gone': [2], 'conv_channels=8,16, gone=1': [3]}
  assert labels(tmp_path / 'actors', {'run': {'num_actors': 1}},
                {'run': {'num_actors': 2}}) == {'num_actors=1': [0],
                                                'num_actors=2': [1]}


def test_of_many_settings_the_unusual_ones_name_a_group(tmp_path):
  assert labels(
      tmp_path, {}, {},
      {'loss': 'vtrace', 'autoencoder': False, 'latent_size': 8, 'discount': 0.9},
      {'discount': 0.9},
  ) == {'the most common settings': [0, 1], 'discount=0.9': [3],
        'loss=vtrace, discount=0.9, autoencoder=false, latent_size=8': [2]}


def test_plot_draws_and_writes_what_it_says(tmp_path, capsys):
  runs = [write_run(tmp_path / f'{game}{rate}{seed}', line(rate * (1 + seed)),
                    game=game, seed=seed, learning_rate=rate)
          for game in ('pong', 'breakout') for rate in (0.1, 0.2)
          for seed in (0, 1)]
  out, table = tmp_path / 'curves.png', tmp_path / 'curves.csv'
  assert plot.main([*runs, '--out', str(out), '--csv', str(table)]) == 0
  printed = capsys.readouterr().out
  assert '| 30 ' in printed and '20 to 40' in printed
  pixels = plot.plt.imread(str(out))
  for colour in plot._COLOURS[:2]:
    rgb = plot.matplotlib.colors.to_rgb(colour)
    assert (abs(pixels[..., :3] - rgb).max(axis=-1) < 0.02).sum() > 200, colour
  with open(table) as f:
    rows = list(csv.DictReader(f))
  ends = {(row['game'], row['group']): row for row in rows}
  assert list(ends) == [(game, f'learning_rate={rate}')
                        for game in ('pong', 'breakout') for rate in (0.1, 0.2)]
  end = ends['breakout', 'learning_rate=0.1']
  assert [float(end[name]) for name in (
      'runs', 'timesteps', 'episode_return_mean_100_mean', 'low', 'high')
  ] == pytest.approx([2, 200, 30, 20, 40])


def test_a_run_that_is_given_twice_counts_once(tmp_path, capsys):
  run = write_run(tmp_path / 'run', line(1.))
  (tmp_path / 'again').symlink_to(run)
  assert plot.main([run, f'{run}/', str(tmp_path / 'again'), '--out',
                    str(tmp_path / 'curves.png')]) == 0
  assert '| pong | 1 ' in ' '.join(capsys.readouterr().out.split())


def test_plot_takes_another_statistic_and_other_axes(tmp_path):
  runs = [write_run(tmp_path / str(seed), line(10. * slope), seed=seed)
          for seed, slope in enumerate([-999., 1., 2., 3., 4., 5., 6., 999.])]
  table = tmp_path / 'curves.csv'

  def end(*flags):
    assert plot.main([*runs, '--out', str(tmp_path / 'curves.png'), '--csv',
                      str(table), '--statistic', 'iqm', *flags]) == 0
    *_, last = csv.DictReader(table.read_text().splitlines())
    return last

  last = end('--x', 'minutes', '--y', 'timesteps')
  assert (float(last['minutes']), float(last['timesteps_iqm'])) == (20., 200.)
  last = end('--x', 'learner_steps')
  assert (float(last['learner_steps']),
          float(last['episode_return_mean_100_iqm'])) == (20., 7000.)


@pytest.mark.parametrize('argv, told', [
    ([], 'no runs are given'),
    (['none/such'], 'none/such holds no run'),
    (['RUN', '--y', 'loss'], 'has no column loss; there are timesteps'),
    (['RUN', '--out', 'TMP/curves.xyz'], 'cannot be drawn'),
    (['RUN', '--out', 'TMP'], 'such as curves.png, not'),
    (['RUN', '--out', 'TMP/'], 'such as curves.png, not'),
    (['RUN', '--out', 'TMP/curves'], 'such as curves.png, not'),
    (['RUN', '--out', 'TMP/none/such.png'], 'No such file'),
    (['RUN', 'EMPTY'], 'has no rows'),
    (['RUN', 'LATER'], 'no timesteps in common'),
    (['RUN', '--x', 'hours'], 'x must be one of timesteps, minutes'),
    (['RUN', '--out', 'a.png', '--ot', 'b.png'], 'did you mean --out?'),
])
def test_what_cannot_be_drawn_is_one_line(argv, told, tmp_path, capsys):
  write_run(tmp_path / 'RUN', line(1.))
  write_run(tmp_path / 'EMPTY', [])
  write_run(tmp_path / 'LATER', line(1., (300, 400)))
  argv = [arg.replace('TMP', str(tmp_path)) if 'TMP' in arg else
          str(tmp_path / arg) if arg.isupper() else arg for arg in argv]
  with pytest.raises(SystemExit) as ended:
    plot.main(argv)
  assert ended.value.code == 2
  output = capsys.readouterr().err
  assert told in output and output.count('\n') == 1
