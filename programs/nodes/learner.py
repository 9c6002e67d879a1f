"""The learner node: steps, reports, checkpoints, stops cleanly."""

import functools
import sys
import threading
import time
from typing import Callable, Mapping, Optional, Sequence

from acme import core
import numpy as np
import reverb
import tensorflow as tf

from agents import cuda
from agents.impala_ppo import acting
from agents.impala_ppo import learning
from agents.impala_ppo import replay
from programs.nodes import counter as counter_node
from programs.nodes import setup as setup_lib
from programs.runtime import checkpoints
from programs.runtime import processes
from programs.runtime import reports
from programs.runtime import stopping
from programs.runtime import weights

_REPORT_SECONDS = 1.
_LAST_REPORT_SECONDS = 1.
_PICTURE_SECONDS = 60.


class LearnerWorker(core.VariableSource, core.Worker):
  """Steps a learner until the program stops, then saves its last step.

  Checkpoints hold the learner's state and the counter's; the newest is
  restored on construction.
  """

  def __init__(
      self,
      learner: learning.ImpalaPPOLearner,
      counter: counter_node.RunCounter,
      run_dir: str,
      checkpoint_minutes: float,
      should_stop: Optional[threading.Event] = None,
      statistics: Callable[[], Mapping[str, float]] = dict,
  ):
    """Makes the worker and restores the newest checkpoint, if there is one.

    Args:
      learner: the learner to step.
      counter: gets reports of steps and metrics, and is saved with the learner.
      run_dir: gets the folder `checkpoints`.
      checkpoint_minutes: time between checkpoints.
      should_stop: ends `run` once set.
      statistics: returns those of the replay, which are added to the metrics.
    """
    self._learner = learner
    self._counter = counter
    self._should_stop = should_stop or threading.Event()
    self._reports = reports.Background()
    self._metrics: Mapping[str, float] = {}
    self._statistics: Mapping[str, float] = {}
    self._ask_for_statistics = statistics
    self._asks = reports.Background()
    self._pictures = reports.Background()
    self._next_picture = 0.
    checkpoint = checkpoints.Checkpoint(learner.state,
                                        reports.CounterState(counter))
    newest = checkpoints.discard_broken(
        run_dir, lambda line: print(f'learner: {line}', flush=True))
    if newest is not None:
      checkpoint.restore(newest)
      learner.on_restore()
      # The counter's own number of steps may be older.
      self._reports.start(counter.record_learning, learner.num_steps, {})
    self._saver = checkpoints.Saver(
        checkpoint, run_dir, checkpoint_minutes,
        learning.variables_of(learner.state))
    self._first_step = learner.num_steps
    processes.say_if_back(
        'learner', f'steps after {self._first_step:,}, that of the newest '
        'checkpoint')
    self._shared = weights.SharedWeights(
        learner, (acting.POLICY, acting.VERSION))

  def get_variables(self, names: Sequence[str]) -> list[list[np.ndarray]]:
    return self._learner.get_variables(names)

  def shared_weights(self) -> weights.Handle:
    """Returns where processes of this machine find the shared weights."""
    return self._shared.handle

  def newer_weights(self, number: int) -> tuple[bytes, int, Optional[list]]:
    """Returns what another machine's mirror lacks; see `SharedWeights.newer`."""
    return self._shared.newer(number)

  def run(self) -> None:
    """Learns until the program stops, then saves a last checkpoint.

    Raises:
      Exception: what the learner raised, if it failed.
      RuntimeError: if the last checkpoint could not be saved.
    """
    is_saved = True
    try:
      # No patience: actors have ended, so no further batch will come.
      stopping.run_until_stopped(self._step_until_stopped, self._should_stop,
                                 patience_seconds=0.)
    finally:
      # Waits for a step that has begun, or the checkpoint would hold half of it.
      with self._learner.paused():
        # Without a step there is nothing to save, and perhaps no counter to call.
        if self._learner.num_steps > self._first_step:
          is_saved = self._saver.save()
          self._reports.wait(_LAST_REPORT_SECONDS)
          self._reports.start(self._counter.learner_done, *self._so_far())
          self._reports.wait(_LAST_REPORT_SECONDS)
    if not is_saved:
      raise RuntimeError('the last step could not be saved.')

  def _step_until_stopped(self):
    next_report = time.monotonic() + _REPORT_SECONDS
    while not self._should_stop.is_set():
      self._learner.step()
      self._shared.publish()
      if time.monotonic() >= next_report:
        # Makes the last checkpoint wait until this one is complete.
        with self._learner.paused():
          self._saver.save_if_due()
          self._report()
          self._draw()
        next_report = time.monotonic() + _REPORT_SECONDS

  def _report(self):
    if self._reports.is_busy:
      return
    self._reports.start(self._counter.record_learning, *self._so_far())
    if not self._asks.is_busy:
      self._asks.start(self._ask)

  def _so_far(self) -> tuple[int, Mapping[str, float]]:
    """Returns the learner's steps, and its latest metrics."""
    # A step that waits for a shard to take its priorities, as the last one may when
    # all are stopping, has changed the weights, but has no metrics yet.
    self._metrics = self._learner.metrics() or self._metrics
    return self._learner.num_steps, {
        **self._metrics, **self._statistics, 'weight_pulls': self._shared.pulls}

  def _ask(self):
    self._statistics = self._ask_for_statistics()

  def _draw(self):
    """Draws the auto-encoder's reconstructions, unless that was done recently."""
    if time.monotonic() < self._next_picture:
      return
    self._next_picture = time.monotonic() + _PICTURE_SECONDS
    picture = self._learner.reconstructions()
    if picture is not None:
      png = tf.io.encode_png(picture).numpy()
      self._pictures.start(self._counter.record_picture, png)


def _say_what_is_compiled() -> None:
  """Prints a line if the first step compiles GPU code, which can take minutes."""
  for gpu in tf.config.get_visible_devices('GPU'):
    details = tf.config.experimental.get_device_details(gpu)
    capability = details['compute_capability']
    if cuda.has_to_compile(capability):
      print('learner: TensorFlow brings no machine code for '
            f'{details["device_name"]} (compute capability {capability[0]}.'
            f'{capability[1]}); its driver compiles that at the first step, which '
            'can take minutes, and keeps it for the next start.', flush=True)
      return


def make(setup: setup_lib.Setup, shards: Sequence[reverb.Client],
         counter: counter_node.RunCounter,
         should_stop: threading.Event) -> LearnerWorker:
  """Makes the learner of a program, once the replay serves its tables.

  Args:
    setup: of the program.
    shards: of the replay.
    counter: gets reports of steps and metrics.
    should_stop: set when the program stops.
  """
  builder, config = setup.builder, setup.config
  made: list[LearnerWorker] = []

  def make_worker():
    start_reports = reports.Background()
    start_reports.start(counter.record_start, 'learner',
                        'the replay to serve its tables')
    learner = builder.make_learner(
        config.seed, builder.make_networks(setup.environment_spec),
        builder.make_dataset_iterator(shards), shards)
    _say_what_is_compiled()
    made.append(LearnerWorker(learner, counter, config.run_dir,
                              config.checkpoint_minutes, should_stop,
                              functools.partial(replay.statistics, shards)))
    start_reports.start(counter.record_start, 'learner',
                        'trajectories to learn from')

  # This waits for the replay, which may be stopped before it has started.
  stopping.run_until_stopped(make_worker, should_stop)
  if not made:
    sys.exit()
  return made[0]
