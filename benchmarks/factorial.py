"""What a part is worth, from a factorial design: runs of each subset of the parts.

One group at a time says little with three seeds each; a comparison that takes every
group into account says as much as if there were several times as many.
"""

import math
import statistics
from typing import AbstractSet, Mapping, NamedTuple, Optional, Sequence

from scipy import stats

from benchmarks import common


class Effect(NamedTuple):
  """What a part adds to the mean, and its 95% interval."""
  mean: float
  low: float
  high: float


def effect(groups: Mapping[frozenset[str], Sequence[float]], part: str,
           beside: AbstractSet[str] = frozenset()) -> Optional[Effect]:
  """Returns what a part adds, averaged over the ways to have the others.

  The interval is by Welch and Satterthwaite, for groups that vary differently:
  Welch, The generalization of "Student's" problem (1947), for a sum of several
  means.

  Args:
    groups: the values of each group, by the parts that it has.
    part: which one.
    beside: only groups with these parts count.

  Returns:
    None if a group that is needed has fewer than two values.
  """
  parts = frozenset().union(*groups)
  others = parts - {part} - beside
  num_pairs = 2 ** len(others)
  used = [has for has in groups if has >= beside]
  if len(used) < 2 * num_pairs or min(len(groups[has]) for has in used) < 2:
    return None
  mean = sum((1 if part in has else -1) * statistics.mean(groups[has])
             for has in used) / num_pairs
  variances = [statistics.variance(groups[has]) / len(groups[has]) / num_pairs**2
               for has in used]
  variance = sum(variances)
  half = 0.
  if variance:
    freedom = variance**2 / sum(
        v**2 / (len(groups[has]) - 1) for v, has in zip(variances, used))
    half = stats.t.ppf((1 + common.CONFIDENCE) / 2, freedom) * math.sqrt(variance)
  return Effect(mean, mean - half, mean + half)
