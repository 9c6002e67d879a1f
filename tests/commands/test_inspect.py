"""A run looked into while it goes on, and evaluated after it: as a person would."""

import json
import os
import re
import shutil
import subprocess
import urllib.request

import imageio.v2 as imageio
import numpy as np
from playwright import sync_api
import pytest

from agents import screens
from agents.impala_ppo import builder as builder_lib
from launch import evaluate
from launch import settings as settings_lib
from programs.runtime import board
from programs.runtime import checkpoints
from programs.runtime import servers
from tests import processes
from tests.commands import runs

GAME = 'tests.unhurried:SlowCatch-v0'
NUM_SHOWN = 3


@pytest.fixture(scope='module')
def looked_at(tmp_path_factory):
  """A run's directory, pictures, and what was said of it while it went on."""
  run_dir = tmp_path_factory.mktemp('run')
  out = tmp_path_factory.mktemp('pictures')
  process = runs.start('--game', GAME, '--run_dir', str(run_dir), *runs.SMALL)
  try:
    processes.wait_for(lambda: checkpoints.latest(str(run_dir)), 'a checkpoint')
    seen = runs.run('launch.inspect', '--run_dir', run_dir, '--json')
    before = {t['table']: t for t in json.loads(seen.stdout)[:2]}
    drawn = runs.run('launch.inspect', '--run_dir', run_dir, '--sample', NUM_SHOWN,
                     '--out', out)
    told = runs.run('launch.inspect', '--address',
                    servers.read(str(run_dir)).replay[0])
    steps = runs.rows(run_dir)[-1]['learner_steps']
    # It is not the worse for it.
    processes.wait_for(
        lambda: runs.rows(run_dir)[-1]['learner_steps'] > steps + 20, 'learning')
  finally:
    code, alive = runs.stop(process, runs.terminate)
  assert (code, alive) == (0, [])
  assert [ended.returncode for ended in (seen, drawn, told)] == [0, 0, 0], (
      seen.stderr + drawn.stderr + told.stderr)
  return run_dir, out, before, drawn.stdout, told.stdout


def answer(address, path):
  # A proxy would not know this machine's addresses.
  direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  try:
    with direct.open(f'{address}/data/plugin/{path}') as response:
      return json.load(response)
  except OSError:
    return None


