"""Trains the agent: `python -m launch.train --game pong`."""

# ruff: noqa: E402
import signal
import sys

if __name__ == '__main__':
  # Nothing runs yet that would have to be stopped; the imports take seconds.
  signal.signal(signal.SIGINT, signal.SIG_DFL)

from launch import settings as settings_lib

if __name__ == '__main__':
  # Neither --help nor a bad flag waits for the imports below.
  with settings_lib.errors_in_one_line():
    settings_lib.parse_train(sys.argv[1:])

import contextlib
import os
import socket
from typing import Optional, Sequence

from acme import specs
import tensorflow as tf

from agents.impala_ppo import builder as builder_lib
from launch.engines import local
from programs import config as run_config
from programs import impala_ppo
from programs import sizes
from programs.runtime import checkpoints
from programs.runtime import doors


def _prepare(argv: Sequence[str]
             ) -> tuple[settings_lib.TrainCommand, settings_lib.Settings]:
  """Settles the settings and the run directory; raises ValueError in one line."""
  command, settings = settings_lib.parse_train(argv)
  run_dir = settings.run.run_dir
  if not command.resume and os.path.isdir(run_dir) and (
      set(os.listdir(run_dir)) - {settings_lib.CONFIG_FILE, local.LOGS}):
    raise ValueError(
        f'{run_dir} holds another run; go on with it by --resume, or give '
        'another --run_dir.')
  # May start this command anew, in a network of its own.
  doors.enter(settings.run.listen, settings.run.isolate,
              threads=command.lp_launch_type == 'local_mt')
  _check_ports(settings.run)
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


def _check_checkpoint(settings: settings_lib.Settings,
                      builder: builder_lib.ImpalaPPOBuilder,
                      environment_spec: specs.EnvironmentSpec):
  run_dir = settings.run.run_dir
  path = checkpoints.discard_broken(run_dir)
  if path is None:
    raise ValueError(f'{run_dir} holds no whole checkpoint to resume from; '
                     'start anew in another --run_dir.')
  networks = builder.make_networks(environment_spec)
  networks.create_variables()
  checkpoints.check_matches(path, networks.actor_critic.variables,
                            'actor_critic')
  if networks.decoder is not None:
    checkpoints.check_matches(path, networks.decoder.variables, 'decoder')


def main(argv: Optional[Sequence[str]] = None) -> int:
  """Trains until done or told to stop; returns the exit code."""
  with settings_lib.errors_in_one_line():
    command, settings = _prepare(sys.argv[1:] if argv is None else argv)
    environment_spec = settings.environment.try_out(settings.run.seed)
    builder = builder_lib.ImpalaPPOBuilder(
        settings.agent, _devices(settings.run.num_gpus))
    if command.lp_launch_type == 'local_mp':
      tf.config.set_visible_devices([], 'GPU')  # They are the learner's.
    builder.make_networks(environment_spec)
    sizes.check(settings.agent, settings.run, environment_spec,
                threads=command.lp_launch_type == 'local_mt')
    if command.resume:
      _check_checkpoint(settings, builder, environment_spec)
    try:
      os.makedirs(settings.run.run_dir, exist_ok=True)
      settings_lib.save(settings)
    except (OSError, ValueError) as e:
      raise ValueError(f'nothing can be written to run_dir ({e}); give another '
                       '--run_dir.') from None

  print(f'Training on {settings.environment.game} into {settings.run.run_dir}; '
        'the nodes take a moment to start.', flush=True)
  program = impala_ppo.make_program(
      builder, settings.environment.make, environment_spec, settings.run,
      verbose=True)
  return local.run_program(program, command.lp_launch_type,
                           settings.run.run_dir, settings.run.restart)


if __name__ == '__main__':
  sys.exit(main())
