"""Flags made from the fields of dataclasses.

The dataclasses are those of the configs and of the commands: a field's type and
range come from its annotation, its help from the class's docstring.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import re
import types
import typing
from typing import (
  Annotated,
  Any,
  Container,
  Iterable,
  Mapping,
  Optional,
  Sequence,
  TypedDict,
  Union,
)

import tyro
from tyro import constructors

from agents import validation
from launch import errors

# Follows from the game.
_NO_FLAG = ('frame_stack',)
_TYRO = (tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff)
# Replacements in tyro's scripts for shells, which offer no files for positional
# arguments, nor after a flag's first value.
_COMPLETION_MENDS: Mapping[str, list[tuple[str, str]]] = {
    'all': [(r'for completion in completions:$',
             "for completion in completions or ['__TYRO_COMPLETE_FILES__']:")],
    # It completes files for the word with the previous word glued to it.
    'bash': [(r'COMPREPLY=\(\$\(compgen -f .*', 'COMPREPLY=()'),
             (r'complete -F', 'complete -o default -F')],
    # It is meant for a folder of $fpath, and does nothing when sourced.
    'zsh': [(r'(#compdef (\S+)[\s\S]*)^((\w+) "\$@")$',
             r'\1if [[ $zsh_eval_context[-1] == loadautofunc ]]; then \3; '
             r'else compdef \4 \2; fi')],
    # It does not pass on the word being typed.
    'fish': [(r'set -l current \(count \$words\)$',
              r'\g<0>; set -a words (commandline -ct)')],
}


@dataclasses.dataclass(frozen=True)
class Flags:
  """The flags of a command, one for each field of some dataclasses.

  Attributes:
    prog: the command, for `--help`.
    description: what it does, for `--help`.
    sections: dataclasses, each a group of flags, by name.
    derived: for `--help`, the values that fields without a default have when
      their flag is not given.
    positional: the field of several strings, if any, that takes positional
      arguments.
    common: the fields that `--help` shows; only `--help_all` shows the others.
      By default all of them.
    hidden: the fields that neither shows, as the command refuses their flags.
  """
  prog: str
  description: str
  sections: Mapping[str, type]
  derived: Mapping[str, str] = types.MappingProxyType({})
  positional: str = ''
  common: Optional[Container[str]] = None
  hidden: Container[str] = ()

  def parse(self, argv: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parses flags.

    Args:
      argv: the flags; `--help` prints the help and exits.

    Returns:
      The values of the flags that were given, by section and name, unchecked.

    Raises:
      ValueError: for an unknown flag or a missing value; the message is one line.
    """
    argv = ['--help_all' if arg == '--help-all' else arg for arg in argv]
    for_help = not {'--help', '-h', '--help_all'}.isdisjoint(argv)
    is_short = for_help and self.common is not None and '--help_all' not in argv
    groups = self.groups(for_help, is_short)
    description = self.description
    if is_short:
      number = sum(flag not in self.hidden for group in groups.values()
                   for flag in group.__annotations__)
      description += ('\nThese are the flags that are used most; --help_all shows '
                      f'all {number}.')
    for config_class in self.sections.values():
      _refuse_repeated_words(config_class, argv)
    box = io.StringIO()
    try:
      with contextlib.redirect_stderr(box):
        values, unknown = tyro.cli(
            _optional_keys('Flags', groups), prog=self.prog,
            description=description, use_underscores=True,
            args=['--help' if arg == '--help_all' else arg for arg in argv],
            return_unknown_args=True, config=_TYRO)
    except SystemExit as e:
      if not e.code:
        raise
      raise ValueError(_unboxed(box.getvalue())) from None
    if unknown:
      raise ValueError(_unknown_flag(unknown[0], groups.values()))
    return values

  def groups(self, for_help: bool = False, is_short: bool = False,
             for_completion: bool = False) -> dict[str, Any]:
    """Returns the types that tyro makes flags of; for help, of those it shows."""
    groups = {}
    for name, config_class in self.sections.items():
      flags = _flags_of(config_class, self.derived, self.positional,
                        for_completion)
      for flag in flags:
        is_refused = flag in self.hidden and (for_help or for_completion)
        if is_refused or (is_short and flag not in (self.common or ())):
          flags[flag] = tyro.conf.Suppress[  # type: ignore[misc]
              flags[flag]]  # type: ignore[valid-type]
      groups[name] = _optional_keys(config_class.__name__, flags)
      groups[name].__doc__ = (config_class.__doc__ or '').partition('\n')[0]
    return groups


def as_argv(name: str, value: Any) -> list[str]:
  """Returns the flags that parse to a value."""
  if isinstance(value, bool):
    return [f'--{name}' if value else f'--no_{name}']
  if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
    return [f'--{name}', *value]
  if isinstance(value, (list, tuple)):
    return [f'--{name}={",".join(map(str, value))}']
  return [f'--{name}={"none" if value is None else value}']


def print_completion(prog: str, commands: Mapping[str, Flags], shell: str) -> None:
  """Prints a script that makes a shell complete a program's commands and flags.

  Args:
    prog: the program.
    commands: the flags of each of its commands, by name.
    shell: bash, zsh or fish.
  """
  parts = tuple(
      Annotated[_optional_keys('Flags', flags.groups(for_completion=True)),
                tyro.conf.subcommand(name, description=flags.description)]
      for name, flags in commands.items())
  any_of_them: Any = Union[parts]
  script = io.StringIO()
  with contextlib.suppress(SystemExit), contextlib.redirect_stdout(script):
    tyro.cli(any_of_them, prog=prog, args=['--tyro-print-completion', shell],
             use_underscores=True, config=_TYRO)
  text = script.getvalue()
  for pattern, mended in _COMPLETION_MENDS['all'] + _COMPLETION_MENDS[shell]:
    text = re.sub(pattern, mended, text, flags=re.MULTILINE)
  print(text, end='')


