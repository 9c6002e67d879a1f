"""The live display of a run on a terminal."""

import contextlib
import math
import sys
import time
from typing import Any, Iterator, Mapping, Optional

import rich.columns
import rich.console
import rich.live
import rich.panel
import rich.progress_bar
import rich.table
import rich.text

from launch.views import printing
from programs.runtime import records

# Columns of progress.csv; docs/metrics.md explains them. Read down, then across.
_SHOWN = (
    'timesteps_per_second', 'learner_timesteps_per_second', 'learner_wait_fraction',
    'policy_lag', 'queue_fill', 'replay_fill', 'samples_per_insert', 'episodes',
    'learner_steps', 'learning_rate',
    'loss', 'policy_loss', 'value_loss', 'reconstruction_loss', 'entropy',
    'clip_fraction', 'approximate_kl', 'rho_mean', 'explained_variance',
    'gradient_norm')
_FRACTIONS = ('learner_wait_fraction', 'queue_fill', 'replay_fill', 'clip_fraction')
_COUNTS = ('timesteps_per_second', 'learner_timesteps_per_second', 'episodes',
           'learner_steps')
# Shown once they are not zero.
_FAULTS = ('restarts', 'bad_numbers', 'skipped_updates')
_RETURN = 'episode_return_mean_100'
_REFRESHES_PER_SECOND = 1
_LABEL_WIDTH = 28
_VALUE_WIDTH = 8
_GAP = 1
# A label, a value, and the gap after each.
_PAIR_WIDTH = _LABEL_WIDTH + _VALUE_WIDTH + 2 * _GAP
_MOST_NODES = 12
# How many rows to average the rate over that gives the time left.
_RATE_ROWS = 12
_BARS = '▁▂▃▄▅▆▇█'
_COLOURS = {'starting': 'yellow', 'running': 'green', 'down': 'red'}


