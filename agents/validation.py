"""Checks settings against their types, which fully define the valid values.

The fields of a config are `bool`, `str`, a `Literal` of texts,
`Annotated[int, Field(ge=1, le=64)]`, `Annotated[float, Field(gt=0, le=1)]`, an
`Optional` of these, or a `tuple[..., ...]` of one or more of these.
"""

import dataclasses
import functools
import reprlib
import typing
from typing import Any, Mapping

import numpy as np
import pydantic

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 60


@functools.lru_cache(maxsize=None)
def fields(config_class: type) -> Mapping[str, pydantic.TypeAdapter]:
  """Returns the validator of each field of a dataclass, by name and in order."""
  hints = typing.get_type_hints(config_class, include_extras=True)
  return {field.name: pydantic.TypeAdapter(hints[field.name],
                                           config={'strict': True})
          for field in dataclasses.fields(config_class)}


def check(config: Any) -> None:
  """Checks every field of a dataclass and converts it to its type.

  NumPy's numbers become Python's, integers become floats where a float is
  expected, and lists become tuples.

  Args:
    config: an instance of a dataclass, which is changed in place.

  Raises:
    ValueError: for a bad value, in one line that names its field.
  """
  for name, field in fields(config.__class__).items():
    setattr(config, name, checked(name, field, getattr(config, name)))


def checked(name: str, field: pydantic.TypeAdapter, value: Any) -> Any:
  """Returns a value converted to its type; errors call it `name`."""
  plain = value.item() if isinstance(value, np.generic) else value
  if isinstance(value, (list, tuple)):
    plain = tuple(part.item() if isinstance(part, np.generic) else part
                  for part in value)
  try:
    return field.validate_python(plain)
  except pydantic.ValidationError:
    raise ValueError(f'{name} must be {_described(field.json_schema())}, not '
                     f'{shown(value)}.') from None


def _described(schema: Mapping[str, Any]) -> str:
  if 'anyOf' in schema:
    return f'{_described(schema["anyOf"][0])}, or none'
  if 'enum' in schema:
    return f'one of {", ".join(schema["enum"])}'
  if 'items' in schema:
    return f'one or more values, each {_described(schema["items"])}'
  kind = {'boolean': 'true or false', 'string': 'a text',
          'integer': 'an integer', 'number': 'a number'}[schema['type']]
  if 'maxLength' in schema:
    return f'{kind} of {schema["minLength"]} to {schema["maxLength"]} characters'
  if 'maximum' not in schema:
    return kind
  low = (f'({schema["exclusiveMinimum"]}' if 'exclusiveMinimum' in schema
         else f'[{schema["minimum"]}')
  return f'{kind} in {low}, {schema["maximum"]}]'


def shown(value: Any) -> str:
  """Returns a value as errors show it: short, and in one line."""
  if value is None or isinstance(value, (bool, np.bool_)):
    return str(value).lower()
  try:
    return ' '.join(_SHORT.repr(value).split())
  except ValueError:  # Python refuses to print integers of thousands of digits.
    return 'a number of very many digits'
