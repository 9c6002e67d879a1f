"""What an agent finds on its host of a cluster, before anything runs there."""

import os
import socket

import pytest

agent = pytest.importorskip('launch.engines.agent', reason='needs Ray')


def test_a_run_can_be_saved_where_it_is_seen_and_can_be_written(tmp_path):
  seen = tmp_path / 'seen'
  assert agent.Agent().why_not_saved(str(seen)) == 'is not seen'
  seen.touch()
  assert agent.Agent().why_not_saved(str(seen)) is None
  assert os.listdir(tmp_path) == ['seen']


def test_a_run_cannot_be_saved_where_nothing_can_be_written():
  why = agent.Agent().why_not_saved('/proc/version')  # Not even by root.
  assert why is not None and why.startswith('cannot be written (')


def test_a_port_that_somebody_listens_on_is_not_given():
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
    assert agent.Agent().reserve(port) == (port, 'address already in use')
  assert agent.Agent().reserve(port) == (port, None)
  assert agent.Agent().reserve(0)[0] > 0