def sparkline(values: list[float], width: int) -> str:
  """Draws values as at most `width` bars, each the last value of its part."""
  values = [value for value in values if math.isfinite(value)]
  if not values or width < 1:
    return ''
  bars = min(width, len(values))
  shown = [values[(i + 1) * len(values) // bars - 1] for i in range(bars)]
  low, high = min(shown), max(shown)
  scale = (len(_BARS) - 1) / (high - low) if high > low else 0.
  return ''.join(_BARS[round((value - low) * scale)] for value in shown)


def duration(seconds: float) -> str:
  """Returns minutes and seconds, and hours if there are any."""
  minutes, rest = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'


def _shown(name: str, row: Mapping[str, Any]) -> str:
  value = row.get(name)
  if value is None or not math.isfinite(value):
    return '-'
  if name in _FRACTIONS:
    return f'{value:.0%}'
  if name in _COUNTS:
    return f'{value:,.0f}'
  return f'{value:.3g}' if abs(value) >= 1e-3 or not value else f'{value:.1e}'


class Live(printing.Screen):
  """Redraws one panel; messages scroll away above it."""

  def __init__(self, run: str, max_timesteps: int,
               console: Optional[rich.console.Console] = None):
    """Makes a display that is not shown yet.

    Args:
      run: its title.
      max_timesteps: when the run ends.
      console: where to draw, by default standard output.
    """
    self._run = run
    self._max_timesteps = max_timesteps
    self._console = console or rich.console.Console(highlight=False)
    self._began = time.monotonic()
    self._width = 0
    self._nodes: dict[str, str] = {}
    self._restarts: dict[str, int] = {}
    self._waits_for: Mapping[str, str] = {}
    self._rows: list[Mapping[str, Any]] = []
    self._returns: list[float] = []
    self._evaluation: Optional[float] = None
    self._is_stopping = False
    self._live = self._make_live()

  def _make_live(self) -> rich.live.Live:
    # The empty last line is for what the terminal echoes, such as ^C.
    return rich.live.Live(
        console=self._console, auto_refresh=True,
        get_renderable=lambda: rich.console.Group(self.render(), ''),
        refresh_per_second=_REFRESHES_PER_SECOND, vertical_overflow='crop')

  @contextlib.contextmanager
  def shown(self) -> Iterator[None]:
    # A terminal that has gone can neither be drawn on nor restored.
    with contextlib.suppress(OSError):
      self._live.start()
    try:
      yield
    finally:
      with contextlib.suppress(OSError):
        self._live.stop()

  @contextlib.contextmanager
  def hidden(self) -> Iterator[None]:
    with contextlib.suppress(OSError):
      self._live.stop()
    yield
    # A new one, or it would draw over what others have written meanwhile.
    self._live = self._make_live()
    with contextlib.suppress(OSError):
      self._live.start()

  def say(self, line: str) -> None:
    printing.print_line(line, sys.stdout)  # The display redirects it.

  def fail(self, line: str) -> None:
    with contextlib.suppress(OSError):
      self._console.print(rich.text.Text(line, 'bold yellow'))

  def of_node(self, node: str, line: str) -> None:
    if ': back after ' in line:
      self._nodes[node] = 'running'
    self.say(line)

  def begun(self, node: str, restarts: int) -> None:
    self._nodes[node] = 'starting'
    self._restarts[node] = restarts

  def ended(self, node: str) -> None:
    self._nodes[node] = 'down'

  def stopping(self) -> None:
    self._is_stopping = True

  def starting(self, waits_for: Mapping[str, str]) -> None:
    self._waits_for = waits_for

  def row(self, row: Mapping[str, Any]) -> None:
    if not self._rows:
      self._nodes = dict.fromkeys(self._nodes, 'running')
      self._waits_for = {}
    self._rows = [*self._rows[1 - _RATE_ROWS:], row]
    self._returns.append(row[_RETURN])
    self._evaluation = row.get(records.EVALUATION, self._evaluation)

  def render(self) -> rich.console.RenderableType:
    """Returns what to show now."""
    if self._console.width < self._width:
      self._console.clear()  # The terminal has wrapped the lines drawn before.
    self._width = self._console.width
    width = self._width - 4  # Without the frame.
    parts = ([self._progress(width), self._return(width), self._metrics(width)]
             if self._rows else [rich.text.Text(self._what_is_missing())])
    return rich.panel.Panel(
        rich.console.Group(*parts, self._states()),
        title=rich.text.Text(self._run), title_align='left')

  def _what_is_missing(self) -> str:
    if self._is_stopping:
      return 'stopping'
    missing = (records.what_is_missing(self._waits_for) if self._waits_for else
               'processes import what they need')
    return f'starting for {duration(time.monotonic() - self._began)}: {missing}'

  def _progress(self, width: int) -> rich.table.Table:
    row, first = self._rows[-1], self._rows[0]
    timesteps = row['timesteps']
    seconds = row['walltime_seconds'] - first['walltime_seconds']
    rate = ((timesteps - first['timesteps']) / seconds if seconds > 0
            else row['timesteps_per_second'])
    left = max(self._max_timesteps - timesteps, 0)
    when = ('stopping' if self._is_stopping else
            f'{duration(left / rate)} left' if rate > 0 else 'standing still')
    line = (f' {timesteps:,} of {self._max_timesteps:,} timesteps, '
            f'{duration(row["walltime_seconds"])} so far, {when}')
    table = rich.table.Table.grid()
    bar = rich.progress_bar.ProgressBar(
        self._max_timesteps, timesteps, width=max(width - len(line), 6))
    table.add_row(bar, line)
    return table

  def _return(self, width: int) -> rich.text.Text:
    """Returns the last mean return, the run's best, and the course of returns."""
    text = rich.text.Text(no_wrap=True, overflow='crop')
    text.append(f'{_RETURN} ')
    text.append(_shown(_RETURN, self._rows[-1]), 'bold')
    finite = [value for value in self._returns if math.isfinite(value)]
    if finite:
      text.append(f', best {max(finite):.3g}')
    if self._evaluation is not None:
      text.append(f', evaluation {self._evaluation:.3g}')
    text.append('  ')
    text.append(sparkline(self._returns, width - len(text)), 'cyan')
    return text

  def _metrics(self, width: int) -> rich.table.Table:
    row = self._rows[-1]
    names = [*_SHOWN, *(name for name in _FAULTS if row.get(name))]
    columns = min(max((width + _GAP) // _PAIR_WIDTH, 1), len(names))
    lines = -(-len(names) // columns)
    table = rich.table.Table.grid(padding=(0, _GAP, 0, 0))
    for _ in range(columns):
      table.add_column(width=_LABEL_WIDTH, style='dim', no_wrap=True)
      table.add_column(width=_VALUE_WIDTH, justify='right',
                       no_wrap=True)
    for line in range(lines):
      cells = []
      for name in names[line::lines]:
        cells += [name, _shown(name, row)]
      table.add_row(*cells)
    return table

  def _states(self) -> rich.columns.Columns:
    """Returns each node's state or, if they are many, counts by kind and state."""
    if len(self._nodes) <= _MOST_NODES:
      named = [(node, state, self._restarts[node])
               for node, state in list(self._nodes.items())]
    else:
      kinds: dict[tuple[str, str], list[str]] = {}
      for node, state in list(self._nodes.items()):
        kinds.setdefault((node.partition('/')[0], state), []).append(node)
      named = [(f'{len(nodes)} {kind}', state,
                sum(self._restarts[node] for node in nodes))
               for (kind, state), nodes in kinds.items()]
    texts = []
    for name, state, restarts in named:
      said = '' if state == 'running' else f' {state}'
      if restarts:
        said += f' (restarted {restarts} times)' if restarts > 1 else ' (restarted)'
      texts.append(rich.text.Text.assemble(('● ', _COLOURS[state]), name, said))
    return rich.columns.Columns(texts, padding=(0, 2))
