"""Checks settings against their types, which say all that a value may be.

The fields of a config are `bool`, `str`, a `Literal` of texts,
`Annotated[int, Range(1, 64)]`, `Annotated[float, Range(0, 1)]`, an `Optional`
of these, or a `Tuple[..., ...]` of one or more of these.
"""

import dataclasses
import functools
import numbers
import reprlib
import typing
from typing import Annotated, Any, Dict, Literal, Mapping, Optional, Tuple, Union

import numpy as np

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 60


@dataclasses.dataclass(frozen=True)
class Range:
  """The numbers in [low, high], or in (low, high] where `above` is true."""
  low: Union[int, float]
  high: Union[int, float]
  above: bool = False

  def __contains__(self, value: Any) -> bool:
    # False for nan, whatever it is compared with.
    return bool(self.low <= value <= self.high
                and not (self.above and value == self.low))

  def __str__(self) -> str:
    return f'{"(" if self.above else "["}{self.low}, {self.high}]'


def check(config: Any) -> None:
  """Checks every field of a dataclass and stores it as its type has it.

  NumPy's numbers become Python's, integers become floats where a float is
  wanted, and lists tuples.

  Args:
    config: an instance of a dataclass, which is changed in place.

  Raises:
    ValueError: for a bad value, in one line that names it.
  """
  for name, annotation in annotations(config.__class__).items():
    setattr(config, name, checked(name, annotation, getattr(config, name)))


@functools.lru_cache(maxsize=None)
def annotations(config_class: type) -> Mapping[str, Any]:
  """Returns the types of a dataclass's fields, by name and in order."""
  hints = typing.get_type_hints(config_class, include_extras=True)
  return {field.name: hints[field.name]
          for field in dataclasses.fields(config_class)}


def defaults(config_class: type) -> Dict[str, Any]:
  """Returns the defaults of a dataclass's fields, where they have one."""
  values = {}
  for field in dataclasses.fields(config_class):
    if field.default is not dataclasses.MISSING:
      values[field.name] = field.default
    elif field.default_factory is not dataclasses.MISSING:
      values[field.name] = field.default_factory()
  return values


def checked(name: str, annotation: Any, value: Any) -> Any:
  """Returns a value as its type has it.

  Args:
    name: names the value in errors.
    annotation: the type, as described above.
    value: of any kind.

  Returns:
    The value.

  Raises:
    ValueError: where the type does not allow it, in one line.
  """
  try:
    return _converted(annotation, value)
  except _UnfitError:
    raise ValueError(
        f'{name} must be {_described(annotation)}, not {shown(value)}.') from None


def parsed(annotation: Any, text: str) -> Any:
  """Returns what a text means for a type.

  Args:
    annotation: the type, as described above.
    text: a number, a choice, `none`, or several with commas between them.

  Returns:
    A value to check: a text that means nothing is returned as it is.
  """
  base, _ = _split(annotation)
  if _is_optional(base):
    inner = typing.get_args(base)[0]
    is_none = text.lower() == 'none' and _split(inner)[0] is not str
    return None if is_none else parsed(inner, text)
  if typing.get_origin(base) is tuple:
    inner = typing.get_args(base)[0]
    return tuple(parsed(inner, part) for part in text.split(','))
  if base in (int, float):
    try:
      return base(text)
    except ValueError:
      pass
  return text


def placeholder(annotation: Any) -> str:
  """Returns the form of the texts that `parsed` understands, for a help text."""
  base, _ = _split(annotation)
  if _is_optional(base):
    inner = typing.get_args(base)[0]
    return placeholder(inner) + ('' if _split(inner)[0] is str else '|none')
  if typing.get_origin(base) is tuple:
    return f'{placeholder(typing.get_args(base)[0])},...'
  if typing.get_origin(base) is Literal:
    return f'{{{",".join(typing.get_args(base))}}}'
  return {int: 'INT', float: 'FLOAT'}.get(base, 'TEXT')


def shown(value: Any) -> str:
  """Returns a value as errors show it: short, and in one line."""
  if value is None or isinstance(value, (bool, np.bool_)):
    return str(value).lower()
  try:
    return ' '.join(_SHORT.repr(value).split())
  except ValueError:  # Python writes no integers of thousands of digits.
    return 'a number of very many digits'


class _UnfitError(Exception):
  """A value is not what its type allows."""


def _split(annotation: Any) -> Tuple[Any, Optional[Range]]:
  if typing.get_origin(annotation) is Annotated:
    base, limits = typing.get_args(annotation)
    return base, limits
  return annotation, None


def _is_optional(base: Any) -> bool:
  return (typing.get_origin(base) is Union
          and typing.get_args(base)[1:] == (type(None),))


def _converted(annotation: Any, value: Any) -> Any:
  base, limits = _split(annotation)
  if _is_optional(base):
    return (None if value is None
            else _converted(typing.get_args(base)[0], value))
  if typing.get_origin(base) is tuple:
    if not isinstance(value, (tuple, list)) or not value:
      raise _UnfitError()
    return tuple(_converted(typing.get_args(base)[0], part) for part in value)
  if typing.get_origin(base) is Literal or base is str:
    if not isinstance(value, str) or (
        base is not str and value not in typing.get_args(base)):
      raise _UnfitError()
    return str(value)
  if base is bool:
    if not isinstance(value, (bool, np.bool_)):
      raise _UnfitError()
    return bool(value)
  if base not in (int, float) or limits is None:
    raise TypeError(f'a config cannot have fields of type {annotation}.')
  number = numbers.Integral if base is int else numbers.Real
  # A bool is an integer to Python.
  if (isinstance(value, bool) or not isinstance(value, number)
      or value not in limits):
    raise _UnfitError()
  return base(value)


def _described(annotation: Any) -> str:
  base, limits = _split(annotation)
  if _is_optional(base):
    return f'{_described(typing.get_args(base)[0])}, or none'
  if typing.get_origin(base) is tuple:
    return f'one or more values, each {_described(typing.get_args(base)[0])}'
  if typing.get_origin(base) is Literal:
    return f'one of {", ".join(typing.get_args(base))}'
  return {bool: 'true or false', str: 'a text', int: f'an integer in {limits}',
          float: f'a number in {limits}'}[base]
