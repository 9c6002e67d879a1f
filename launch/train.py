"""Trains the agent: `python -m launch.train --game pong`."""

# ruff: noqa: E402
import signal
import sys

if __name__ == '__main__':
  # Nothing is running yet that must be stopped; the imports take seconds.
  signal.signal(signal.SIGINT, signal.SIG_DFL)

from programs.runtime import doors

if __name__ == '__main__':
  doors.preload()  # Nodes will be forks of this process, or its threads.

import contextlib
import importlib.util
import os
from typing import Any, Mapping, Optional, Sequence

from launch import errors
from launch import settings as settings_lib
from launch.views import printing
from launch.views import watching
from programs.runtime import locks
from programs.runtime import servers


def _prepare(argv: Sequence[str]
             ) -> tuple[settings_lib.TrainCommand, settings_lib.Settings]:
  """Does all that needs no slow import: parses flags, checks, closes the doors.

  Raises:
    ValueError: if something is wrong; the message is one line.
  """
  command, settings = settings_lib.parse_train(argv)
  run_dir = settings.run.run_dir
  if not command.resume and os.path.isdir(run_dir) and (
      set(os.listdir(run_dir)) - {settings_lib.CONFIG_FILE, settings_lib.LOGS,
                                  locks.FILE, servers.FILE}):
    raise ValueError(
        f'{run_dir} holds another run; go on with it by --resume, or give '
        'another --run_dir.' if settings_lib.can_resume(run_dir) else
        f'{run_dir} is not empty, and holds no checkpoint to resume from; remove '
        'it, or give another --run_dir.')
  track = settings.run.track
  if track is not None and importlib.util.find_spec(track) is None:
    raise ValueError(f"track '{track}' needs a package that is not installed; "
                     f'`pip install "impala-ppo[{track}]"` installs it.')
  if not command.on_cluster:
    # May restart this command, in a network of its own.
    doors.enter(settings.run.listen, settings.run.isolate)
  if not command.quiet:
    printing.print_line(
        f'Training on {settings.environment.game} into {run_dir}; it takes a moment '
        'to start.', sys.stdout)
  return command, settings


if __name__ == '__main__':
  # --help and bad flags do not wait for the imports below.
  with errors.in_one_line():
    _command, _settings = _prepare(sys.argv[1:])

import tensorflow as tf

from agents import cuda
from agents.impala_ppo import builder as builder_lib
from agents.impala_ppo import config as agent_config
from agents.impala_ppo import values
from launch import policies
from launch.engines import child
from launch.engines import fork_server
from launch.engines import local
from programs import config as run_config
from programs import impala_ppo
from programs import sizes
from programs.nodes import counter
from programs.nodes import limiter
from programs.nodes import watchdog
from programs.runtime import checkpoints
from programs.runtime import processes
from programs.runtime import records

FLAGS = settings_lib.FLAGS


def _check_ports(run: run_config.RunConfig) -> None:
  if not run.replay_port:
    return
  for wanted in range(run.replay_port, run.replay_port + run.num_replay_shards):
    port, why = child.find_port(wanted)
    if why is not None:
      raise ValueError(f'replay port {port} cannot be used ({why}); give another '
                       '--replay_port.')


def _num_gpus(wanted: Optional[int], batch_size: int,
              cluster: Optional[Any]) -> int:
  """Returns how many GPUs to use; raises ValueError if they are missing.

  By default, it is as many of those found as batches can be split over.
  """
  if cluster is not None:  # It looks for GPUs when it reserves them.
    return _most_that_share(cluster.most_gpus(), batch_size) if (
        wanted is None) else wanted
  there = len(tf.config.list_physical_devices('GPU'))
  why = None if there or wanted == 0 else cuda.why_unusable()
  if wanted is None:
    if why is not None:
      _warn(f'no GPU is used: {why}.')
    return _most_that_share(there, batch_size)
  if wanted > there:
    raise ValueError(
        f'num_gpus is {wanted}, but TensorFlow finds {there}' + (
            f': {why}' if why else '') +
        '; give a number that it finds, or 0 for the CPU.')
  return wanted


def _most_that_share(num_gpus: int, batch_size: int) -> int:
  used = max(n for n in range(num_gpus + 1) if not n or batch_size % n == 0)
  if used < num_gpus:
    _warn(f'{used} of {num_gpus} GPUs are used, as batches of {batch_size} cannot '
          'be split evenly over more; give a --batch_size that is a multiple of '
          f'{num_gpus}.')
  return used


