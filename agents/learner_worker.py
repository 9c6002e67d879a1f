"""Runs a learner as a server: steps, reports, checkpoints, stops cleanly."""

import threading
import time
from typing import Any, List, Mapping, Optional, Sequence

from acme import core
from acme.tf import savers
import numpy as np
import tensorflow as tf

from agents import progress as progress_lib
from agents import shared_variables
from agents import stopping
from agents.impala_ppo import acting
from agents.impala_ppo import learning

_REPORT_SECONDS = 1.
_LAST_STEP_SECONDS = 5.


class _RemoteCounter(core.Saveable):
  """Lets a checkpoint hold the counts of a counter in another process."""

  def __init__(self, progress: progress_lib.RunProgress):
    self._progress = progress

  def save(self) -> Mapping[str, Any]:
    return self._progress.save()

  def restore(self, state: Mapping[str, Any]):
    self._progress.restore(state)


class LearnerWorker(core.VariableSource, core.Worker):
  """Steps a learner until the program stops, then saves its last step.

  Checkpoints hold the learner's state and the run's counts; the newest is
  restored on construction.
  """

  def __init__(
      self,
      learner: learning.ImpalaPPOLearner,
      progress: progress_lib.RunProgress,
      run_dir: str,
      checkpoint_minutes: float,
      should_stop: Optional[threading.Event] = None,
  ):
    """Makes the worker and restores the newest checkpoint, if there is one.

    Args:
      learner: what learns.
      progress: is told of steps and metrics, and saved with the learner.
      run_dir: gets the folder `checkpoints`.
      checkpoint_minutes: time between checkpoints.
      should_stop: ends `run` once set.
    """
    self._learner = learner
    self._progress = progress
    self._should_stop = should_stop or threading.Event()
    self._checkpointer = savers.Checkpointer(
        {'learner': tf.train.Checkpoint(**learner.state),
         'progress': _RemoteCounter(progress)},
        directory=run_dir, subdirectory='', add_uid=False, max_to_keep=3,
        time_delta_minutes=checkpoint_minutes)
    learner.on_restore()
    self._first_step = self._reported_steps = learner.num_steps
    self._shared = shared_variables.SharedVariables(learner, acting.POLICY)

  def get_variables(self, names: Sequence[str]) -> List[List[np.ndarray]]:
    return self._learner.get_variables(names)

  def shared_variables(self) -> shared_variables.Handle:
    """Where the processes of this machine find the policy."""
    return self._shared.handle

  def run(self):
    """Learns until the program stops, and leaves a last checkpoint.

    Raises:
      Exception: what the learner raised, if it failed.
    """
    try:
      stopping.run_until_stopped(self._step_until_stopped, self._should_stop,
                                 _LAST_STEP_SECONDS)
    finally:
      # Without a step there is nothing to save, nor perhaps a counter to tell.
      if self._learner.num_steps > self._first_step:
        self._report()
        self._checkpointer.save(force=True)
        self._progress.learner_done()

  def _step_until_stopped(self):
    next_report = time.monotonic() + _REPORT_SECONDS
    while not self._should_stop.is_set():
      self._learner.step()
      self._shared.update()
      if time.monotonic() >= next_report:
        self._report()
        self._checkpointer.save()
        next_report = time.monotonic() + _REPORT_SECONDS

  def _report(self):
    steps = self._learner.num_steps
    metrics = self._learner.metrics()
    if metrics:
      self._progress.record_learning(steps - self._reported_steps, metrics)
      self._reported_steps = steps
