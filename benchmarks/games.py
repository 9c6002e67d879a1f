"""Several games against what people would use instead: `python -m benchmarks.games`.

    for peer in cleanrl_ppo sb3_ppo; do
      benchmarks/peers/install.sh $peer /tmp/peers/$peer; done
    python -m benchmarks.games --environments /tmp/peers --minutes 15 --seed 0 1
    python -m benchmarks.games --report

Trains this project and each peer for the same time from its first row of progress,
one run after the other, on each game with each seed. Runs that are already kept are
skipped, so you can stop and continue; to repeat one, remove its folder. The thinned
rows go to `benchmarks/results/<game>/peer_<name>/seed<k>/`, beside how a run was
made.

The score of a run is the mean raw return of its last 100 training episodes when
time was up, as a fraction of what a person earns beyond random play (as in Wang
et al., arXiv:1511.06581, appendix). For each game, the report gives what each had
earned after some minutes, and after as many timesteps as all of them reached. It
also gives the interquartile mean of each player's runs with those seeds that all
games have of all players, and if there are several, its 95% interval, by bootstrap
over seeds within each game (Agarwal et al., arXiv:2108.13264, section 4).
"""

import itertools
import json
import math
import os
import pathlib
import sys
from typing import Mapping, NamedTuple, Optional, Sequence

import numpy as np
from scipy import stats

from benchmarks import common
from benchmarks.peers import runs
from launch.views import curves
from programs.runtime import records

# What random play and a person earn.
REFERENCES = {
    'asterix': (210.0, 8503.3),
    'beam_rider': (363.9, 16926.5),
    'boxing': (0.1, 12.1),
    'breakout': (1.7, 30.5),
    'freeway': (0.0, 29.6),
    'ms_pacman': (307.3, 6951.6),
    'pong': (-20.7, 14.6),
}
GAMES = tuple(game for game in REFERENCES if game != 'pong')
PLAYERS = (runs.OURS, 'cleanrl_ppo', 'cleanrl_ppo_42', 'sb3_ppo')
# Times on the way that `report` shows.
_MINUTES = (5, 10)
# A run whose last row is more than this before a time has not reached it.
_ROW_SECONDS = 60.
_RESAMPLES = 10_000

# By game, one score per seed.
Scores = Mapping[str, Sequence[float]]


class Estimate(NamedTuple):
  """A statistic, and the ends of its interval."""
  centre: float
  low: float
  high: float


def normalized(game: str, score: float) -> float:
  """Returns a score as a fraction of what a person earns beyond random play."""
  random, human = REFERENCES[game]
  return (score - random) / (human - random)


def interquartile_mean(scores: Scores) -> Estimate:
  """Returns the mean of the middle half of all runs, and its 95% interval.

  Args:
    scores: of one peer. Seeds are resampled within each game.
  """
  generator = np.random.default_rng(0)
  by_game = [np.asarray(of_game) for of_game in scores.values()]
  resampled = np.concatenate([
      of_game[generator.integers(len(of_game), size=(_RESAMPLES, len(of_game)))]
      for of_game in by_game], axis=1)
  tail = 50 * (1 - common.CONFIDENCE)
  low, high = np.percentile(stats.trim_mean(resampled, 0.25, axis=1),
                            [tail, 100 - tail])
  return Estimate(float(stats.trim_mean(np.concatenate(by_game), 0.25)),
                  float(low), float(high))


def _kept(game: str, player: str, seed: int) -> pathlib.Path:
  return common.results_of(game, f'peer_{player}', seed)


def _is_kept(game: str, player: str, seed: int) -> bool:
  return (_kept(game, player, seed) / records.PROGRESS_FILE).exists()


def read_runs(player: str, game: str) -> dict[int, list[common.Row]]:
  """Reads the rows of all seeds that are kept, by seed."""
  paths = _kept(game, player, 0).parent.glob(f'seed*/{records.PROGRESS_FILE}')
  found = {int(path.parent.name[len('seed'):]): records.read(str(path))
           for path in paths}
  return dict(sorted(found.items()))


def return_after(rows: Sequence[common.Row], *, minutes: float = math.inf,
                 timesteps: float = math.inf) -> Optional[float]:
  """Returns the mean return in the last row that is not past either limit.

  Args:
    rows: of one run.
    minutes: since the first row.
    timesteps: since the start.

  Returns:
    The return, or None if the run was over before that many minutes.
  """
  end = rows[0]['walltime_seconds'] + 60 * minutes
  if rows[-1]['walltime_seconds'] + _ROW_SECONDS < end < math.inf:
    return None
  return [row for row in rows if row['walltime_seconds'] <= end and (
      row['timesteps'] <= timesteps or row is rows[0])][-1][curves.RETURN]


def _mean(values: Sequence[Optional[float]]) -> str:
  there = [value for value in values if value is not None]
  return f'{np.mean(there):,.1f}' if len(there) == len(values) else '-'


def _print_game(game: str, runs_of: Mapping[str, Mapping[int, Sequence[common.Row]]]
                ) -> None:
  """Prints each player's progress in a game, by minutes and by timesteps."""
  least = min(rows[-1]['timesteps'] for of_player in runs_of.values()
              for rows in of_player.values())
  common.print_header([game, *(f'after {minutes} minutes' for minutes in _MINUTES),
                       'at the end', f'after {least:,.0f} timesteps',
                       'timesteps in all'])
  limits: list[dict[str, float]] = [{'minutes': minutes} for minutes in _MINUTES]
  limits += [{}, {'timesteps': least}]
  for player, of_player in runs_of.items():
    of_seeds = list(of_player.values())
    means = [_mean([return_after(rows, **limit) for rows in of_seeds])
             for limit in limits]
    timesteps = np.mean([rows[-1]['timesteps'] for rows in of_seeds])
    common.print_row([player, *means, f'{timesteps:,.0f}'])
  print()


