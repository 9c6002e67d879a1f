"""Searches settings with Optuna, and prunes trials by the progress of runs."""

import os
import re
from typing import Any, Callable, Mapping, Optional, Sequence, Union

import numpy as np
import optuna
from optuna.storages import journal

from agents import validation
from launch import cells as cells_lib
from launch import plans
from launch.views import curves
from programs.runtime import records

_JOURNAL_FILE = 'optuna.log'
# A run reports this often, so that trials are compared at the same timesteps.
_REPORTS = 20
_TRIALS_NOT_PRUNED = 4
_MOST_FAILURES = 3
# In a row.
_MOST_LEFT_OUT = 20
# Marks a trial whose settings do not go together.
_LEFT_OUT = 'left_out'
_SEEDS = 'seeds'
_MOST_REPORTED = 5
_RANGE = re.compile(r'(.+)\.\.(.+?)(:log)?')

_State = optuna.trial.TrialState


def distributions(searched: Sequence[str]
                  ) -> dict[str, optuna.distributions.BaseDistribution]:
  """Returns the distribution that each setting's values are drawn from.

  Args:
    searched: such as 'learning_rate=1e-4..1e-2:log' or 'loss=ppo,vtrace'.

  Raises:
    ValueError: for a bad assignment; the message is one line.
  """
  found: dict[str, optuna.distributions.BaseDistribution] = {}
  for assignment in searched:
    name, text = plans.split(assignment)
    if name in found:
      raise ValueError(f'{name} is given twice; give all its values at once.')
    span = _RANGE.fullmatch(text)
    if span is None:
      found[name] = optuna.distributions.CategoricalDistribution(
          plans.values_of(name, text))
      continue
    schema = plans.fields()[name]
    number: Any = {'integer': int, 'number': float}.get(
        schema.get('anyOf', [schema])[0].get('type'))
    try:
      if number is None:
        raise ValueError('it is no number')
      low, high = number(span[1]), number(span[2])
      make = (optuna.distributions.IntDistribution if number is int
              else optuna.distributions.FloatDistribution)
      found[name] = make(low, high, log=bool(span[3]))
    except ValueError as e:
      raise ValueError(f'{name} cannot be searched in {validation.shown(text)}: '
                       f'{e}.') from None
  return found


def run(plan: plans.Plan, say: Callable[[str], None]
        ) -> tuple[list[cells_lib.Cell], int]:
  """Tries settings until there are enough trials, earlier ones included.

  Args:
    plan: what to search.
    say: prints a line.

  Returns:
    The cells of the best trials, and how many trials failed. After more than two
    failures it gives up.

  Raises:
    ValueError: if the settings cannot be searched; the message is one line.
    KeyboardInterrupt: if it was told to stop.
  """
  drawn_from = distributions(plan.command.search)
  _check_ends(drawn_from)
  study = _study(plan)
  _check_earlier(plan, study, drawn_from)
  stopped = _stopped(study, set(drawn_from))
  num_failed = num_left_out = 0
  while num_failed < _MOST_FAILURES:
    num_ended = sum(_LEFT_OUT not in ended.user_attrs for ended in study.get_trials(
        states=[_State.COMPLETE, _State.PRUNED]))
    if num_ended >= plan.command.trials:
      break
    trial = stopped.pop(0) if stopped else study.ask(drawn_from)
    say(f'trial {trial.number}, after {num_ended} of {plan.command.trials}: '
        f'{_assignments(trial.params)}')
    cells = _cells(plan, trial)
    why = _why_impossible(cells)
    if why is not None:
      trial.set_user_attr(_LEFT_OUT, why)
      study.tell(trial, state=_State.PRUNED)
      say(f'trial {trial.number} is left out: {why}')
      num_left_out += 1
      if num_left_out == _MOST_LEFT_OUT:
        raise ValueError(f'{num_left_out} settings in a row do not go together: '
                         f'{why}')
      continue
    num_left_out = 0
    state, value = _try(trial, cells)
    study.tell(trial, value, state)
    num_failed += state == _State.FAIL
    say(f'trial {trial.number} is {state.name.lower()}' + (
        '.' if value is None else f', with a mean return of {value:.4g}.'))
  best = sorted(study.get_trials(states=[_State.COMPLETE]),
                key=lambda trial: -(trial.value or 0.))[:_MOST_REPORTED]
  for done in best:
    say(f'trial {done.number} returned {done.value:.4g}: '
        f'{_assignments(done.params)}')
  return [cell for done in best
          for cell in _cells(plan, done)], num_failed


def _study(plan: plans.Plan) -> optuna.Study:
  """Returns the study of a search, with its earlier trials."""
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  study = optuna.create_study(
      study_name='sweep', direction='maximize', load_if_exists=True,
      storage=optuna.storages.JournalStorage(journal.JournalFileBackend(
          os.path.join(plan.command.out, _JOURNAL_FILE))),
      pruner=optuna.pruners.MedianPruner(n_startup_trials=_TRIALS_NOT_PRUNED))
  # A resumed search must not repeat its first draws.
  study.sampler = optuna.samplers.TPESampler(
      seed=plan.seeds[0] + len(study.trials))
  return study


