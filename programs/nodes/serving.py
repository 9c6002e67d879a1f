"""Launchpad's serving nodes, with addresses that can be chosen."""

from typing import Any, Callable, Sequence

import launchpad as lp
from launchpad import address as address_lib
import reverb

from programs.runtime import doors
from programs.runtime import processes


class At(lp.AbstractAddressBuilder):
  """Makes the address of a host and a port."""

  def __init__(self, host: str, port: int):
    self._address = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'

  def build(self) -> str:
    return self._address


def _move(address: lp.Address, listen: str, port: int = 0) -> None:
  """Rebinds an address to where the node will listen."""
  port = port or address_lib.get_port_from_address(address.resolve())
  address.bind(At(doors.host(listen), port))


class CourierNode(lp.CourierNode):
  """A Courier node whose interface can be chosen."""

  def __init__(self, listen: str, constructor: Callable[..., Any], *args: Any):
    """Makes a node.

    Args:
      listen: as in `RunConfig`.
      constructor: makes the served object, in the node's process.
      *args: of the constructor.
    """
    super().__init__(constructor, *args)
    self._listen = listen

  def bind_addresses(self, **kwargs) -> None:
    super().bind_addresses(**kwargs)
    _move(self.courier_address, self._listen)


class ReplayNode(lp.ReverbNode):
  """A Reverb node whose interface and port can be chosen.

  Attributes:
    port: to listen on; 0 for any that is free.
  """

  def __init__(self, make_tables: Callable[[], Sequence[reverb.Table]],
               listen: str, port: int, launcher: processes.Process):
    """Makes a node.

    Args:
      make_tables: called in the node's process.
      listen: as in `RunConfig`.
      port: as the attribute.
      launcher: of the program; the node ends with it.
    """
    super().__init__(make_tables)
    self._listen = listen
    self.port = port
    self._launcher = launcher

  def run(self) -> None:
    processes.set_up_node(self._launcher)
    doors.check(self._listen)
    processes.say_if_back('replay', 'what the shard held')
    super().run()

  def bind_addresses(self, **kwargs) -> None:
    super().bind_addresses(**kwargs)
    _move(self.reverb_address, self._listen, self.port)
