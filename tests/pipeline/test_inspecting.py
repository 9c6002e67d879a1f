"""Figures and copies of real Reverb servers' tables."""

import itertools
import json
import os
import signal
import threading
import time
import types

import numpy as np
import pytest
import reverb
import rich
import rich.console

from launch import inspect
from launch.views import snapshot
from launch.views import tables
from tests import processes
from tests.pipeline import test_replay


@pytest.fixture
def written():
  """A server with fourteen items of two environments, and what they hold."""
  config = test_replay.make_config(replay_capacity=10)
  server = test_replay.make_server(config)
  adder = test_replay.make_adder(server, config)
  stream = test_replay.Stream(num_envs=2)
  adder.add_first(stream.first())
  for _ in range(14 * config.sequence_length + 1):
    action, extras, timestep = stream.next()
    adder.add(action, timestep, extras)
  yield reverb.Client(f'localhost:{server.port}'), stream, config
  adder.reset()
  server.stop()


def counts(client):
  return {name: (table.current_size,
                 table.rate_limiter_info.insert_stats.completed,
                 table.rate_limiter_info.sample_stats.completed,
                 table.num_unique_samples)
          for name, table in client.server_info(60).items()}


def test_rates_that_are_watched_are_those_since_the_last_look(
    written, capsys, monkeypatch):
  client, _, _ = written
  looks = []

  def wait(seconds):
    looks.append(seconds)
    if len(looks) == 1:
      list(client.sample('replay', 5, emit_timesteps=False))
    elif len(looks) == 4:
      raise KeyboardInterrupt
    time.sleep(0.05)

  monkeypatch.setattr(inspect, 'time', types.SimpleNamespace(sleep=wait))
  monkeypatch.setattr(signal, 'signal', lambda *unused_args: None)
  assert inspect.main(['--address', client.server_address, '--watch', '--json',
                       '--seconds', '9']) == 0
  rates = [table['samples_per_second']
           for line in capsys.readouterr().out.splitlines()
           for table in json.loads(line) if table['table'] == 'replay']
  assert [rate > 0 for rate in rates] == [True, False, False]
  assert looks == [9., 9., 9., 9.]


def test_a_snapshot_has_all_items_and_takes_none(written, capfd):
  client, stream, config = written
  sampled = [sample.info.key for sample in client.sample(
      'replay', 6, emit_timesteps=False)]
  client.mutate_priorities('replay', updates={sampled[0]: 3.})
  before = counts(client)
  capfd.readouterr()
  items = snapshot.take(client)
  assert counts(client) == before
  # What the copy's server says is of no use to anybody.
  assert 'Loading' not in capfd.readouterr().err

  # The newest ten in the replay table, all fourteen in the queue; both in order.
  length = config.sequence_length
  for table, starts in (('replay', range(4, 14)), ('queue', range(14))):
    of_table = [item for item in items if item.table == table]
    assert [item.inserted_at for item in of_table] == sorted(
        item.inserted_at for item in of_table)
    assert len({item.key for item in of_table}) == len(starts)
    for item, start in zip(of_table, starts, strict=True):
      for env, name in itertools.product((0, 1), ('action', 'reward', 'mask')):
        expected = stream.trajectory(start * length, env, length)
        steps = item.columns[name][config.frame_stack - 1:-1, env]
        np.testing.assert_array_equal(steps, expected[name])
      np.testing.assert_array_equal(
          item.columns['frame'][config.frame_stack - 1:, 1],
          expected['observation'][..., -1])
  times = {item.key: item.times_sampled for item in items}
  priorities = {item.key: item.priority for item in items}
  assert {key: sampled.count(key) for key in times} == times
  assert priorities == {key: 3. if key == sampled[0] else 1. for key in times}


def test_a_snapshot_leaves_no_files(written, monkeypatch):
  client, _, _ = written
  saved = []
  checkpoint = reverb.Client.checkpoint

  def note(self):
    saved.append(checkpoint(self))
    return saved[-1]

  monkeypatch.setattr(reverb.Client, 'checkpoint', note)
  snapshot.take(client)
  path, = saved
  assert os.path.isdir(os.path.dirname(path)) and not os.path.exists(path)


def test_a_snapshot_of_another_machine_is_one_line(written, monkeypatch, tmp_path):
  client, _, _ = written
  monkeypatch.setattr(reverb.Client, 'checkpoint',
                      lambda self: str(tmp_path / 'elsewhere'))
  with pytest.raises(ValueError, match='on its machine.$'):
    snapshot.take(client)


def figures_of(client, action=lambda: None):
  before = tables.read(client)
  action()
  return {table['table']: table
          for table in tables.figures(before, tables.read(client))}


