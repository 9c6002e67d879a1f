"""Stores how to reach a run's replay, in a file of its directory."""

import dataclasses
import json
import os
import shlex
import sys
from typing import Optional, Sequence

from programs.runtime import doors
from programs.runtime import processes

FILE = 'servers.json'


@dataclasses.dataclass(frozen=True)
class Servers:
  """How to reach a run's replay.

  Attributes:
    replay: 'host:port' of each shard.
    launcher: of the program; the servers end with it.
    network: the name of the run's own network; None if it is in that of its
      machine.
    way_in: the options of `nsenter` that lead into that network.
  """
  replay: tuple[str, ...]
  launcher: processes.Process
  network: Optional[str] = None
  way_in: Optional[str] = None


def write(run_dir: str, replay: Sequence[str],
          launcher: processes.Process) -> None:
  """Writes the file, or warns if it cannot be written."""
  servers = Servers(tuple(replay), launcher, *(doors.own_network() or ()))
  path = os.path.join(run_dir, FILE)
  try:
    with open(f'{path}.new', 'w') as f:
      json.dump(dataclasses.asdict(servers), f, indent=2)
      f.write('\n')
    os.replace(f'{path}.new', path)
  except OSError as e:
    print(f'warning: {path} cannot be written ({e}); training goes on, but '
          'launch.inspect needs --address.', file=sys.stderr, flush=True)


def read(run_dir: str) -> Servers:
  """Reads the file of a run that is in progress.

  Args:
    run_dir: its directory.

  Returns:
    How to reach its replay from this process.

  Raises:
    ValueError: if it cannot be reached; in one line.
  """
  path = os.path.join(run_dir, FILE)
  try:
    with open(path) as f:
      content = json.load(f)
    servers = Servers(**{**content, 'replay': tuple(content['replay']),
                         'launcher': processes.Process(**content['launcher'])})
  except FileNotFoundError:
    raise ValueError(
        f'{run_dir} has no {FILE}, which a run writes as it starts; give the '
        "directory of a run that goes on, or its replay's --address.") from None
  except (ValueError, TypeError, KeyError) as e:
    raise ValueError(f'{path} cannot be read: {e}.') from None
  if servers.launcher.is_gone():
    raise ValueError(f'no run goes on in {run_dir}: its process '
                     f'{servers.launcher.pid} has ended, and its replay with it.')
  if servers.network not in (None, doors.network()):
    raise ValueError(
        f'the run in {run_dir} is in a network of its own (--isolate); start this '
        f'command by `nsenter {servers.way_in} {shlex.join(sys.orig_argv)}`.')
  return servers