def _check_earlier(plan: plans.Plan, study: optuna.Study,
                   drawn_from: Mapping[str, Any]) -> None:
  """Checks that earlier trials can be compared; raises ValueError (one line)."""
  seeds = ','.join(map(str, plan.seeds))
  known = study.user_attrs.get(_SEEDS, seeds)
  if known != seeds:
    raise ValueError(f'the trials of this search have --seeds {known}, and can only '
                     'be compared with such; give those, or another --out.')
  study.set_user_attr(_SEEDS, seeds)
  for before in study.trials:
    for name in before.distributions.keys() & drawn_from.keys():
      try:
        optuna.distributions.check_distribution_compatibility(
            before.distributions[name], drawn_from[name])
      except ValueError:
        raise ValueError(
            f'the trials of this search drew {name} otherwise, from '
            f'{_range(before.distributions[name])}; give that again, or another '
            '--out.') from None
    # The cells of a trial differ only in their seeds.
    first = _cells(plan, before)[0]
    if os.path.exists(first.run_dir):
      first.check()


def _range(distribution: Any) -> str:
  """Returns a distribution as it was given to the command."""
  if isinstance(distribution, optuna.distributions.CategoricalDistribution):
    choices = list(map(str, distribution.choices))
    return (';' if any(',' in choice for choice in choices) else ',').join(choices)
  return (f'{distribution.low}..{distribution.high}'
          f'{":log" if distribution.log else ""}')


def _stopped(study: optuna.Study, names: set[str]) -> list[optuna.Trial]:
  """Returns the stopped trials that can resume; marks the others as failed."""
  stopped = []
  for trial in study.get_trials(states=[_State.RUNNING]):
    if set(trial.params) == names:
      stopped.append(optuna.Trial(study, trial._trial_id))
    else:  # Stopped before all its settings were drawn.
      study.tell(trial.number, state=_State.FAIL)
  return stopped


def _why_impossible(cells: Sequence[cells_lib.Cell]) -> Optional[str]:
  """Returns why settings do not go together, in one line, or None."""
  try:
    cells[0].settings()
  except ValueError as e:
    return str(e)
  return None


def _assignments(params: Mapping[str, Any]) -> str:
  return ' '.join(f'{name}={value}' for name, value in params.items())


def _cells(plan: plans.Plan,
           trial: Union[optuna.Trial, optuna.trial.FrozenTrial]
           ) -> list[cells_lib.Cell]:
  settings = {name: str(value) for name, value in trial.params.items()}
  return plans.make_cells(plan, settings, f'trial{trial.number}')


def _check_ends(drawn_from: Mapping[str, Any]) -> None:
  """Checks the ends of ranges, and all choices; raises ValueError (one line)."""
  ends = {name: (found.choices if hasattr(found, 'choices')
                 else (found.low, found.high))
          for name, found in drawn_from.items()}
  for name, values in ends.items():
    for value in values:
      plans.check_value(name, str(value))


class _Pruner:
  """Reports a run's progress to its trial, and stops it if it does too badly."""

  def __init__(self, trial: optuna.Trial, max_timesteps: int):
    self._trial = trial
    self._interval = max_timesteps / _REPORTS
    # A trial that was stopped has already reported values.
    reported = trial.study.trials[trial.number].intermediate_values
    self._next = 1 + max(reported, default=0)
    self.has_pruned = False

  def __call__(self, rows: Sequence[records.Row]) -> bool:
    for row in _with_returns(rows):
      # Reports the first row past each timestep at which trials are compared.
      while (row['timesteps'] >= self._next * self._interval and
             self._next < _REPORTS):
        self._trial.report(row[curves.RETURN], self._next)
        self._next += 1
        self.has_pruned = self.has_pruned or self._trial.should_prune()
    return self.has_pruned


def _with_returns(rows: Sequence[records.Row]) -> list[records.Row]:
  return [row for row in rows if np.isfinite(row[curves.RETURN])]


def _try(trial: optuna.Trial, cells: Sequence[cells_lib.Cell]
         ) -> tuple[_State, Optional[float]]:
  """Trains a trial with each seed; returns how it ended and its mean return."""
  returns: list[float] = []
  for cell in cells:
    cell.check()
    pruner = _Pruner(trial, cell.settings().run.max_timesteps)
    # Trials are compared by their first seed only, which is the same for all.
    code = 0 if cell.is_done() else cell.train(None if returns else pruner)
    if pruner.has_pruned:
      return _State.PRUNED, None
    rows = _with_returns(cell.rows())
    if code or not rows:
      return _State.FAIL, None
    if not cell.is_done():  # It was told to stop.
      raise KeyboardInterrupt
    returns.append(rows[-1][curves.RETURN])
  return _State.COMPLETE, float(np.mean(returns))
