"""Hosts of a cluster on this machine: namespaces, each with an address.

Each host has its own processes, mounts, name and network interface, on a wire that
all hosts share and that may be slow. Nothing outlives this process, or a host that
is killed: namespaces end with their last process.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from typing import Iterator, Optional, Sequence

import psutil

from launch.engines import child
from programs.runtime import processes

_NETWORK = '10.78.0'
_PORT = 6379
# Large, for fewer frames: a wire that delays them without the kernel's help is busy.
_MTU = 9000
_UNSHARE = ['unshare', '--net', '--uts', '--pid', '--mount', '--fork',
            '--kill-child', '--mount-proc']
# Process 1 waits for no child; it ignores SIGCHLD so that ended processes go away.
_HOLD = ('{}ip link set lo up && echo ready && '
         'exec env --ignore-signal=CHLD sleep infinity')
_STORE_BYTES = 80 * 2**20


def _end_with_parent() -> None:
  child.end_with_parent(signal.SIGKILL)


def output(command: Sequence[str], shown: Sequence[str]) -> str:
  """Runs a command; returns what it prints.

  Args:
    command: to run.
    shown: the command that an error names instead.

  Raises:
    OSError: if it fails, with what it printed.
  """
  done = subprocess.run(command, stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT, text=True)
  if done.returncode:
    raise OSError(f'{" ".join(shown)}: {done.stdout.strip()}')
  return done.stdout


class Namespace:
  """Namespaces that last until they are closed, or this process ends."""
  # What commands enter; the rest stays as it is here.
  _entered: Sequence[str] = ('--net', '--uts', '--pid', '--mount')

  def __init__(self, setup: str = ''):
    """Makes namespaces.

    Args:
      setup: shell commands that run there first.

    Raises:
      OSError: if that is not permitted.
    """
    self._holder = subprocess.Popen(
        [*_UNSHARE, 'sh', '-c', _HOLD.format(setup and f'{setup} && ')],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=_end_with_parent)
    assert self._holder.stdout is not None
    said = self._holder.stdout.readline().strip()
    if said != 'ready':
      self._holder.kill()
      raise OSError(said)
    first, = psutil.Process(self._holder.pid).children()
    self.pid = first.pid

  def command(self, *args: str) -> list[str]:
    """Returns a command that runs the given one there, in the same folder."""
    return ['nsenter', '--target', str(self.pid), *self._entered, 'env', '-C',
            os.getcwd(), *args]

  def run(self, *args: str) -> str:
    """Runs a command there; returns what it prints."""
    return output(self.command(*args), args)

  def close(self) -> None:
    """Kills every process there."""
    with contextlib.suppress(ProcessLookupError):
      os.kill(self.pid, signal.SIGKILL)
    self._holder.wait()


class Wire(Namespace):
  """What hosts are plugged into."""
  _entered = ('--net',)


class Host(Namespace):
  """A host.

  Attributes:
    address: its address on the wire.
  """

  def __init__(self, number: int, wire: Wire, private: str):
    """Makes a host and plugs it in.

    Args:
      number: of the host, from 1.
      wire: the one that all hosts share.
      private: a folder that on each host is its own, and empty.
    """
    self.port = f'port{number}'
    self.address = f'{_NETWORK}.{number}'
    super().__init__(f'mount -t tmpfs tmpfs {private} && '
                     f'echo host{number} > /proc/sys/kernel/hostname')
    mtu = ['mtu', str(_MTU)]
    wire.run('ip', 'link', 'add', self.port, *mtu, 'type', 'veth', 'peer', 'name',
             'eth0', *mtu, 'netns', str(self.pid))
    self.run('ip', 'address', 'add', f'{self.address}/24', 'dev', 'eth0')
    self.run('ip', 'link', 'set', 'eth0', 'up')
    wire.run('ip', 'link', 'set', self.port, 'up')

  def processes(self) -> Iterator[psutil.Process]:
    """Yields the processes that run here."""
    namespace = os.readlink(f'/proc/{self.pid}/ns/net')
    for process in psutil.process_iter():
      with contextlib.suppress(OSError, psutil.Error):
        if os.readlink(f'/proc/{process.pid}/ns/net') == namespace:
          yield process

  def nodes(self) -> dict[str, psutil.Process]:
    """Returns the processes of the nodes that run here, by their names."""
    found = {}
    for process in self.processes():
      with contextlib.suppress(psutil.Error):
        name = process.environ().get(processes.NODE_VARIABLE)
        if name is not None and 'process_entry' in ' '.join(process.cmdline()):
          found[name] = process
    return found


class Hosts:
  """Hosts on a wire, with Ray on each; the first is the head.

  Attributes:
    hosts: by their numbers, from 1.
  """

  def __init__(self, cpus: Sequence[int], delay_ms: float = 0.):
    """Makes hosts and starts Ray on them.

    Args:
      cpus: how many each host claims to have.
      delay_ms: milliseconds that the wire adds one way.

    Raises:
      OSError: if that is not permitted.
    """
    self._delay_ms = delay_ms
    # A short path, as there are sockets in it.
    self._private = tempfile.mkdtemp(prefix='ray')
    self.hosts: dict[int, Host] = {}
    self._wire = Wire()
    self._carrier: Optional[subprocess.Popen] = None
    try:
      if delay_ms and not self._has_netem():
        self._carrier = subprocess.Popen(self._wire.command(
            sys.executable, '-m', 'benchmarks.wire', str(delay_ms)),
                                         preexec_fn=_end_with_parent)
      else:
        self._wire.run('ip', 'link', 'add', 'bridge', 'type', 'bridge')
        self._wire.run('ip', 'link', 'set', 'bridge', 'up')
      for number, has in enumerate(cpus, 1):
        self.add(number, has)
    except BaseException:
      self.close()
      raise

  @property
  def head(self) -> Host:
    return self.hosts[1]

  def add(self, number: int, cpus: int) -> Host:
    """Adds a host, or brings one back, and starts Ray on it."""
    host = Host(number, self._wire, self._private)
    self.hosts[number] = host
    if self._carrier is not None:
      host.run(sys.executable, '-c', 'from benchmarks import wire; '
               'wire.keep_frames_whole("eth0")')
    else:
      self._wire.run('ip', 'link', 'set', host.port, 'master', 'bridge')
      if self._delay_ms:
        self._wire.run(*self._netem(host.port))
    where = (['--head', f'--port={_PORT}', f'--temp-dir={self._private}',
              '--include-dashboard=false'] if number == 1 else
             [f'--address={self.head.address}:{_PORT}'])
    host.run(sys.executable, '-m', 'ray.scripts.scripts', 'start', *where,
             f'--node-ip-address={host.address}', f'--num-cpus={cpus}',
             f'--object-store-memory={_STORE_BYTES}', '--disable-usage-stats')
    return host

  def _netem(self, interface: str) -> list[str]:
    return ['tc', 'qdisc', 'add', 'dev', interface, 'root', 'netem', 'delay',
            f'{self._delay_ms}ms']

  def _has_netem(self) -> bool:
    try:
      self._wire.run(*self._netem('lo'))
    except OSError:
      return False
    return True

  def kill(self, number: int) -> None:
    """Kills a host, as if it lost power."""
    self.hosts.pop(number).close()

  def node(self, name: str) -> tuple[int, psutil.Process]:
    """Returns the number of the host that a node is on, and its process."""
    for number, host in self.hosts.items():
      process = host.nodes().get(name)
      if process is not None:
        return number, process
    raise KeyError(f'there is no node {name}.')

  def bytes_carried(self) -> int:
    """Returns how many bytes the wire has carried from host to host."""
    lines = self._wire.run('cat', '/proc/net/dev').splitlines()[2:]
    counts = {line.split(':')[0].strip(): line.split(':')[1].split()
              for line in lines}
    return sum(int(counts[host.port][0]) for host in self.hosts.values())

  def memory_gib(self) -> float:
    """Returns the proportional set size of all processes of all hosts."""
    total = 0
    for host in self.hosts.values():
      for process in host.processes():
        with contextlib.suppress(psutil.Error):
          total += process.memory_full_info().pss
    return total / 2**30

  def close(self) -> None:
    if self._carrier is not None:
      self._carrier.kill()
      self._carrier.wait()
    for host in [*self.hosts.values(), self._wire]:
      host.close()
    shutil.rmtree(self._private, ignore_errors=True)


@contextlib.contextmanager
def made(cpus: Sequence[int], delay_ms: float = 0.) -> Iterator[Hosts]:
  """Makes hosts as `Hosts` does, and closes them at the end."""
  hosts = Hosts(cpus, delay_ms)
  try:
    yield hosts
  finally:
    hosts.close()
