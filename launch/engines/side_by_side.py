"""Trains the runs of a sweep side by side, on the hosts of a Ray cluster."""

import os
from typing import Any, Callable, Mapping, Optional, Sequence

import ray

from launch import cells as cells_lib
from launch.engines import ray as ray_engine
from programs.runtime import doors

_NEWS_SECONDS = 60.


@ray.remote(max_retries=0)
def _train(cell: cells_lib.Cell, variables: Mapping[str, str]) -> tuple[int, bool]:
  """Trains a cell here; returns its exit code, and whether it is done."""
  folder = os.path.dirname(cell.run_dir)
  if not os.path.isdir(folder):
    raise FileNotFoundError(
        f'{folder} is not seen on {ray.util.get_node_ip_address()}; --out has to be '
        'on storage that all hosts share')
  return cell.train(to_log=True, variables=variables), cell.is_done()


def train_all(cells: Sequence[cells_lib.Cell], address: str,
              say: Callable[[str], None]) -> int:
  """Trains cells wherever there is room, each in a Ray task.

  A cell takes as many CPUs of one host as it has actors, and `num_gpus` GPUs.

  Args:
    cells: those that are not done yet.
    address: of the cluster, as Ray takes it.
    say: prints a line.

  Returns:
    How many failed.

  Raises:
    ValueError: if there is no cluster, or no host has room for a cell; the message
      is one line.
    KeyboardInterrupt: if this process was told to stop, once all runs have stopped.
  """
  cluster = ray_engine.Cluster(address, 0, doors.CLUSTER)
  cells_lib.end_on_signals()  # Ray has handlers of its own.
  try:
    needs = [_needs(cell) for cell in cells]
    for need in needs:
      _check_room(need)
    say(f'{len(cells)} runs, as many at once as there is room for; each prints '
        f'into {os.path.relpath(cells[0].log, cells[0].run_dir)} in its directory.')
    tasks = {}
    for cell, need in zip(cells, needs):
      os.makedirs(os.path.dirname(cell.run_dir), exist_ok=True)
      tasks[_train.options(**need).remote(cell, cluster.variables)] = cell
    try:
      return _wait(tasks, say)
    except KeyboardInterrupt:
      for task in tasks:
        ray.cancel(task)
      ray.wait(list(tasks), num_returns=len(tasks))
      raise
  finally:
    cluster.close()


def _needs(cell: cells_lib.Cell) -> dict[str, int]:
  """Returns what a cell needs from a host, as options for Ray."""
  run = cell.settings().run
  return {'num_cpus': run.num_actors, 'num_gpus': run.num_gpus or 0}


def _check_room(need: Mapping[str, int]) -> None:
  hosts = [host['Resources'] for host in ray.nodes() if host['Alive']]
  if not any(host.get('CPU', 0) >= need['num_cpus'] and
             host.get('GPU', 0) >= need['num_gpus'] for host in hosts):
    raise ValueError(
        f'a run takes {need["num_cpus"]} CPUs (--num_actors) and {need["num_gpus"]} '
        'GPUs (--num_gpus) of one host, and no host of the cluster has as many.')


def _wait(tasks: Mapping[Any, cells_lib.Cell], say: Callable[[str], None]) -> int:
  """Waits for all tasks and reports each; returns how many failed."""
  left, num_failed = list(tasks), 0
  while left:
    ended, left = ray.wait(left, timeout=_NEWS_SECONDS)
    if not ended:
      timesteps = [rows[-1]['timesteps'] for rows in (
          tasks[task].rows() for task in left) if rows]
      say(f'{len(left)} of {len(tasks)} runs are left, at '
          f'{sum(timesteps):,.0f} timesteps together.')
    for task in ended:
      why = _why_failed(task, tasks[task])
      num_failed += why is not None
      say(f'{len(tasks) - len(left)} of {len(tasks)}, {tasks[task].run_dir}: '
          f'{why or "done"}.')
  return num_failed


def _why_failed(task: Any, cell: cells_lib.Cell) -> Optional[str]:
  """Returns why a finished task did not train its cell, or None if it did."""
  try:
    code, is_done = ray.get(task)
  except ray.exceptions.RayTaskError as e:
    return f'cannot be trained ({e.cause})'
  except ray.exceptions.RayError as e:
    return f'was lost ({str(e).splitlines()[0]})'
  if code:
    return f'failed with exit code {code}; {cell.log} says why'
  return None if is_done else 'was stopped'
