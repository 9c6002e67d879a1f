"""What a person sees of a run."""

import io
import json
import os
import pathlib
import subprocess
import sys

import pytest
import rich.console

from launch.views import display
from launch.views import printing
from launch.views import watching
from programs.runtime import records

ROOT = pathlib.Path(__file__).parents[2]
WARNINGS = ['warning: all is lost', 'learner: warning: no checkpoint',
            'train: error: or not']


def row(**values):
  return {**{name: 0.5 for name in records.PROGRESS_COLUMNS},
          'timesteps': 1000, 'walltime_seconds': 5., 'episodes': 3,
          'learner_steps': 7, **values}


def of_row(**values):
  return records.ROW + json.dumps(row(**values))


def fill(screen):
  for node in ('counter/0', 'learner/0', 'actor/0'):
    screen.begun(node, 0)
  screen.output('counter/0', records.STARTING + json.dumps(
      {'learner': 'the replay', 'actor/0': 'the weights'}))
  screen.output('actor/0', 'something that a library says')
  screen.output('counter/0', of_row())
  screen.output('counter/0', 'warning: all is lost')
  screen.output('learner/0', 'learner: warning: no checkpoint')
  screen.output('actor/0', 'actor/0: back after 2 s')
  screen.say('train: done')
  screen.fail('train: error: or not')


def test_plain_lines_are_of_rows_and_of_what_nodes_say(capsys, monkeypatch):
  monkeypatch.setattr(printing, '_STARTING_SECONDS', 0.)
  fill(printing.Plain())
  output = capsys.readouterr()
  starting, progress, back, done = output.out.splitlines()
  assert starting == 'waiting for the replay (learner); the weights (actor/0)'
  assert progress.split()[:2] == ['1,000', 'timesteps']
  assert (back, done) == ('actor/0: back after 2 s', 'train: done')
  assert output.err.splitlines() == WARNINGS


def test_quiet_is_but_for_warnings(capsys):
  fill(printing.Screen())
  output = capsys.readouterr()
  assert output.out == ''
  assert output.err.splitlines() == WARNINGS


def test_a_path_is_no_markup_in_a_title():
  console = rich.console.Console(file=io.StringIO(), width=60)
  console.print(display.Live('pong → runs/[/x] :smile:', 10, console).render())
  assert ' pong → runs/[/x] :smile: ' in console.file.getvalue()


@pytest.mark.parametrize('is_terminal, plain, quiet, made', [
    (True, False, False, display.Live), (True, True, False, printing.Plain),
    (False, False, False, printing.Plain), (True, True, True, printing.Screen)])
def test_a_screen_fits_the_output(monkeypatch, is_terminal, plain, quiet, made):
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: is_terminal, raising=False)
  monkeypatch.setenv('TERM', 'xterm')
  assert type(watching.make('pong', 100, plain, quiet)) is made


@pytest.mark.parametrize('encoding, made', [
    ('utf-8', display.Live), ('iso-8859-1', printing.Plain)])
def test_a_terminal_without_the_displays_characters_gets_lines(
    monkeypatch, encoding, made):
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(io.BytesIO(), encoding))
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
  assert type(watching.make('pong', 100, plain=False, quiet=False)) is made


def test_a_reader_that_has_gone_stops_nothing():
  code = ('import os, sys; from launch.views import printing\n'
          'screen = printing.Plain()\n'
          'for _ in range(9): screen.say("nobody hears")\n'
          'os.write(2, b"goes on")')
  reader, writer = os.pipe()
  os.close(reader)
  try:
    ended = subprocess.run([sys.executable, '-c', code], stdout=writer,
                           stderr=subprocess.PIPE, cwd=ROOT)
  finally:
    os.close(writer)
  assert (ended.returncode, ended.stderr) == (0, b'goes on')


class Terminal:
  """A live display on a terminal of so many columns."""

  def __init__(self, width):
    self.console = rich.console.Console(
        file=io.StringIO(), width=width, height=30, force_terminal=True,
        color_system=None, _environ={'TERM': 'xterm'})
    self.screen = display.Live('pong', 3000, self.console)

  def lines(self):
    with self.console.capture() as capture:
      self.console.print(self.screen.render())
    return capture.get().splitlines()

  def text(self):
    return ' '.join(' '.join(line.strip('│╭╮╰╯─ ') for line in self.lines()).split())


@pytest.mark.parametrize('width', [40, 80, 120, 160, 300])
def test_no_line_of_the_display_is_longer_than_the_terminal_is_wide(width):
  terminal = Terminal(width)
  for node in ('learner/0', *(f'actor/{i}' for i in range(9))):
    terminal.screen.begun(node, 0)
  for step in (0, 1, 2):
    lines = terminal.lines()
    assert {len(line) for line in lines} == {width}
    assert lines[0].startswith('╭─ pong ─') and lines[-1].startswith('╰──')
    terminal.screen.row(row(timesteps=1000 * step, learner_steps=123_456_789,
                            policy_loss=-0.000123456, gradient_norm=1.23456e20))


