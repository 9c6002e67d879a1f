"""Limits who can reach a program's ports, by default to this machine's processes.

Courier unpickles what it receives, and Reverb takes what is inserted: anyone who
reaches their ports can run code as the trainer. So a library (`doors.c`, built by
`pip install`) is preloaded into a program's processes. It turns a `bind` to all
addresses into one to a chosen address. Before launching from your own script:

    doors.close(config.listen)
    lp.launch(program, 'local_mp')

It has to be preloaded when a process starts. For servers in the script's own
process, such as those of `local_mt`, start the script with

    python -m programs.runtime.doors python script.py
"""

import argparse
import ctypes
import fcntl
import importlib.machinery
import ipaddress
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
from typing import NoReturn, Optional

LOOPBACK = 'loopback'
ALL = 'all'
# The address of each host in a cluster; an engine sets it in the variable.
CLUSTER = 'cluster'
# Read by the library.
_LISTEN_VARIABLE = 'IMPALA_PPO_LISTEN'
# The process that `preload` has restarted.
_RESTARTED_VARIABLE = 'IMPALA_PPO_RESTARTED'
# A process's own network, if it was started in one, and the way there.
_NETWORK_VARIABLE = 'IMPALA_PPO_NETWORK'
_WAY_IN_VARIABLE = 'IMPALA_PPO_WAY_IN'
_LIBRARY = pathlib.Path(__file__).with_name(
    '_doors' + importlib.machinery.EXTENSION_SUFFIXES[0])
# Binds to all addresses and prints the resulting address.
_PROBE = """
import socket, sys
probe = socket.socket(int(sys.argv[1]))
probe.bind(('', 0))
print(probe.getsockname()[0])
"""
# From <sched.h>, <linux/sockios.h> and <net/if.h>.
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


def host(listen: str) -> str:
  """Returns the address at which processes of this machine find each other.

  Args:
    listen: `loopback`, `all`, `cluster`, or an IP address.

  Raises:
    ValueError: for anything else, in one line.
  """
  if listen == CLUSTER:
    listen = os.environ.get(_LISTEN_VARIABLE) or LOOPBACK
  if listen in (LOOPBACK, ALL):
    return '127.0.0.1'
  try:
    address = ipaddress.ip_address(listen)
  except ValueError:
    address = None
  if address is None or address.is_unspecified or '%' in listen:
    raise ValueError(f"listen must be '{LOOPBACK}', '{ALL}', '{CLUSTER}' or an IP "
                     f'address of this machine, not {listen!r}.')
  return str(address)


def _family(listen: str) -> socket.AddressFamily:
  return socket.AF_INET6 if ':' in host(listen) else socket.AF_INET


def is_closed(listen: str) -> bool:
  """Tells whether this process listens only on the address of `listen`."""
  with socket.socket(_family(listen)) as probe:
    probe.bind(('', 0))
    return listen == ALL or probe.getsockname()[0] == host(listen)


def check(listen: str) -> None:
  """Raises RuntimeError if this process would listen on other addresses."""
  if not is_closed(listen):
    raise RuntimeError(
        f"other machines could reach this process, though listen is '{listen}': "
        'call programs.runtime.doors.close(config.listen) before launching; where '
        'nodes are threads, start by `python -m programs.runtime.doors COMMAND`.')


def close(listen: str = LOOPBACK) -> None:
  """Makes future child processes listen on one address only.

  Args:
    listen: `loopback`, an IP address of this machine, or `all` for no limit.

  Raises:
    ValueError: if it is not an address of this machine, or the library cannot be
      loaded; in one line.
  """
  os.environ.update(closed(listen))


def closed(listen: str) -> dict[str, str]:
  """Returns environment variables that limit a process to one address.

  Arguments and errors are those of `close`.
  """
  if listen == ALL:
    return {_LISTEN_VARIABLE: ALL}
  address = host(listen)
  with socket.socket(_family(listen)) as probe:
    try:
      probe.bind((address, 0))
    except OSError as e:
      raise ValueError(f'cannot listen on {listen} ({e.strerror}); give '
                       'an address of this machine.') from None
  variables = {_LISTEN_VARIABLE: address, 'LD_PRELOAD': _preloaded()}
  probed = subprocess.run(
      [sys.executable, '-I', '-c', _PROBE, str(int(_family(listen)))],
      env={**os.environ, **variables}, capture_output=True, text=True)
  if probed.stdout.strip() != address:
    raise ValueError(_why_not_loaded())
  return variables


def _preloaded() -> str:
  """Returns LD_PRELOAD with the library first."""
  others = re.split('[ :]+', os.environ.get('LD_PRELOAD', ''))
  return ':'.join(filter(None, dict.fromkeys([str(_LIBRARY), *others])))