def test_figures_are_those_of_the_server(written):
  client, _, _ = written
  list(client.sample('replay', 3))
  seen = figures_of(client, lambda: list(client.sample('replay', 4)))
  replayed, queue = seen['replay'], seen['queue']
  assert (queue['size'], queue['max_size'], queue['inserts'], queue['samples']) == (
      14, 50, 14, 0)
  assert (replayed['size'], replayed['inserts'], replayed['samples']) == (10, 14, 7)
  assert replayed['samples_per_insert'] == 0.5
  assert replayed['samples_per_second'] > 0 == queue['samples_per_second']
  limiter = replayed['rate_limiter']
  assert limiter['difference'] == 14 * limiter['samples_per_insert'] - 7
  assert (queue['sampler'], queue['max_times_sampled']) == ('fifo', 1)
  assert replayed['sampler'] == 'uniform'
  assert replayed['signature']['frame'] == {'shape': [8, None, 8, 8],
                                            'dtype': 'uint8'}
  assert replayed['signature'] == queue['signature']


@pytest.mark.parametrize('capacity, inserts, samples', [
    # A full queue, an empty one, and one with neither.
    (2, 3, 0), (2, 0, 1), (5, 2, 0)])
def test_who_is_held_up(capacity, inserts, samples):
  server = reverb.Server([reverb.Table.queue('queue', capacity)])
  client = reverb.Client(f'localhost:{server.port}')

  def insert():
    for i in range(inserts):
      client.insert([np.float32(i)], {'queue': 1.})

  threads = [threading.Thread(target=insert, daemon=True)]
  if samples:
    threads.append(threading.Thread(
        target=lambda: list(client.sample('queue', samples)), daemon=True))
  for thread in threads:
    thread.start()
  held = min(inserts, capacity)
  before = processes.wait_for(lambda: [
      reading for reading in [tables.read(client)]
      if reading.tables['queue'].current_size == held], 'inserts')[0]
  threading.Event().wait(1.)
  seen, = tables.figures(before, tables.read(client))
  is_full = inserts > capacity
  assert (seen['inserts_held_up'] > 0.5) == is_full
  assert (seen['samples_held_up'] > 0.5) == bool(samples)
  assert seen['rate_limiter']['takes_inserts'] == (not is_full)
  assert seen['rate_limiter']['gives_samples'] == (held > 0)
  # Let those that wait go.
  if is_full:
    list(client.sample('queue', 1))
  if samples:
    client.insert([np.float32(0)], {'queue': 1.})
  for thread in threads:
    thread.join(60)
    assert not thread.is_alive()
  server.stop()


def test_a_server_without_signatures_is_shown_too(capsys):
  server = reverb.Server([reverb.Table(
      'bare', reverb.selectors.Prioritized(0.5), reverb.selectors.Lifo(), 9,
      reverb.rate_limiters.MinSize(3), max_times_sampled=4)])
  seen = figures_of(reverb.Client(f'localhost:{server.port}'))['bare']
  assert seen['signature'] is None and seen['samples_per_insert'] is None
  assert (seen['sampler'], seen['remover']) == ('prioritized, exponent 0.5', 'lifo')
  assert seen['rate_limiter']['min_difference'] is None
  assert not seen['rate_limiter']['gives_samples']
  rich.print(tables.shown([seen]))
  said = capsys.readouterr().out
  for text in ('0 of 9', 'at most 4 times', 'without a signature', '[-inf, inf]'):
    assert text in said
  server.stop()
  # Many servers are watched on a terminal of usual size.
  shards = [{**seen, 'address': f'192.168.10.10:{port}', 'size': 12_345,
             'max_size': 20_000, 'inserts_per_second': 1234.5}
            for port in range(40_000, 40_020)]
  console = rich.console.Console(width=80, height=24)
  with console.capture() as capture:
    console.print(tables.shown(shards, is_watched=True))
  _, _, _, _, *lines = capture.get().splitlines()
  assert [line.split()[:5] for line in lines] == [
      [shard['address'], 'bare', '12,345', '62%', '1,234'] for shard in shards]


def test_a_server_that_ends_meanwhile_is_told_in_one_line():
  server = reverb.Server(
      [reverb.Table.queue('queue', 9)], port=processes.free_ports(1))
  address = f'localhost:{server.port}'
  client = tables.connect(address)
  tables.read(client)
  server.stop()
  for read in (tables.read, snapshot.take):
    with pytest.raises(ValueError, match=f'server .*at {address}') as error:
      read(client)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('address, told', [
    ('nowhere', 'must be HOST:PORT'), ('h:0', 'must be HOST:PORT'),
    ('h:99999', 'must be HOST:PORT'), (':5', 'must be HOST:PORT'),
    ('127.0.0.1:{free}', 'no server is reached at 127.0.0.1'),
    ('nosuch.invalid:80', 'no server is reached at nosuch.invalid:80')])
def test_addresses_where_there_is_no_server(address, told):
  with pytest.raises(ValueError, match=told) as error:
    tables.connect(address.format(free=processes.free_ports(1)))
  assert '\n' not in str(error.value)
