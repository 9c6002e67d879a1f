"""Where rows of progress go: files, the launcher, boards, warnings."""

import functools
from typing import Optional

from acme.utils import loggers
from acme.utils.loggers import aggregators

from programs.runtime import board
from programs.runtime import health
from programs.runtime import processes
from programs.runtime import records
from programs.runtime import tracking


def progress_logger(run_dir: str, verbose: bool,
                    track: Optional[str] = None) -> loggers.Logger:
  """Makes a logger that stores and shows rows of progress.

  Args:
    run_dir: where files go.
    verbose: whether rows are also shown: by the launcher of this process, if it is
      one of ours, or else by printing them.
    track: a tracker that gets the rows, as in `RunConfig`.
  """
  settings = functools.partial(records.read_config, run_dir)
  kept: list[loggers.Logger] = [
      records.progress_csv_logger(run_dir),
      records.SurvivingLogger(board.Board(run_dir, settings), 'the TensorBoard'),
  ]
  if verbose:
    shown = (records.LauncherLogger() if processes.is_supervised() else
             records.TerminalLogger())
    kept += [records.SurvivingLogger(shown, 'the terminal'), health.Warner()]
  if track is not None:
    # No error of a tracker is a reason to stop.
    kept.append(tracking.InBackground(records.SurvivingLogger(
        tracking.TRACKERS[track](run_dir, settings), track, Exception)))
  return aggregators.Dispatcher(kept)