@pytest.mark.slow
def test_the_board_shows_it_in_a_browser(looked_at):
  port = processes.free_ports(1)
  address = f'http://localhost:{port}'
  server = subprocess.Popen(
      runs.command('tensorboard.main', '--logdir', looked_at[0], '--host',
                   'localhost', '--port', port),
      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  try:
    scalars = processes.wait_for(
        lambda: answer(address, 'scalars/tags'), 'tags')['.']
    assert answer(address, 'histograms/tags')['.'].keys() == {board.HISTOGRAM_TAG}
    assert answer(address, 'text/tags')['.'] == ['configuration']
    assert answer(address, 'images/tags')['.'].keys() == {board.PICTURE_TAG}
    chromium = shutil.which('chromium') or shutil.which('google-chrome')
    if chromium is None:
      pytest.skip('neither chromium nor google-chrome is on the path')
    with sync_api.sync_playwright() as playwright, playwright.chromium.launch(
        executable_path=chromium) as browser:
      page = browser.new_page()
      page.set_default_timeout(120_000)
      page.goto(f'{address}/#scalars')
      for group in {tag.partition('/')[0] for tag in scalars}:
        page.get_by_text(group, exact=True).first.wait_for()
      page.get_by_text('loss/total', exact=True).first.wait_for()
      page.goto(f'{address}/#images')
      page.get_by_text(board.PICTURE_TAG, exact=True).first.wait_for()
      assert page.locator('img').evaluate(
          'image => image.decode().then('
          '() => [image.naturalWidth, image.naturalHeight])') == [2 * 16, 4 * 16]
  finally:
    server.terminate()
    server.wait()


def names_of_checkpoints(run_dir):
  return [file.removesuffix('.index') for file in os.listdir(
      checkpoints.directory(run_dir)) if file.endswith('.index')]


def evaluated(capsys, *args):
  """Returns what `launch.evaluate --json` prints."""
  capsys.readouterr()
  assert evaluate.main([*map(str, args), '--json']) == 0
  return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_tables_are_shown(looked_at):
  _, _, tables, _, told = looked_at
  assert set(tables) == {'queue', 'replay'}
  queue, replayed = tables['queue'], tables['replay']
  assert replayed['inserts'] >= queue['inserts'] - 1 > 0
  assert queue['samples'] <= queue['inserts']
  assert replayed['size'] == min(32, replayed['inserts'])
  assert replayed['signature']['frame'] == {
      'shape': [9, None, 16, 16, 1], 'dtype': 'uint8'}
  for text in ('of 32', 'uniform', 'behaviour_logits', '[9, E, 16, 16, 1]'):
    assert text in told


@pytest.mark.slow
def test_trajectories_are_drawn(looked_at):
  run_dir, out, _, told, _ = looked_at
  assert sorted(os.listdir(out)) == ['histograms.png'] + [
      f'trajectory_{i + 1}.png' for i in range(NUM_SHOWN)]
  assert f'Drew {NUM_SHOWN}' in told and 'Reconstructed by the checkpoint' in told
  pictures = [imageio.imread(out / f'trajectory_{i + 1}.png')
              for i in range(NUM_SHOWN)]
  assert len({picture.tobytes() for picture in pictures}) == NUM_SHOWN
  assert all(picture.shape == pictures[0].shape for picture in pictures)
  capture = runs.run('launch.inspect', '--run_dir', run_dir)
  assert capture.returncode == 2
  assert 'no run goes on' in capture.stderr and capture.stderr.count('\n') == 1


@pytest.mark.slow
def test_evaluations_say_how_and_of_what(looked_at, capsys, monkeypatch):
  run_dir = str(looked_at[0])
  newest = os.path.basename(checkpoints.latest(run_dir))
  oldest = min(names_of_checkpoints(run_dir), key=lambda name: int(name[5:]))
  greedy, = evaluated(capsys, '--run_dir', run_dir, '--episodes', 40)
  assert (greedy['checkpoint'], greedy['actions'], greedy['episodes']) == (
      newest, 'greedy', 40)
  assert greedy['mean'] == np.mean(greedy['returns'])
  low, high = greedy['interval_95']
  assert -1 <= low <= greedy['mean'] <= high <= 1
  policies = []
  make_policy = builder_lib.ImpalaPPOBuilder.make_policy

  def note(self, networks, spec, evaluation=False):
    policies.append(evaluation)
    return make_policy(self, networks, spec, evaluation)

  monkeypatch.setattr(builder_lib.ImpalaPPOBuilder, 'make_policy', note)
  sampled, again = (
      evaluated(capsys, '--run_dir', run_dir, '--episodes', 40, '--sampled',
                '--checkpoint', oldest)[0] for _ in range(2))
  assert sampled == again and sampled['actions'] == 'sampled'
  assert sampled['checkpoint'] == oldest != newest
  assert policies == [False, False]  # Neither takes the most likely action.

  assert evaluate.main(['--run_dir', run_dir, run_dir, '--episodes', '40']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0].split() == ['run', 'game', 'checkpoint', 'episodes', 'mean',
                              '95%', 'interval', 'std', 'min', 'max']
  assert sum(f'{greedy["mean"]:.2f}' in line for line in lines) == 2

  for args, told in ((['--sticky', '0.5'], 'has no sticky actions'),
                     (['--checkpoint', '10000'], f'it has .*{newest}')):
    with pytest.raises(SystemExit) as ended:
      evaluate.main(['--run_dir', run_dir, *args])
    assert ended.value.code == 2
    line, = capsys.readouterr().err.strip().splitlines()
    assert re.search(told, line)


def test_a_video_that_cannot_be_is_told_and_leaves_an_older_one(tmp_path, capsys):
  run_dir = runs.write_policy(tmp_path / 'run', '--game', 'pong', '--env_arg',
                              'noop_max=0', '--no_autoencoder')
  video = tmp_path / 'pong.mp4'
  video.write_bytes(b'older')
  told = runs.refusal(capsys, evaluate.main, '--run_dir', run_dir, '--video', video)
  assert '--env_arg' in told and video.read_bytes() == b'older'
  assert screens.action_names(settings_lib.load(run_dir).environment) == [
      f'action {i}' for i in range(6)]


def test_whatever_a_game_prints_json_is_all_there_is(tmp_path, capsys):
  run_dir = runs.write_policy(tmp_path / 'run', '--game',
                              'tests.misbehaving:ChannelsFirst-v0')
  result, = evaluated(capsys, '--run_dir', run_dir, '--episodes', 3,
                      '--max_episode_steps', 2)
  assert len(result['returns']) == 3


@pytest.mark.slow
def test_a_video_shows_every_frame_of_the_game(tmp_path, capsys):
  run_dir = runs.write_policy(
      tmp_path / 'run', '--game', 'pong', '--no_autoencoder')
  path = str(tmp_path / 'pong.mp4')
  result, = evaluated(capsys, '--run_dir', run_dir, '--video', path,
                      '--max_episode_steps', 20, '--sticky', 0.5)
  assert result['sticky'] == 0.5
  frames = [np.asarray(frame, int) for frame in imageio.get_reader(path)]
  assert len(frames) == 20 * 4
  # Pong's brown fills the left, where the game is, and nothing on the right.
  brown = [(np.abs(frame - [144, 72, 17]).max(axis=-1) < 30).mean(axis=0)
           for frame in (frames[0], frames[-1])]
  for columns in brown:
    assert columns[100:500].min() > 0.3 and columns[660:].max() < 0.05


@pytest.mark.slow
def test_a_video_lasts_as_long_as_the_game(looked_at, capsys, tmp_path):
  run_dir = str(looked_at[0])
  path = str(tmp_path / 'new' / 'catch.mp4')
  result, = evaluated(capsys, '--run_dir', run_dir, '--video', path,
                      '--episodes', 2)
  greedy, = evaluated(capsys, '--run_dir', run_dir, '--episodes', 200)
  assert len(result['returns']) == 2 and set(result['returns']) <= {-1., 1.}
  assert set(result['returns']) <= set(greedy['returns'])
  reader = imageio.get_reader(path)
  about = reader.get_meta_data()
  assert (about['fps'], about['size'], about['codec']) == (60., (1280, 720), 'h264')
  # Two balls of seven steps, at thirty steps a second, and a second after each.
  assert reader.count_frames() == 2 * (7 * 2 + 60)