def report(players: Sequence[str], games: Sequence[str]) -> None:
  """Prints the means of each player in each game, and of all games together."""
  scores: dict[str, dict[str, dict[int, float]]] = {
      player: {} for player in players}
  for game in games:
    runs_of = {player: kept for player in players
               if (kept := read_runs(player, game))}
    if runs_of:
      _print_game(game, runs_of)
    for player, of_player in runs_of.items():
      scores[player][game] = {
          seed: rows[-1][curves.RETURN] for seed, rows in of_player.items()}
  common.print_header(['game', *players])
  for game in games:
    common.print_row([game, *(
        f'{np.mean(list(of_seeds.values())):,.1f} ({len(of_seeds)})'
        if (of_seeds := scores[player].get(game)) else '-' for player in players)])
  seeds = _shared_seeds(games, scores)
  cells = []
  for player in players:
    if not seeds or set(scores[player]) != set(games):
      cells.append('-')
      continue
    estimate = interquartile_mean({
        game: [normalized(game, of_seeds[seed]) for seed in seeds]
        for game, of_seeds in scores[player].items()})
    # One seed says nothing about how much seeds differ.
    cells.append(f'{estimate.centre:.3f}' + (
        f' ({estimate.low:.3f} to {estimate.high:.3f})' if len(seeds) > 1 else ''))
  of = ', '.join(map(str, seeds)) or 'none'
  common.print_row([f'interquartile mean, normalised (seeds: {of})', *cells])


def _shared_seeds(
    games: Sequence[str],
    scores: Mapping[str, Mapping[str, Mapping[int, float]]]) -> list[int]:
  """Returns the seeds that every player with all games has of every game.

  With another seed of one game, that game would count twice.
  """
  of_runs = [set(of_seeds) for of_player in scores.values()
             if set(of_player) == set(games) for of_seeds in of_player.values()]
  return sorted(set.intersection(*of_runs)) if of_runs else []


def _check_kept(player: str, game: str, seed: int, minutes: float,
                train_flags: Sequence[str]) -> None:
  """Raises ValueError, in one line, if a kept run was made in another way."""
  path = _kept(game, player, seed) / runs.RUN_FILE
  try:
    made = json.loads(path.read_text())
    how = made['minutes'], made['train_flags']
  except (OSError, ValueError, KeyError):
    raise ValueError(f'{path} does not say how that run was made; remove its folder '
                     'to repeat it.') from None
  if not math.isclose(how[0], minutes) or how[1] != list(train_flags):
    raise ValueError(
        f'{path} is of a run of {how[0]:g} minutes, with the flags '
        f'{" ".join(how[1])!r}; remove its folder to repeat it.')


def play(player: str, game: str, seed: int, seconds: float,
         environments: Optional[str], train_flags: Sequence[str]) -> None:
  """Runs one player on one game, and keeps its rows and its command.

  Raises:
    RuntimeError: if it does not run; the message has its last output.
  """
  environment = os.path.join(environments or '', runs.installed_as(player))
  machine = runs.made_on(player, environment)
  rows, memory = runs.play(player, environment, game, seed, seconds,
                           train_flags=train_flags)
  runs.keep(player, game, seed, rows, minutes=seconds / 60, memory=memory,
            machine=machine, train_flags=train_flags)
  common.print_row([player, game, seed, f'{rows[-1]["timesteps"]:,.0f}',
                    f'{rows[-1]["episode_return_mean_100"]:.1f}'])


def main(argv: Optional[Sequence[str]] = None) -> None:
  parser = common.Parser('games', __doc__)
  parser.add_several('game', default=GAMES, choices=REFERENCES, metavar='GAME',
                     help=f'of {", ".join(REFERENCES)}; by default all but pong')
  parser.add_several('peer', default=PLAYERS, choices=PLAYERS, metavar='PEER',
                     help=f'of {", ".join(PLAYERS)}; by default all')
  parser.add_several('seed', type=int, default=[0, 1])
  parser.add_argument('--minutes', type=common.positive(float), default=15.,
                      help='of each run, from its first row of progress')
  parser.add_argument('--environments', help=(
      'the directory that holds what install.sh made, each by its name'))
  parser.add_argument('--report', action='store_true',
                      help='print the table of what is kept')
  parser.add_train_flags('flags of launch.train, for ours only')
  flags = parser.parse_args(argv)
  if flags.report:
    report(flags.peers, flags.games)
    return
  for player in flags.peers:
    name = runs.installed_as(player)
    if not runs.can_run(player, os.path.join(flags.environments or '', name)):
      parser.error(
          f'--environments {flags.environments} has no {name}; make it with '
          f'benchmarks/peers/install.sh {name} DIRECTORY/{name}.')
  # Peers take turns, so that hours in which the machine is slow affect all.
  wanted = list(itertools.product(flags.seeds, flags.games, flags.peers))
  flags_of = {player: flags.train_flags if player == runs.OURS else []
              for player in flags.peers}
  for seed, game, player in wanted:
    if _is_kept(game, player, seed):
      try:
        _check_kept(player, game, seed, flags.minutes, flags_of[player])
      except ValueError as e:
        parser.error(str(e))
  common.print_header(['peer', 'game', 'seed', 'timesteps', 'last mean return'])
  for seed, game, player in wanted:
    if _is_kept(game, player, seed):
      continue
    try:
      play(player, game, seed, 60 * flags.minutes, flags.environments,
           flags_of[player])
    except RuntimeError as e:
      sys.exit(f'games: error: {player} on {game}: {e}')


if __name__ == '__main__':
  common.run(main)
