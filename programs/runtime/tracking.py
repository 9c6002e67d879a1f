"""Sends rows of progress to experiment trackers; each needs its own package.

Both use the tags of TensorBoard, continue the same run when training is resumed,
and are set up by their own variables: WANDB_MODE, MLFLOW_TRACKING_URI.
"""

import contextlib
import io
import json
import os
import queue
import secrets
import threading
from typing import Any, Callable, Mapping, Optional

from acme.utils import loggers
from PIL import Image

from programs.runtime import board
from programs.runtime import records

_PROJECT = 'impala-ppo'
_ID_FILE = 'tracker_id'
_CLOSE_SECONDS = 5.
# Rows that may wait for a network, an hour's by default.
_BACKLOG = 720
_LONGEST_PARAMETER = 500


class Wandb(loggers.Logger):
  """Writes rows to Weights & Biases."""

  def __init__(self, run_dir: str, settings: Callable[[], Mapping[str, Any]]):
    """Makes a logger; the first row begins the run.

    Args:
      run_dir: of the run; keeps its id.
      settings: returns the run's settings, by section and name.
    """
    self._run_dir = run_dir
    self._settings = settings
    self._run: Any = None

  def write(self, data: loggers.LoggingData) -> None:
    import wandb  # Not always installed, and slow to import.
    if self._run is None:
      self._run = wandb.init(
          project=_PROJECT, dir=self._run_dir, name=_name(self._run_dir),
          id=_id(self._run_dir), resume='allow', config=dict(self._settings()))
    values: dict[str, Any] = board.scalars(data)
    if data.get(records.RETURNS):
      values[board.HISTOGRAM_TAG] = wandb.Histogram(data[records.RETURNS])
    if records.PICTURE in data:
      values[board.PICTURE_TAG] = wandb.Image(
          Image.open(io.BytesIO(data[records.PICTURE])))
    self._run.log(values, step=int(data['timesteps']), commit=True)

  def close(self) -> None:
    if self._run is not None:
      self._run.finish()


class Mlflow(loggers.Logger):
  """Writes rows to MLflow."""

  def __init__(self, run_dir: str, settings: Callable[[], Mapping[str, Any]]):
    """Makes a logger, with the arguments of `Wandb`."""
    self._run_dir = run_dir
    self._settings = settings
    self._client: Any = None
    self._run_id = ''

  def write(self, data: loggers.LoggingData) -> None:
    if self._client is None:
      self._begin()
    step = int(data['timesteps'])
    for tag, value in board.scalars(data).items():
      self._client.log_metric(self._run_id, tag, value, step=step,
                              synchronous=False)
    if records.PICTURE in data:
      self._client.log_image(self._run_id, Image.open(io.BytesIO(
          data[records.PICTURE])), key=board.PICTURE_TAG.rpartition('/')[2],
                             step=step)

  def _begin(self) -> None:
    import mlflow
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(_PROJECT)
    experiment_id = (experiment.experiment_id if experiment is not None else
                     client.create_experiment(_PROJECT))
    tag = _id(self._run_dir)
    runs = client.search_runs([experiment_id], f"tags.run_dir_id = '{tag}'",
                              max_results=1)
    if runs:
      self._run_id = runs[0].info.run_id
      client.update_run(self._run_id, 'RUNNING')
    else:
      self._run_id = client.create_run(
          experiment_id, run_name=_name(self._run_dir),
          tags={'run_dir_id': tag, 'run_dir': self._run_dir}).info.run_id
      for name, value in board.hyperparameters(self._settings()).items():
        client.log_param(self._run_id, name, str(value)[:_LONGEST_PARAMETER])
    self._client = client

  def close(self) -> None:
    if self._client is not None:
      import mlflow
      mlflow.flush_async_logging()
      self._client.set_terminated(self._run_id)


TRACKERS = {'wandb': Wandb, 'mlflow': Mlflow}


def _name(run_dir: str) -> str:
  return os.path.basename(os.path.normpath(run_dir))


def _id(run_dir: str) -> str:
  """Returns the run's id, kept in its directory, so that a resumed run has the same.

  The directory's path and number are kept too. One of them changes if it is moved,
  or restored from elsewhere; both do in a copy, which is another run, with a new id.
  """
  path = os.path.join(run_dir, _ID_FILE)
  here = {os.path.abspath(run_dir), os.stat(run_dir).st_ino}
  run_id, places = secrets.token_hex(8), set()
  with contextlib.suppress(OSError, ValueError, TypeError), open(path) as f:
    known, *before = json.load(f)
    if here & set(before):
      run_id, places = known, set(before)
  if places != here:
    with contextlib.suppress(OSError), open(path, 'w') as f:
      json.dump([run_id, *here], f)
  return run_id


class InBackground(loggers.Logger):
  """Passes rows on in a thread, as trackers may wait for a network."""

  def __init__(self, to: loggers.Logger):
    self._to = to
    self._rows: queue.Queue[Optional[loggers.LoggingData]] = queue.Queue(_BACKLOG)
    self._thread = threading.Thread(target=self._hand_on, daemon=True)
    self._thread.start()

  def write(self, data: loggers.LoggingData) -> None:
    try:
      self._rows.put_nowait(data)
    except queue.Full:
      pass  # The tracker does not answer; its missing rows are in the files.

  def close(self) -> None:
    try:
      self._rows.put_nowait(None)
    except queue.Full:
      return
    self._thread.join(_CLOSE_SECONDS)

  def _hand_on(self) -> None:
    while True:
      data = self._rows.get()
      if data is None:
        self._to.close()
        return
      self._to.write(data)
