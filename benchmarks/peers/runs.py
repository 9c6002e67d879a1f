"""Runs this project, or what people would use instead, and reads the rows."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Mapping, Optional, Sequence

import psutil

from benchmarks import common
from launch import settings as settings_lib
from programs.runtime import records

OURS = 'ours'
RUN_FILE = 'run.json'
# Takes the rows so far; returns whether to stop.
Until = Callable[[Sequence[common.Row]], bool]
# Peers that play any game: their script, and its arguments after the game. A script
# has the name by which install.sh knows what it needs.
_ANY_GAME = {'cleanrl_ppo': ('cleanrl_ppo', '84'),
             'cleanrl_ppo_42': ('cleanrl_ppo', '42'),
             'sb3_ppo': ('sb3_ppo',)}
_ONLY_PONG = ('acme_impala', 'rllib_appo', 'sample_factory_appo')
PEERS = (*_ANY_GAME, *_ONLY_PONG)
_DIRECTORY = pathlib.Path(__file__).parent
_START_SECONDS = 300.
_STOP_SECONDS = 20.
_LOOK_SECONDS = 5.


def plays(peer: str, game: str) -> bool:
  """Returns whether a peer's script can play a game."""
  return game == 'pong' or peer not in _ONLY_PONG


def installed_as(peer: str) -> str:
  """Returns the name by which install.sh knows what a peer needs."""
  return _ANY_GAME.get(peer, (peer,))[0]


def can_run(peer: str, environment: Optional[str]) -> bool:
  """Returns whether a peer's Python exists; ours is this one."""
  if peer == OURS:
    return True
  return environment is not None and os.path.exists(_python(environment))


def _python(environment: str) -> str:
  return os.path.join(os.path.abspath(environment), 'bin', 'python')


def made_on(peer: str, environment: str) -> dict[str, Any]:
  """Returns the software and hardware of a run that begins now."""
  used = settings_lib.used_on()
  if peer != OURS:
    installed = json.loads(subprocess.run(
        [_python(environment), '-m', 'pip', 'list', '--format', 'json'],
        check=True, capture_output=True, text=True).stdout)
    used['versions'] = {package['name']: package['version']
                        for package in installed}
  return used


def command(peer: str, environment: str, game: str, seed: int, run_dir: str,
            train_flags: Sequence[str] = ()) -> list[str]:
  """Returns the command that starts a peer.

  Args:
    peer: one of `PEERS`, or `OURS`.
    environment: the directory that install.sh made; not read for ours.
    game: a ROM's name, such as ms_pacman.
    seed: of the run.
    run_dir: where to put its rows.
    train_flags: of launch.train, for ours.
  """
  if peer == OURS:
    return [sys.executable, '-m', 'launch.train', '--game', game, '--run_dir',
            run_dir, '--seed', str(seed), '--max_timesteps', str(10**9),
            *train_flags]
  script, *options = _ANY_GAME.get(peer, (peer,))
  return [_python(environment),
          str(_DIRECTORY / f'{script}.py'),
          os.path.join(run_dir, records.PROGRESS_FILE), str(seed),
          *([game, *options] if peer in _ANY_GAME else [])]


def _stop(process: subprocess.Popen):
  """Ends a peer and whatever it has started."""
  everything = [psutil.Process(process.pid)]
  everything += everything[0].children(recursive=True)
  process.send_signal(signal.SIGTERM)
  _, alive = psutil.wait_procs(everything, _STOP_SECONDS)
  for other in alive:
    other.kill()
  process.wait()


def run(command: list[str], run_dir: str, seconds: float,
        until: Until) -> tuple[list[common.Row], float]:
  """Runs a peer; returns the rows that it wrote, and its peak memory in GiB.

  Args:
    command: starts the peer.
    run_dir: where it writes its rows.
    seconds: how long to run it after its first row.
    until: whether to stop earlier.

  Raises:
    RuntimeError: if it ends by itself, or does not start.
  """
  progress = os.path.join(run_dir, records.PROGRESS_FILE)
  output_path = os.path.join(os.path.dirname(run_dir), 'output.txt')
  with open(output_path, 'w') as output:
    process = subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT,
        # Ours finds its packages from here; the others write to their directory.
        cwd=None if 'launch.train' in command else run_dir,
        env={**os.environ, 'PYTHONPATH': ''})
    memory = 0.
    try:
      deadline = time.monotonic() + _START_SECONDS
      started = False
      while time.monotonic() < deadline:
        if process.poll() is not None:
          break
        rows = records.read(progress)
        if rows and not started:
          started = True
          deadline = time.monotonic() + seconds
        if until(rows):
          break
        memory = max(memory, common.memory_gib(psutil.Process(process.pid)))
        time.sleep(_LOOK_SECONDS)
      rows = records.read(progress)
      if process.poll() is not None or not rows:
        output.flush()
        with open(output_path) as f:
          tail = f.read()[-2000:]
        raise RuntimeError(f'it did not run; it said last:\n{tail}')
    finally:
      if process.poll() is None:
        _stop(process)
  return rows, memory


def keep(player: str, game: str, seed: int, rows: Sequence[common.Row], *,
         minutes: float, memory: float, machine: Mapping[str, Any],
         train_flags: Sequence[str] = ()) -> None:
  """Keeps a run's rows among the results, beside how it was made.

  Args:
    player: whose run it is, `OURS` or a peer.
    game: a ROM's name.
    seed: of the run.
    rows: that it wrote.
    minutes: that it was given.
    memory: its peak, in GiB.
    machine: what `made_on` returned before the run began.
    train_flags: of launch.train, for ours.
  """
  directory = common.keep_rows(game, f'peer_{player}', seed, rows)
  common.write_json(directory / RUN_FILE, {
      'player': player, 'game': game, 'seed': seed, 'minutes': minutes,
      'train_flags': list(train_flags), 'peak_memory_gib': round(memory, 2),
      **machine})


def play(peer: str, environment: str, game: str, seed: int, seconds: float,
         until: Until = lambda rows: False, train_flags: Sequence[str] = (),
         ) -> tuple[list[common.Row], float]:
  """Runs the command of `command` as `run` does, in a folder of its own."""
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
    run_dir = os.path.join(scratch, 'run')
    os.mkdir(run_dir)
    return run(command(peer, environment, game, seed, run_dir, train_flags),
               run_dir, seconds, until)
