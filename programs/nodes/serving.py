"""The node that serves one shard of the replay."""

from typing import Callable, Sequence

import launchpad as lp
import reverb

from programs.runtime import processes


class _FixedPort(lp.AbstractAddressBuilder):

  def __init__(self, port: int):
    self._port = port

  def build(self) -> str:
    return f'localhost:{self._port}'


class ReplayNode(lp.ReverbNode):
  """A Reverb node whose port can be chosen."""

  def __init__(self, make_tables: Callable[[], Sequence[reverb.Table]],
               port: int, launcher: processes.Process):
    """Makes a node.

    Args:
      make_tables: called in the node's process.
      port: to listen on; 0 picks a free one.
      launcher: of the program; the node ends with it.
    """
    super().__init__(make_tables)
    self._port = port
    self._launcher = launcher

  def run(self) -> None:
    processes.end_with(self._launcher)
    processes.say_if_back('replay', 'what the shard held')
    super().run()

  def bind_addresses(self, **kwargs) -> None:
    if self._port:
      self.reverb_address.bind(_FixedPort(self._port))
    else:
      super().bind_addresses(**kwargs)
