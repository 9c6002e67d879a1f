"""How the agent is run; the agent's own settings are in its config."""

import dataclasses
import os
from typing import Optional

from programs.runtime import doors

# Each process that draws random numbers has a seed of its own, spaced so that
# no two runs with neighbouring seeds share any.
_SEEDS_PER_RUN = 100_000

@dataclasses.dataclass
class RunConfig:
  """How the agent is run; the agent's own settings are in its config.

  Attributes:
    run_dir: where everything that the run leaves behind goes.
    seed: seeds environments, networks and actors.
    num_actors: actor processes; by default one for each core.
    envs_per_actor: environments that each actor steps at once.
    num_gpus: GPUs that the learner computes on, a replica on each; 0 for the
      CPU, by default all that there are.
    num_replay_shards: Reverb servers; actors are spread over them.
    listen: where servers are reached: `loopback`, for this machine only, an IP
      address of this machine, or `all`; who reaches them can run code here.
    isolate: whether to run in a network namespace of its own, where other users
      of this machine do not reach servers either.
    replay_port: port of the first shard, the others follow; 0 picks free ones.
    max_timesteps: when the run ends.
    target_return: ends the run early, once the mean return of the last 100
      training episodes reaches it.
    evaluation_interval: timesteps between greedy evaluations; 0 for none.
    evaluation_episodes: episodes in each of them.
    checkpoint_minutes: time between checkpoints; a learner that is restarted
      loses as much at most.
    progress_seconds: time between rows of `progress.csv`.
    step_timeout: seconds that a step of the environments may take, before their
      actor is restarted.
    restart: whether processes that end by themselves are restarted; threads
      cannot be.
  """
  run_dir: str
  seed: int = 0
  num_actors: int = dataclasses.field(default_factory=os.cpu_count)
  envs_per_actor: int = 8
  num_gpus: Optional[int] = None
  num_replay_shards: int = 1
  listen: str = doors.LOOPBACK
  isolate: bool = False
  replay_port: int = 0
  max_timesteps: int = 3_000_000
  target_return: Optional[float] = None
  evaluation_interval: int = 500_000
  evaluation_episodes: int = 8
  checkpoint_minutes: float = 0.5
  progress_seconds: float = 5.
  step_timeout: float = 60.
  restart: bool = True

  def __post_init__(self):
    for name in ('num_actors', 'envs_per_actor', 'num_replay_shards',
                 'max_timesteps', 'evaluation_episodes', 'checkpoint_minutes',
                 'progress_seconds', 'step_timeout'):
      value = getattr(self, name)
      if not value > 0:
        raise ValueError(f'{name} must be positive, not {value}.')
    for name in ('seed', 'replay_port', 'evaluation_interval', 'num_gpus'):
      value = getattr(self, name)
      if value is not None and value < 0:
        raise ValueError(f'{name} must not be negative, not {value}.')
    doors.host(self.listen)  # Refuses what is no address.
    if self.isolate and self.listen not in (doors.LOOPBACK, doors.ALL):
      raise ValueError(f'isolate leaves no interface to listen on at {self.listen}; '
                       'give one of the two.')
    if self.replay_port + self.num_replay_shards > 65536:
      raise ValueError(f'replay_port must be below 65536, not {self.replay_port}.')
    if self.num_replay_shards > self.num_actors:
      raise ValueError(
          f'num_replay_shards ({self.num_replay_shards}) must not exceed '
          f'num_actors ({self.num_actors}): each shard needs an actor to fill '
          'it.')

  def process_seed(self, index: int) -> int:
    """Returns the seed of one of the run's processes."""
    return self.seed * _SEEDS_PER_RUN + index
