"""The command of the installed package, `impala-ppo`, which runs all others.

`impala-ppo train --game pong` is `python -m launch.train --game pong`, and likewise
for each module of `launch` whose docstring says how to run it.
"""

import ast
import importlib
import os
import pathlib
import re
import runpy
import sys
from typing import Optional, Sequence

from launch import errors

_COMPLETION = '--completion'
_SHELLS = ('bash', 'zsh', 'fish')


def commands() -> dict[str, str]:
  """Returns what each command does, by name, without importing any."""
  descriptions = {}
  for path in sorted(pathlib.Path(__file__).parent.glob('*.py')):
    line = (ast.get_docstring(ast.parse(path.read_text('utf-8'))) or '').partition(
        '\n')[0]
    found = re.match(rf'(.*): `python -m launch\.{path.stem}\b', line)
    if found:
      descriptions[path.stem] = found[1]
  return descriptions


def _help() -> str:
  descriptions = commands()
  width = max(map(len, descriptions))
  return '\n'.join([
      'usage: impala-ppo COMMAND [FLAGS]', '',
      *(f'  {name:<{width}}  {does}.' for name, does in descriptions.items()), '',
      '`impala-ppo COMMAND --help` says more of one.',
      f'`impala-ppo {_COMPLETION} bash`, or zsh or fish, prints a script that '
      'completes', 'commands and flags once your shell has sourced it.'])


def main(argv: Optional[Sequence[str]] = None) -> int:
  """Runs a command's module as `python -m` does, and returns the exit code."""
  name, *rest = (sys.argv[1:] if argv is None else argv) or ['--help']
  with errors.in_one_line():
    if name in ('--help', '-h'):
      print(_help())
      return 0
    if name == _COMPLETION:
      if len(rest) != 1 or rest[0] not in _SHELLS:
        raise ValueError(f'{_COMPLETION} takes a shell: {", ".join(_SHELLS)}.')
      # This imports every command, which takes seconds.
      flags = importlib.import_module('launch.flags')
      flags.print_completion('impala-ppo', {
          name: importlib.import_module(f'launch.{name}').FLAGS
          for name in commands()}, rest[0])
      return 0
    if name not in commands():
      hint = errors.nearest(name, commands())
      raise ValueError(f'there is no command {name!r}; ' + (
          f'did you mean {hint}?' if hint else
          f'there are {", ".join(commands())}.'))
  # As with python -m, games and wrappers in the current folder are found.
  sys.path.insert(0, os.getcwd())
  sys.argv = ['impala-ppo', *rest]
  runpy.run_module(f'launch.{name}', run_name='__main__', alter_sys=True)
  return 0


if __name__ == '__main__':
  sys.exit(main())