def _make_builder(agent: agent_config.ImpalaPPOConfig,
                  num_gpus: int) -> builder_lib.ImpalaPPOBuilder:
  """Makes the builder; raises ValueError (one line) if it would need a GPU."""
  if agent.compute_dtype == 'float16' and not num_gpus:
    raise ValueError('compute_dtype float16 is for GPUs, and none is used; a CPU '
                     'takes a hundred times as long for it as for float32.')
  return builder_lib.ImpalaPPOBuilder(
      agent, [f'/gpu:{i}' for i in range(num_gpus)] or ['/cpu:0'])


def _cluster(command: settings_lib.TrainCommand, run: run_config.RunConfig) -> Any:
  """Connects to the Ray cluster; raises ValueError with a one-line message."""
  with errors.extra('ray'):  # Its import takes time.
    from launch.engines import ray as ray_engine
  return ray_engine.Cluster(command.ray_address,
                            1 + run.num_replay_shards + run.num_actors, run.listen)


def _say(line: str) -> None:
  printing.print_line(f'train: {line}', sys.stdout)


def _warn(line: str) -> None:
  printing.print_line(f'train: warning: {line}', sys.stderr)


def _check_values(run_dir: str, agent: agent_config.ImpalaPPOConfig) -> None:
  """Rejects settings by which the values of a run would mean something else."""
  before = settings_lib.load(run_dir).agent
  if before.value_loss == agent.value_loss == 'hl_gauss' and (
      values.make_bins(before) != values.make_bins(agent)):
    raise ValueError(
        f'{run_dir} has learned values with --discount {before.discount:g} '
        f'--max_abs_reward {before.max_abs_reward:g}, from which their bins follow '
        '(--value_loss hl_gauss); go on with these, or start anew in another '
        '--run_dir.')


def _newest_checkpoint(run_dir: str) -> str:
  path = checkpoints.discard_broken(run_dir, _say)
  if path is None:
    raise ValueError(f'{run_dir} holds no whole checkpoint to resume from; '
                     'start anew in another --run_dir.')
  return path


def _why_done(run: run_config.RunConfig,
              progress: Mapping[str, Any]) -> Optional[str]:
  """Returns why a run to be resumed has nothing left to do, or None."""
  counts = progress['counts']
  if limiter.is_budget_spent(counts, run.max_timesteps):
    return (f'has reached its budget, with {counts["actor_steps"]:,} of '
            f'{run.max_timesteps:,} timesteps; give a larger --max_timesteps to go '
            'on')
  returns = counter.ReturnsWindow()
  returns.extend(progress['returns'])
  if limiter.is_target_reached(returns.full_mean(), run.target_return):
    return (f'has reached its target, with a mean return of {returns.mean():g}; '
            'give a higher --target_return to go on')
  return None


def _go_back_to(run_dir: str, progress: Mapping[str, Any]) -> None:
  """Cuts a run's records back to its newest checkpoint."""
  timesteps = progress['counts'].get('actor_steps', 0)
  for file in (records.PROGRESS_FILE, records.EVALUATION_FILE):
    try:
      num_rows = records.cut_after(run_dir, file, timesteps)
    except OSError as e:
      _warn(f'{file} cannot be cut at the checkpoint ({e}).')
      continue
    if num_rows:
      _say(f'{file}: moved {num_rows} rows past the {timesteps:,} timesteps of the '
           f'checkpoint to {file}.cut.')
  records.KeptState(run_dir).discard()


def main(argv: Optional[Sequence[str]] = None) -> int:
  """Trains until done or told to stop; returns the exit code."""
  with errors.in_one_line():
    command, settings = _prepare(sys.argv[1:] if argv is None else argv)
  return _train(command, settings)


def _train(command: settings_lib.TrainCommand, settings: settings_lib.Settings,
           server: Optional[fork_server.ForkServer] = None) -> int:
  """Trains, and restarts this command if a retry is due; returns the exit code."""
  with contextlib.ExitStack() as stack:
    if server is not None:
      stack.enter_context(contextlib.closing(server))
    code, retry = _train_holding(command, settings, server, stack)
  if retry:
    # Restarts with nothing left over from the failed attempt.
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], *retry])
  return code


