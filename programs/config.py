"""How the agent is run; the agent's own settings are in its config."""

import dataclasses
from typing import Annotated, Literal, Optional

from pydantic import Field

from agents import validation
from programs.runtime import doors
from programs.runtime import machine

# Each process that draws random numbers has its own seed. Seeds are spaced so
# that no two runs with neighbouring seeds share any.
_SEEDS_PER_RUN = 100_000

Steps = Annotated[int, Field(ge=1, le=10**9)]
Directory = Annotated[str, Field(min_length=1, max_length=1000)]


@dataclasses.dataclass
class RunConfig:
  """How the agent is run; the agent's own settings are in its config.

  Attributes:
    run_dir: directory for everything that the run leaves behind.
    seed: seeds environments, networks and actors.
    num_actors: actor processes; by default one for each core that this process
      may use.
    envs_per_actor: environments that each actor steps at once.
    num_gpus: GPUs that the learner computes on, with a replica on each; 0 for the
      CPU, by default as many of those found as batches can be split over.
    num_replay_shards: Reverb servers; actors are spread over them.
    listen: where servers are reached: `loopback`, for this machine only, an IP
      address of this machine, `cluster`, for the address of each host in its Ray
      cluster, or `all`; anyone who can connect can run code here.
    isolate: whether to run in a network namespace of its own, where other users
      of this machine cannot reach the servers either.
    replay_port: port of the first shard, the others follow; 0 picks free ones.
    max_timesteps: when the run ends.
    target_return: ends the run early, once the mean return of the last 100
      training episodes reaches it.
    evaluation_interval: timesteps between greedy evaluations; 0 for none.
    evaluation_episodes: episodes in each evaluation.
    max_episode_steps: timesteps after which an evaluation cuts an episode; Atari
      itself ends one after 27,000, that is 108,000 frames.
    checkpoint_minutes: time between checkpoints; a restarted learner loses
      at most this much.
    progress_seconds: time between rows of `progress.csv`.
    track: an experiment tracker that also gets the rows; its package has to be
      installed, with the extra of the same name.
    step_timeout: seconds that making, resetting or stepping the environments may
      take before their actor or evaluator is restarted.
    restart: whether processes that end by themselves are restarted; threads
      cannot be.
  """
  run_dir: Directory
  seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
  # `sizes` checks what fits the machine, where the machine is known.
  num_actors: Annotated[int, Field(ge=1, le=10**6)] = dataclasses.field(
      default_factory=machine.cores)
  envs_per_actor: Annotated[int, Field(ge=1, le=10**9)] = 4
  num_gpus: Optional[Annotated[int, Field(ge=0, le=1000)]] = None
  num_replay_shards: Annotated[int, Field(ge=1, le=10_000)] = 1
  listen: str = doors.LOOPBACK
  isolate: bool = False
  replay_port: Annotated[int, Field(ge=0, le=65_535)] = 0
  max_timesteps: Annotated[int, Field(ge=1, le=10**15)] = 3_000_000
  target_return: Optional[Annotated[float, Field(ge=-10**9, le=10**9)]] = None
  evaluation_interval: Annotated[int, Field(ge=0, le=10**15)] = 500_000
  evaluation_episodes: Annotated[int, Field(ge=1, le=1_000_000)] = 8
  max_episode_steps: Steps = 100_000
  # Up to a year.
  checkpoint_minutes: Annotated[float, Field(gt=0, le=525_600)] = 0.5
  progress_seconds: Annotated[float, Field(gt=0, le=31_536_000)] = 5.
  track: Optional[Literal['wandb', 'mlflow']] = None
  step_timeout: Annotated[float, Field(gt=0, le=31_536_000)] = 60.
  restart: bool = True

  def __post_init__(self):
    validation.check(self)
    doors.host(self.listen)  # Raises if it is not an address.
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
