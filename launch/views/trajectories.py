"""Reads the trajectories that a run's replay holds, for drawing."""

import time
from typing import Optional, Sequence

import numpy as np
import reverb
import tensorflow as tf

from agents import screens
from agents.impala_ppo import builder as builder_lib
from agents.impala_ppo import replay
from agents.impala_ppo import trajectories as trajectories_lib
from launch import policies
from launch import settings as settings_lib
from launch.views import sheets
from launch.views import snapshot
from launch.views import thoughts
from programs.runtime import checkpoints
from programs.runtime import records


class Held:
  """What a run's replay held at one moment.

  Attributes:
    action_names: the name of each action.
    frame_stack: how many channels of an observation are frames.
    title: what it is, in one line.
    reconstructed_by: which checkpoint reconstructs, in one line.
  """

  def __init__(self, settings: settings_lib.Settings,
               items: Sequence[snapshot.Item], checkpoint: Optional[str],
               learner_steps: int):
    """Makes the trajectories of one or more items.

    Args:
      settings: of the run.
      items: all items of one table, from all shards, oldest first.
      checkpoint: the run's newest, if there is one.
      learner_steps: how far the run has come.
    """
    self._items = items
    self._learner_steps = max(learner_steps, *(
        int(item.columns['policy_version'].max()) for item in items))
    self._now = time.time()
    self.action_names = screens.action_names(settings.environment)
    self.frame_stack = settings.agent.frame_stack
    self._game = settings.environment.game
    self.title = (f"the {len(items)} items of {self._game}'s table "
                  f"'{items[0].table}' at learner step {self._learner_steps:,}")
    self._think: Optional[thoughts.Thinker] = None
    self.reconstructed_by = 'there is no checkpoint yet to reconstruct them with'
    if checkpoint is not None:
      spec = settings.environment.try_out(0)
      self._think = thoughts.Thinker(policies.restored(
          builder_lib.ImpalaPPOBuilder(settings.agent), spec, checkpoint, True))
      verb = 'reconstructed' if settings.agent.autoencoder else 'valued'
      self.reconstructed_by = (f'{verb} by the checkpoint of learner step '
                               f'{checkpoints.learner_steps(checkpoint):,}')

  def priorities(self) -> np.ndarray:
    """Returns the priorities of all items."""
    return np.array([item.priority for item in self._items])

  def ages(self) -> np.ndarray:
    """Returns the learner steps since acting for all timesteps of experience."""
    ages = []
    for item in self._items:
      batch = self._batch(item)
      ages.append((self._learner_steps - batch.policy_version)[batch.mask])
    return np.concatenate(ages)

  def draw(self, number: int) -> list[sheets.Trajectory]:
    """Returns up to `number` trajectories, picked at random."""
    places = [(i, e) for i, item in enumerate(self._items)
              for e in range(item.columns['action'].shape[1])]
    chosen = np.random.default_rng().permutation(len(places))[:number]
    return [self._trajectory(*places[k]) for k in sorted(chosen)]

  def _batch(self, item: snapshot.Item) -> trajectories_lib.Trajectories:
    """Returns an item's E trajectories, as the learner gets them."""
    columns = trajectories_lib.by_environment(
        {name: tf.constant(column) for name, column in item.columns.items()})
    zeros = tf.zeros([len(columns['action'])], tf.int32)
    batch = trajectories_lib.from_rows({**columns, 'key': zeros, 'shard': zeros},
                                       self.frame_stack)
    return trajectories_lib.Trajectories(*(part.numpy() for part in batch))

  def _trajectory(self, index: int, environment: int) -> sheets.Trajectory:
    item = self._items[index]
    row = trajectories_lib.Trajectories(
        *(part[environment] for part in self._batch(item)))
    ages = self._learner_steps - row.policy_version
    behaviour = tf.nn.softmax(row.behaviour_logits).numpy()
    return sheets.Trajectory(
        f'{self._game}: item {item.key}, environment {environment}',
        f'inserted {self._now - item.inserted_at:,.0f} s ago, priority '
        f'{item.priority:.3g}, times sampled {item.times_sampled}; acted after '
        f'{_span(row.policy_version)} learner steps, {_span(ages)} steps ago; '
        f'{self.reconstructed_by}',
        row.observation, row.action, row.reward, row.discount, row.mask, behaviour,
        self._think(row.observation) if self._think else None)


def _span(numbers: np.ndarray) -> str:
  low, high = numbers.min(), numbers.max()
  return f'{low:,}' if low == high else f'{low:,} to {high:,}'


def held(run_dir: str, clients: Sequence[reverb.Client]) -> Held:
  """Reads what a run's replay holds.

  Args:
    run_dir: the run's directory.
    clients: of its shards, which must be on this machine.

  Returns:
    The items of the table `replay`, or of `queue` if that is empty.

  Raises:
    ValueError: if they cannot be read or there are none; the message is one line.
  """
  settings = settings_lib.load(run_dir)
  items = [item for client in clients for item in snapshot.take(client)]
  for table in (replay.REPLAY_TABLE, replay.QUEUE_TABLE):
    of_table = [item for item in items if item.table == table]
    if of_table:
      break
  else:
    raise ValueError('the replay holds no trajectories yet; try again later.')
  expected = trajectories_lib.num_rows(settings.agent.sequence_length,
                                       settings.agent.frame_stack)
  if any(len(item.columns['action']) != expected for item in of_table):
    raise ValueError(f"the replay's items are not those of {run_dir}; give the "
                     '--run_dir of its run.')
  rows = records.read(f'{run_dir}/{records.PROGRESS_FILE}')
  return Held(settings, of_table, checkpoints.latest(run_dir),
              int(rows[-1]['learner_steps']) if rows else 0)