def _train_holding(command: settings_lib.TrainCommand,
                   settings: settings_lib.Settings,
                   server: Optional[fork_server.ForkServer],
                   stack: contextlib.ExitStack) -> tuple[int, Sequence[str]]:
  """Trains, with the run's lock and cluster held until the stack closes.

  Returns:
    The exit code, and the flags to add to the command for a retry, if one is due.
  """
  if command.quiet:
    # Warnings do not go there. Nodes that are threads print to it themselves.
    nowhere = stack.enter_context(open(os.devnull, 'w'))
    stack.enter_context(contextlib.redirect_stdout(nowhere))
  with errors.in_one_line():
    run_dir = settings.run.run_dir
    if command.resume:
      lock = stack.enter_context(locks.held(run_dir))
      _check_values(run_dir, settings.agent)
      checkpoint = _newest_checkpoint(run_dir)
      progress = checkpoints.progress(checkpoint)
      done = _why_done(settings.run, progress)
      if done is not None:
        _say(f'{run_dir} {done}.')
        return 0, ()
    cluster: Any = None
    if command.lp_launch_type == 'ray':
      cluster = _cluster(command, settings.run)
      stack.callback(cluster.close)
    else:
      _check_ports(settings.run)
    if command.lp_launch_type == 'local_mp':
      watchdog.load()
    environment_spec = settings.environment.try_out(settings.run.seed)
    num_gpus = _num_gpus(settings.run.num_gpus, settings.agent.batch_size, cluster)
    builder = _make_builder(settings.agent, num_gpus)
    if command.lp_launch_type != 'local_mt':
      processes.use_no_gpus()
    variable_bytes, trained_bytes = sizes.of_variables(
        settings.agent, environment_spec)
    sizes.check(settings.agent, settings.run, environment_spec, trained_bytes,
                threads=command.lp_launch_type == 'local_mt',
                **(cluster.sizes() if command.on_cluster else {}))
    if cluster is not None:
      cluster.reserve(settings.run.num_replay_shards, settings.run.num_actors,
                      command.min_actors, num_gpus, command.ray_timeout)
    if command.resume:
      # Only to refuse one of other networks.
      policies.restored(builder, environment_spec, checkpoint, with_decoder=True)
    try:
      os.makedirs(run_dir, exist_ok=True)
      if not command.resume:
        lock = stack.enter_context(locks.held(run_dir))
      checkpoints.check_space(run_dir, variable_bytes, trained_bytes)
      if cluster is not None:
        cluster.check_home(run_dir)
      settings_lib.save(settings)
    except OSError as e:
      raise ValueError(f'nothing can be written to run_dir ({e}); give another '
                       '--run_dir.') from None
    if command.resume:
      _go_back_to(run_dir, progress)

  program = impala_ppo.make_program(
      builder, settings.environment.make, environment_spec, settings.run,
      verbose=True)
  screen = watching.make(f'{settings.environment.game} → {run_dir}',
                        settings.run.max_timesteps, command.plain, command.quiet)
  if cluster is not None:
    with errors.in_one_line():
      code = cluster.run_program(program, run_dir, settings.run.restart, screen)
  else:
    code = local.run_program(program, command.lp_launch_type, run_dir,
                             settings.run.restart, [lock], server, screen)
  if code == processes.ENDS_RUN:
    return 1, ()
  return code, _retry(command, run_dir) if code else ()


def _retry(command: settings_lib.TrainCommand, run_dir: str) -> Sequence[str]:
  """Returns the flags that make a failed run's command resume it, if it should."""
  retries = command.retries - 1
  if retries < 0:
    return ()
  # All nodes have ended: whoever says stop from here on is to be obeyed at once.
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, signal.SIG_DFL)
  if checkpoints.latest(run_dir) is None:
    return ()
  _say(f'resuming {run_dir}; {retries} retries are left after this one.')
  return ['--resume', '--run_dir', run_dir, '--retries', str(retries)]


if __name__ == '__main__':
  # All is imported and nothing used, so nodes are forks of what this process is now.
  _server = fork_server.ForkServer(is_fork=True) if (
      _command.lp_launch_type == 'local_mp') else None
  sys.exit(_train(_command, _settings, _server))