def _refuse_repeated_words(config_class: type, argv: Sequence[str]) -> None:
  """Raises ValueError if a repeated flag would replace its earlier values."""
  for name, field in validation.fields(config_class).items():
    given = [token for token in argv
             if token.partition('=')[0].replace('-', '_') == f'__{name}']
    if len(given) > 1 and _is_words(field.json_schema()):
      raise ValueError(f'--{name} is given twice; give all its values after one, '
                       f'as in --{name} FIRST SECOND.')


def _is_words(schema: Mapping[str, Any]) -> bool:
  """Tells fields of several strings, given as words, from numbers with commas."""
  return schema.get('items', {}).get('type') == 'string'


def _flags_of(config_class: type, derived: Mapping[str, str], positional: str,
              for_completion: bool) -> dict[str, Any]:
  """Returns the type that tyro makes a flag of, for each field.

  Only completion gets the choices: otherwise tyro's error would replace ours.
  """
  doc = config_class.__doc__ or ''
  helps = dict(re.findall(r'^    (\w+): ((?:.|\n      )*)', doc, re.MULTILINE))
  defaults = {**derived, **_defaults(config_class)}
  flags: dict[str, Any] = {}
  for name, field in validation.fields(config_class).items():
    if name in _NO_FLAG:
      continue
    schema = field.json_schema()
    argument = tyro.conf.arg(
        help=' '.join(helps.get(name, '').split()),
        help_behavior_hint=(f'(default: {defaults[name]})' if name in defaults
                            else '(required)'))
    if schema.get('type') == 'boolean':
      flags[name] = Annotated[bool, argument]  # Two flags: --name and --no_name.
    elif _is_words(schema):
      words: Any = Annotated[list, argument, constructors.PrimitiveConstructorSpec(
          nargs='*', metavar='TEXT ...', instance_from_str=list,
          is_instance=lambda _: True, str_from_instance=list)]
      flags[name] = (tyro.conf.Positional[words]  # type: ignore[misc]
                     if name == positional else words)
    else:
      flags[name] = Annotated[str, argument, constructors.PrimitiveConstructorSpec(
          nargs=1, metavar=_placeholder(schema), choices=(
              tuple(schema.get('anyOf', [schema])[0].get('enum', ())) or None
              if for_completion else None),
          instance_from_str=functools.partial(_meaning, schema),
          is_instance=lambda _: True, str_from_instance=lambda text: [text])]
  return flags


def _optional_keys(name: str, types_of_keys: dict[str, Any]) -> Any:
  """Returns a type of dict whose keys are all optional."""
  return TypedDict(name, types_of_keys, total=False)  # type: ignore


def _defaults(config_class: type) -> dict[str, str]:
  """Returns the defaults of a config's fields, as they are written in flags."""
  texts = {}
  for field in dataclasses.fields(config_class):
    value = (field.default if field.default_factory is dataclasses.MISSING
             else field.default_factory())
    if isinstance(value, tuple):
      texts[field.name] = ','.join(map(str, value)) or 'none'
    elif value is not dataclasses.MISSING:
      texts[field.name] = (value if isinstance(value, str)
                           else validation.shown(value))
  return texts


def _placeholder(schema: Mapping[str, Any]) -> str:
  """Returns the placeholder for the texts that `_meaning` parses."""
  if 'anyOf' in schema:
    return '|'.join(map(_placeholder, schema['anyOf']))
  if 'items' in schema:
    return f'{_placeholder(schema["items"])},...'
  if 'enum' in schema:
    return f'{{{",".join(schema["enum"])}}}'
  return {'integer': 'INT', 'number': 'FLOAT', 'null': 'none'}.get(
      schema['type'], 'TEXT')


def _meaning(schema: Mapping[str, Any], texts: Sequence[str]) -> Any:
  """Parses a flag's text; text that does not parse is returned unchanged."""
  text, = texts
  if 'anyOf' in schema:
    schema, _ = schema['anyOf']
    if text.lower() == 'none':
      return None
  if 'items' in schema:
    return [_meaning(schema['items'], [part]) for part in text.split(',')]
  try:
    return {'integer': int, 'number': float}.get(schema['type'], str)(text)
  except ValueError:
    return text


def _unboxed(box: str) -> str:
  """Returns the text of tyro's error box, without its title and footer."""
  lines = [line.strip(' │╭╮╰╯─') for line in box.splitlines()]
  _, *rest = [line for line in lines if line.strip('-')]
  return ' '.join(itertools.takewhile(
      lambda line: not line.startswith('For full helptext'), rest))


def _unknown_flag(token: str, groups: Iterable[Any]) -> str:
  if not token.startswith('-'):
    return (f'unexpected {validation.shown(token)}; each value follows its flag, '
            'and a flag for yes or no takes none (--name or --no_name).')
  known = ['--help', '--help_all']
  for group in groups:
    for name, annotation in group.__annotations__.items():
      known.append(f'--{name}')
      if typing.get_args(annotation)[0] is bool:
        known.append(f'--no_{name}')
  flag = token.partition('=')[0]
  hint = errors.nearest(flag.replace('-', '_').replace('__', '--', 1), known)
  return f'unknown flag {validation.shown(flag)}; ' + (
      f'did you mean {hint}?' if hint else 'see --help.')
