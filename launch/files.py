"""Reads files of values, in JSON or YAML, both equally strictly."""

import collections
import json
import os
import re
from typing import Any, Iterable

import yaml

from agents import validation


def read(path: str) -> Any:
  """Reads a JSON or YAML file; raises ValueError with a one-line message."""
  try:
    with open(os.path.expanduser(path), encoding='utf-8-sig') as f:
      if path.endswith('.json'):
        return json.load(f, object_pairs_hook=_once_each)
      return yaml.load(f, _Loader)
  except OSError as e:
    problem = (e.strerror or str(e)).lower()
  except RecursionError:
    problem = 'it is nested too deeply'
  except UnicodeDecodeError:
    problem = 'it is not UTF-8 text'
  except yaml.MarkedYAMLError as e:
    line = f'line {e.problem_mark.line + 1}: ' if e.problem_mark else ''
    problem = f'{line}{e.problem}'
  except (ValueError, yaml.YAMLError) as e:
    problem = ' '.join(str(e).split())
  except (LookupError, AttributeError, TypeError, OverflowError):
    problem = 'a value does not fit its tag'  # Such as `!!bool maybe`.
  raise ValueError(f'{path} cannot be read: {problem}.')


def _once_each(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
  pairs = list(pairs)
  for name, count in collections.Counter(name for name, _ in pairs).items():
    if count > 1:
      raise ValueError(f'{validation.shown(name)} stands in it twice')
  return dict(pairs)


class _Loader(yaml.SafeLoader):
  """Reads values as in JSON: 1e-4 is a number, and `no` is a string."""
  yaml_implicit_resolvers: dict[str, Any] = {}

  def construct_mapping(self, node: yaml.MappingNode,
                        deep: bool = False) -> dict[Any, Any]:
    mapping = super().construct_mapping(node, deep)
    _once_each((key.value, None) for key, _ in node.value)
    return mapping


for _tag, _pattern, _first in (
    ('null', r'null|~|', ['n', '~', '']),
    ('bool', r'true|false', ['t', 'f']),
    ('int', r'-?(0|[1-9]\d*)', [*'-0123456789']),
    ('float', r'-?(0|[1-9]\d*)(\.\d*)?([eE][-+]?\d+)?|-?\.inf|\.nan',
     [*'-.0123456789']),
):
  _Loader.add_implicit_resolver(
      f'tag:yaml.org,2002:{_tag}', re.compile(f'(?:{_pattern})$'), _first)
