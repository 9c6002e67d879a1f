"""The Ray engine's actor for a node of a program, on the node's host.

Imports nothing that takes time or memory, as there is one for each node.
"""

import os
import queue
import subprocess
import sys
import threading
from typing import Any, Mapping, Optional

import ray

from launch.engines import child
from programs.runtime import doors

_BACKLOG_LINES = 1000
_LAST_WORDS_SECONDS = 1.
_COUNT_GPUS = """
import agents
import tensorflow as tf
print(len(tf.config.list_physical_devices('GPU')))
"""


class Agent:
  """Runs the process of one node, on the host where Ray has placed it.

  Each call runs in its own thread. The process ends soon after its agent.
  """

  def __init__(self):
    self._child: Optional[child.Child] = None
    self._news: queue.Queue[tuple[str, Any]] = queue.Queue(_BACKLOG_LINES)

  def host(self) -> tuple[str, str]:
    """Returns this host's address in the cluster, and Ray's id of the host."""
    return (ray.util.get_node_ip_address(),
            ray.get_runtime_context().get_node_id())

  def reserve(self, port: int) -> tuple[int, Optional[str]]:
    """Finds a port of this host, as `child.find_port` does."""
    return child.find_port(port)

  def why_not_saved(self, path: str) -> Optional[str]:
    """Returns why this host could not write beside a file, or None if it can."""
    if not os.path.exists(path):
      return 'is not seen'
    probe = f'{path}-here'
    try:
      with open(probe, 'x'):
        os.remove(probe)
    except OSError as e:
      return f'cannot be written ({(e.strerror or str(e)).lower()})'
    return None

  def count_gpus(self) -> int:
    """Returns how many GPUs TensorFlow finds here, of those that Ray grants."""
    counted = subprocess.run(
        [sys.executable, '-c', _COUNT_GPUS], capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': child.import_path()})
    return int(counted.stdout.strip() or 0)

  def start(self, job: bytes, listen: Optional[str],
            variables: Mapping[str, str]) -> None:
    """Starts the node's process.

    Args:
      job: the node's function, as Launchpad's entry takes it.
      listen: where it listens; None for this host's address in the cluster.
      variables: added to this process's environment; their `PYTHONPATH` comes
        after this process's own.

    Raises:
      ValueError: if doors cannot be closed here.
    """
    # What the launcher would import can be imported here too, if it is here at all.
    env = child.environment(variables)
    env.update(doors.closed(listen or ray.util.get_node_ip_address()))
    pipe = child.StopPipe()
    file = os.memfd_create('job')
    with open(file, 'wb', closefd=False) as f:
      f.write(job)
    self._news = queue.Queue(_BACKLOG_LINES)
    self._child = child.Child(
        child.entry_command(f'/proc/self/fd/{file}'), {**env, **pipe.env()},
        keep_open=[file, pipe.writer])
    os.close(file)
    for watch in (self._wait_for_end, self._wait_for_stop):
      threading.Thread(target=watch, args=(self._child, self._news, pipe),
                       daemon=True).start()

  def news(self) -> list[tuple[str, Any]]:
    """Waits for news of the process.

    Returns:
      Each is a `line` that it printed, a `stop` that it asks for, or its `end`
      with the return code, after which nothing follows.
    """
    news = [self._news.get()]
    while not self._news.empty():
      news.append(self._news.get())
    return news

  def signal(self, number: int) -> None:
    if self._child is not None and self._child.code() is None:
      self._child.signal(number)

  @staticmethod
  def _wait_for_end(process: child.Child, news: queue.Queue,
                    pipe: child.StopPipe) -> None:
    del pipe

    def read() -> None:
      for line in process.lines():
        news.put(('line', line))

    pump = threading.Thread(target=read, daemon=True)
    pump.start()
    code = process.wait()
    pump.join(_LAST_WORDS_SECONDS)
    news.put(('end', code))

  @staticmethod
  def _wait_for_stop(process: child.Child, news: queue.Queue,
                     pipe: child.StopPipe) -> None:
    del process
    if pipe.wait():
      news.put(('stop', None))