@pytest.mark.parametrize('width, most_lines', [(80, 24), (160, 12)])
def test_a_terminal_of_usual_size_shows_all(width, most_lines):
  terminal = Terminal(width)
  for node in ('replay/0', 'counter/0', 'learner/0', 'actor/0', 'actor/1'):
    terminal.screen.begun(node, 0)
  terminal.screen.row(row(restarts=2))
  text = terminal.text()
  shown = set(records.PROGRESS_COLUMNS) - {
      'timesteps', 'walltime_seconds', 'rho_clipped_fraction', 'weight_pulls',
      'bad_numbers', 'skipped_updates'}
  assert all(f'{name} ' in text for name in shown | {'restarts'})
  assert '…' not in text
  assert len(terminal.lines()) < most_lines


def test_a_terminal_that_gets_narrower_is_cleared():
  terminal = Terminal(100)
  for width, is_cleared in ((100, False), (120, False), (80, True), (80, False)):
    terminal.console.width = width
    first, *_ = terminal.lines()
    assert first.startswith('\x1b[2J\x1b[H') == is_cleared


def test_the_time_left_is_by_the_rate_of_the_last_minute():
  terminal = Terminal(100)
  for i in range(100):
    # 180 a second, and 20 in the last rows.
    timesteps = 900 * min(i, 88) + 100 * max(i - 88, 0)
    terminal.screen.row(row(timesteps=timesteps, walltime_seconds=5. * i))
  terminal.screen._max_timesteps = timesteps + 1800
  assert (f'{timesteps:,} of {timesteps + 1800:,} timesteps, 8:15 so far, 1:30 left'
          in terminal.text())


def test_returns_are_drawn_and_the_best_is_kept():
  terminal = Terminal(100)
  returns = [float('nan'), -21., -10., 5., 18., 15.]
  for i, value in enumerate(returns):
    terminal.screen.row(row(timesteps=i, episode_return_mean_100=value))
  terminal.screen.row(row(episode_return_mean_100=15., **{records.EVALUATION: 17.5}))
  assert ('episode_return_mean_100 15, best 18, evaluation 17.5 ▁▃▆█▇▇'
          in terminal.text())


@pytest.mark.parametrize('values, width, bars', [
    ([], 5, ''), ([1., 1.], 5, '▁▁'), ([0., 7.], 5, '▁█'), ([float('nan')], 5, ''),
    (list(map(float, range(8))), 8, '▁▂▃▄▅▆▇█'), ([0., 0., 9., 9.], 2, '▁█'),
    ([1., 2.], 0, '')])
def test_sparklines(values, width, bars):
  assert display.sparkline(values, width) == bars


def test_each_state_of_a_node_is_told():
  terminal = Terminal(160)
  screen = terminal.screen
  screen.begun('learner/0', 0)
  screen.begun('actor/0', 0)
  assert 'processes import' in terminal.text()
  screen.starting({'actor/0': 'the weights'})
  assert 'the weights (actor/0)' in terminal.text()
  assert '● learner/0 starting' in terminal.text()
  screen.stopping()
  assert 'stopping ● learner/0' in terminal.text()
  screen.row(row())
  assert terminal.text().endswith('● learner/0 ● actor/0')
  screen.ended('actor/0')
  assert '● actor/0 down' in terminal.text()
  screen.begun('actor/0', 2)
  assert '● actor/0 starting (restarted 2 times)' in terminal.text()
  screen.output('actor/0', 'actor/0: back after 2.1 s; lost: nothing.')
  assert terminal.text().endswith('● actor/0 (restarted 2 times)')
  screen.stopping()
  assert 'stopping' in terminal.text()


def test_many_nodes_are_counted():
  terminal = Terminal(80)
  terminal.screen.begun('learner/0', 0)
  for i in range(128):
    terminal.screen.begun(f'actor/{i}', 0)
  terminal.screen.row(row())
  terminal.screen.begun('actor/7', 1)
  assert terminal.text().endswith(
      '● 1 learner ● 127 actor ● 1 actor starting (restarted)')


def test_messages_scroll_away_above_the_display():
  terminal = Terminal(100)
  with terminal.screen.shown():
    fill(terminal.screen)
  written = terminal.console.file.getvalue()
  for line in (*WARNINGS, 'actor/0: back after 2 s', 'train: done'):
    assert line in written
  assert 'something that a library says' not in written


def test_what_others_write_while_the_display_is_hidden_stays():
  terminal = Terminal(80)
  written = terminal.console.file
  with terminal.screen.shown():
    with terminal.screen.hidden():
      before = written.getvalue()
      written.write('$ fg\n')
    after = written.getvalue()[len(before):]
  assert before.rindex('\x1b[?25h') > before.rindex('╯')  # It shows the cursor.
  first, _, _ = after.partition('╭')
  assert first.startswith('$ fg\n') and '\x1b[1A' not in first
