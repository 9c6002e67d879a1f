"""The node that serves one shard of the replay."""

from typing import Callable, Sequence

import launchpad as lp
import reverb


class _FixedPort(lp.AbstractAddressBuilder):

  def __init__(self, port: int):
    self._port = port

  def build(self) -> str:
    return f'localhost:{self._port}'


class ReplayNode(lp.ReverbNode):
  """A Reverb node whose port can be chosen."""

  def __init__(self, make_tables: Callable[[], Sequence[reverb.Table]],
               port: int):
    """Makes a node.

    Args:
      make_tables: called in the node's process.
      port: to listen on; 0 picks a free one.
    """
    super().__init__(make_tables)
    self._port = port

  def bind_addresses(self, **kwargs) -> None:
    if self._port:
      self.reverb_address.bind(_FixedPort(self._port))
    else:
      super().bind_addresses(**kwargs)
