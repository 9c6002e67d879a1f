"""How the agent is run; the agent's own settings are in its config."""

import dataclasses
import os
from typing import Annotated, Optional

from agents import validation
from agents.validation import Range
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
  seed: Annotated[int, Range(0, 2**63 - 1)] = 0
  num_actors: Annotated[int, Range(1, 10_000)] = dataclasses.field(
      default_factory=lambda: os.cpu_count() or 1)
  envs_per_actor: Annotated[int, Range(1, 10_000)] = 8
  num_gpus: Optional[Annotated[int, Range(0, 1000)]] = None
  num_replay_shards: Annotated[int, Range(1, 10_000)] = 1
  listen: str = doors.LOOPBACK
  isolate: bool = False
  replay_port: Annotated[int, Range(0, 65_535)] = 0
  max_timesteps: Annotated[int, Range(1, 10**15)] = 3_000_000
  target_return: Optional[Annotated[float, Range(-10**9, 10**9)]] = None
  evaluation_interval: Annotated[int, Range(0, 10**15)] = 500_000
  evaluation_episodes: Annotated[int, Range(1, 1_000_000)] = 8
  # Up to a year.
  checkpoint_minutes: Annotated[float, Range(0, 525_600, above=True)] = 0.5
  progress_seconds: Annotated[float, Range(0, 31_536_000, above=True)] = 5.
  step_timeout: Annotated[float, Range(0, 31_536_000, above=True)] = 60.
  restart: bool = True

  def __post_init__(self):
    validation.check(self)
    if not self.run_dir:
      raise ValueError('run_dir must be a directory, not an empty text.')
    doors.host(self.listen)  # Refuses what is no address.
    if self.isolate and self.listen not in (doors.LOOPBACK, doors.ALL):
      raise ValueError(f'isolate leaves no interface to listen on at {self.listen}; '
                       'give one of the two.')
    if self.replay_port + self.num_replay_shards > 65_536:
      raise ValueError(
          f'replay_port ({self.replay_port}) leaves too few ports up to 65535 '
          f'for num_replay_shards ({self.num_replay_shards}).')
    if self.num_replay_shards > self.num_actors:
      raise ValueError(
          f'num_replay_shards ({self.num_replay_shards}) must not exceed '
          f'num_actors ({self.num_actors}): each shard needs an actor to fill '
          'it.')

  def process_seed(self, index: int) -> int:
    """Returns the seed of one of the run's processes."""
    return (self.seed * _SEEDS_PER_RUN + index) % 2**63