def preload() -> None:
  """Restarts this process with the library, so that `close` closes it and its forks.

  Until `close` is called, nothing is limited. It does nothing if the library is
  preloaded already, or does not load; `close` reports the latter. Call it before all
  else, as everything up to here is done again.
  """
  restarted = os.environ.get(_RESTARTED_VARIABLE) == str(os.getpid())
  if restarted or _preloaded() == os.environ.get('LD_PRELOAD'):
    return
  try:
    ctypes.CDLL(str(_LIBRARY))
  except OSError:
    return
  # An id that lasts, or a system that drops LD_PRELOAD would restart it for ever.
  os.environ[_RESTARTED_VARIABLE] = str(os.getpid())
  os.environ['LD_PRELOAD'] = _preloaded()
  os.environ.setdefault(_LISTEN_VARIABLE, ALL)
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _why_not_loaded() -> str:
  if not _LIBRARY.exists():
    why = f'{_LIBRARY} is missing; `pip install -e .` builds it, with gcc'
  elif re.search('[ :]', str(_LIBRARY)):
    why = f'{_LIBRARY} has a space or a colon in its path, which no preload takes'
  else:
    why = f'{_LIBRARY} does not load; `pip install -e .` builds it anew, with gcc'
  return (f'cannot keep other machines out: {why}. --listen {ALL} starts without, '
          'and lets everybody in.')


def enter(listen: str, isolate: bool) -> None:
  """Limits the addresses of future nodes, restarting this process if needed.

  Args:
    listen: as `close` takes it.
    isolate: whether this process has to be in a network of its own.

  Raises:
    ValueError: as `close` does.
  """
  close(listen)
  if isolate and own_network() is None:
    # A process moves there before it has threads.
    os.execv(sys.executable, [
        sys.executable, '-m', 'programs.runtime.doors', '--listen', listen,
        '--isolate', sys.executable, *sys.orig_argv[1:]])


def network() -> str:
  """Returns the name of the network that this process is in."""
  return os.readlink('/proc/self/ns/net')


def own_network() -> Optional[tuple[str, str]]:
  """Returns the network that `isolate` moved this process to.

  That is its name, and the options of `nsenter` that lead there; None if the
  process is in the network of its machine.
  """
  if os.environ.get(_NETWORK_VARIABLE) != network():
    return None
  return network(), os.environ[_WAY_IN_VARIABLE]


def _isolate() -> str:
  """Moves this process to a network of its own that has loopback only.

  Returns:
    The options of `nsenter` that lead there from outside.

  Raises:
    OSError: if the system does not allow it.
  """
  way_in = f'--target {os.getpid()} --net'
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.unshare(_CLONE_NEWNET):  # All but root need a user namespace too.
    way_in += ' --user --preserve-credentials'
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
      error = ctypes.get_errno()
      raise OSError(error, os.strerror(error))
    for file, content in (('uid_map', f'{user} {user} 1'), ('setgroups', 'deny'),
                          ('gid_map', f'{group} {group} 1')):
      pathlib.Path('/proc/self', file).write_text(content)
  with socket.socket() as s:
    fcntl.ioctl(s, _SIOCSIFFLAGS, struct.pack('16sh22x', b'lo', _IFF_UP))
  os.environ[_NETWORK_VARIABLE] = network()
  os.environ[_WAY_IN_VARIABLE] = way_in
  return way_in


def main(argv: Optional[list[str]] = None) -> NoReturn:
  """Runs a command whose servers listen on one address only."""
  parser = argparse.ArgumentParser(
      prog='python -m programs.runtime.doors', description=main.__doc__)
  parser.add_argument('--listen', default=LOOPBACK,
                      help=f"where its servers listen: '{LOOPBACK}', '{ALL}', or an "
                      'IP address of this machine. Default: loopback.')
  parser.add_argument('--isolate', action='store_true',
                      help='in a network of its own, where nobody else is.')
  parser.add_argument('command', nargs=argparse.REMAINDER, metavar='COMMAND',
                      help='what to run.')
  flags = parser.parse_args(argv)
  if not flags.command:
    _fail('COMMAND is missing; give what to run.')
  try:
    close(flags.listen)
    if flags.isolate:
      print(f'In a network of its own; `nsenter {_isolate()} COMMAND` runs another '
            'command there.', flush=True)
  except ValueError as e:
    _fail(str(e))
  except OSError as e:
    _fail(f'--isolate needs network and user namespaces, which this system does not '
          f'let you make ({e.strerror}); leave it out, or ask for them.')
  try:
    os.execvp(flags.command[0], flags.command)
  except OSError as e:
    _fail(f'cannot run {flags.command[0]} ({e.strerror}).')


def _fail(message: str) -> NoReturn:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


if __name__ == '__main__':
  main()
