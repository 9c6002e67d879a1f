"""A proxy is not asked for the program's own servers."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Nobody listens there.
PROXY = 'http://127.0.0.1:9'
CALL_BOTH = """
import agents, courier, os, psutil, reverb, socket
hosts = {'localhost', *(address.address for of in psutil.net_if_addrs().values()
                        for address in of if address.family == socket.AF_INET)}
replay = reverb.Server([reverb.Table.queue('queue', 2)])
node = courier.Server()
node.Bind('seven', lambda: 7)
node.Start()
for host in hosts:
  assert 'queue' in reverb.Client(f'{host}:{replay.port}').server_info(timeout=10)
  assert courier.Client(f'{host}:{node.port}', call_timeout=10).seven() == 7
print(os.environ['no_grpc_proxy'])
os._exit(0)  # Without waiting for the servers.
"""


@pytest.mark.slow
@pytest.mark.parametrize('variables', [
    {'http_proxy': PROXY}, {'https_proxy': PROXY, 'no_proxy': 'example.com'},
    {'grpc_proxy': PROXY, 'no_grpc_proxy': 'example.com'},
])
def test_own_servers_are_reached_without_a_proxy(variables):
  own = {name: value for name, value in os.environ.items()
         if not name.endswith('_proxy')}
  ended = subprocess.run([sys.executable, '-c', CALL_BOTH], cwd=ROOT, timeout=120,
                         env={**own, **variables}, capture_output=True, text=True)
  assert ended.returncode == 0, ended.stderr
  # What was excepted before still is.
  assert ('example.com' in ended.stdout.split(',')) == (len(variables) == 2)
