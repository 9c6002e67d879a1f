"""Trains the agent: `python -m launch.train --game pong`."""

# ruff: noqa: E402
import signal
import sys

if __name__ == '__main__':
  # Nothing runs yet that would have to be stopped; the imports take seconds.
  signal.signal(signal.SIGINT, signal.SIG_DFL)

from launch import flags
from launch import settings as settings_lib

if __name__ == '__main__':
  # Neither --help nor a bad flag waits for the imports below.
  with flags.errors_in_one_line():
    settings_lib.parse_train(sys.argv[1:])

import contextlib
import os
import socket
from typing import Any, Mapping, Optional, Sequence

from acme import specs
import tensorflow as tf

from agents.impala_ppo import builder as builder_lib
from launch.engines import local
from programs import config as run_config
from programs import impala_ppo
from programs import sizes
from programs.nodes import counter
from programs.nodes import limiter
from programs.runtime import checkpoints
from programs.runtime import doors
from programs.runtime import locks
from programs.runtime import records
from programs.runtime import servers

FLAGS = settings_lib.FLAGS


def _prepare(argv: Sequence[str]
             ) -> tuple[settings_lib.TrainCommand, settings_lib.Settings]:
  """Settles the settings and the run directory; raises ValueError in one line."""
  command, settings = settings_lib.parse_train(argv)
  run_dir = settings.run.run_dir
  if not command.resume and os.path.isdir(run_dir) and (
      set(os.listdir(run_dir)) - {settings_lib.CONFIG_FILE, local.LOGS,
                                  locks.FILE, servers.FILE}):
    raise ValueError(
        f'{run_dir} holds another run; go on with it by --resume, or give '
        'another --run_dir.')
  # May start this command anew, in a network of its own.
  doors.enter(settings.run.listen, settings.run.isolate,
              threads=command.lp_launch_type == 'local_mt')
  return command, settings


def _check_ports(run: run_config.RunConfig):
  if not run.replay_port:
    return
  for port in range(run.replay_port, run.replay_port + run.num_replay_shards):
    with contextlib.closing(socket.socket()) as probe:
      probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      try:
        probe.bind(('', port))
      except OSError as e:
        raise ValueError(f'replay port {port} cannot be used '
                         f'({(e.strerror or str(e)).lower()}); give another '
                         '--replay_port.') from None


def _devices(num_gpus: Optional[int]) -> list[str]:
  """Returns the learner's devices; raises ValueError where they are missing."""
  there = len(tf.config.list_physical_devices('GPU'))
  if num_gpus is None:
    num_gpus = there
  if num_gpus > there:
    raise ValueError(f'num_gpus is {num_gpus}, but TensorFlow finds {there}; '
                     'give a number that it finds, or 0 for the CPU.')
  return [f'/gpu:{i}' for i in range(num_gpus)] or ['/cpu:0']


def _say(line: str) -> None:
  print(f'train: {line}', flush=True)


def _check_checkpoint(path: str, builder: builder_lib.ImpalaPPOBuilder,
                      environment_spec: specs.EnvironmentSpec):
  networks = builder.make_networks(environment_spec)
  networks.create_variables()
  checkpoints.check_matches(path, networks.actor_critic.variables,
                            'actor_critic')
  if networks.decoder is not None:
    checkpoints.check_matches(path, networks.decoder.variables, 'decoder')


def _newest_checkpoint(run_dir: str) -> str:
  path = checkpoints.discard_broken(run_dir, _say)
  if path is None:
    raise ValueError(f'{run_dir} holds no whole checkpoint to resume from; '
                     'start anew in another --run_dir.')
  return path


def _why_done(run: run_config.RunConfig,
              progress: Mapping[str, Any]) -> Optional[str]:
  """Returns why a run that was to be resumed has nothing left to do, or None."""
  counts = progress['counts']
  if limiter.has_budget_spent(counts, run.max_timesteps):
    return (f'has reached its budget, with {counts["actor_steps"]:,} of '
            f'{run.max_timesteps:,} timesteps; give a larger --max_timesteps to go '
            'on')
  returns = counter.ReturnsWindow()
  returns.extend(progress['returns'])
  if limiter.has_target_reached(returns.full_mean(), run.target_return):
    return (f'has reached its target, with a mean return of {returns.mean():g}; '
            'give a higher --target_return to go on')
  return None


def _go_back_to(run_dir: str, progress: Mapping[str, Any]) -> None:
  """Makes the records of a run those of its newest checkpoint."""
  timesteps = progress['counts'].get('actor_steps', 0)
  for file in (records.PROGRESS_FILE, records.EVALUATION_FILE):
    try:
      num_rows = records.cut_after(run_dir, file, timesteps)
    except OSError as e:
      _say(f'warning: {file} cannot be cut at the checkpoint ({e}).')
      continue
    if num_rows:
      _say(f'{file}: moved {num_rows} rows past the {timesteps:,} timesteps of the '
           f'checkpoint to {file}.cut.')
  records.KeptState(run_dir).discard()


def main(argv: Optional[Sequence[str]] = None) -> int:
  """Trains until done or told to stop; returns the exit code."""
  with contextlib.ExitStack() as stack:
    return _train(sys.argv[1:] if argv is None else argv, stack)


def _train(argv: Sequence[str], stack: contextlib.ExitStack) -> int:
  """Trains, holding the run's directory for as long as the stack is there."""
  with flags.errors_in_one_line():
    command, settings = _prepare(argv)
    run_dir = settings.run.run_dir
    if command.resume:
      lock = stack.enter_context(locks.held(run_dir))
      checkpoint = _newest_checkpoint(run_dir)
      progress = checkpoints.progress(checkpoint)
      done = _why_done(settings.run, progress)
      if done is not None:
        _say(f'{run_dir} {done}.')
        return 0
    _check_ports(settings.run)
    environment_spec = settings.environment.try_out(settings.run.seed)
    builder = builder_lib.ImpalaPPOBuilder(
        settings.agent, _devices(settings.run.num_gpus))
    if command.lp_launch_type == 'local_mp':
      tf.config.set_visible_devices([], 'GPU')  # They are the learner's.
    builder.make_networks(environment_spec)
    sizes.check(settings.agent, settings.run, environment_spec,
                threads=command.lp_launch_type == 'local_mt')
    if command.resume:
      _check_checkpoint(checkpoint, builder, environment_spec)
    try:
      os.makedirs(run_dir, exist_ok=True)
      if not command.resume:
        lock = stack.enter_context(locks.held(run_dir))
      checkpoints.check_space(
          run_dir, *sizes.of_variables(settings.agent, environment_spec))
      settings_lib.save(settings)
    except OSError as e:
      raise ValueError(f'nothing can be written to run_dir ({e}); give another '
                       '--run_dir.') from None
    if command.resume:
      _go_back_to(run_dir, progress)

  print(f'Training on {settings.environment.game} into {run_dir}; the '
        'nodes take a moment to start.', flush=True)
  program = impala_ppo.make_program(
      builder, settings.environment.make, environment_spec, settings.run,
      verbose=True)
  return local.run_program(program, command.lp_launch_type, run_dir,
                           settings.run.restart, keep_open=[lock])


if __name__ == '__main__':
  sys.exit(main())
