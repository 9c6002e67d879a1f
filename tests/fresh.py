"""Fresh environments with some distributions and what those need, and no others.

What is installed here is linked there, file by file, in place of a download.
"""

import importlib.metadata
import os
import pathlib
import subprocess
import sys
import venv

from packaging import requirements
from packaging import utils


def needed(*lines, extra=''):
  """Returns the distributions that requirements need, and that those need."""
  found = {}
  todo = [(line, extra) for line in lines]
  while todo:
    line, extra = todo.pop()
    requirement = requirements.Requirement(line)
    name = utils.canonicalize_name(requirement.name)
    if requirement.marker and not requirement.marker.evaluate({'extra': extra}):
      continue
    if name not in found:
      found[name] = importlib.metadata.distribution(name)
      todo += [(line, '') for line in found[name].requires or ()]
    todo += [(line, extra) for line in found[name].requires or ()
             for extra in requirement.extras]
  return list(found.values())


class Environment:
  """A fresh virtual environment.

  Attributes:
    bin: the folder of its programs.
    site: the folder of its packages.
  """

  def __init__(self, path):
    venv.create(path, with_pip=False)
    self.bin = pathlib.Path(path, 'bin')
    self.site = pathlib.Path(subprocess.run(
        [self.bin / 'python', '-c',
         'import sysconfig; print(sysconfig.get_path("purelib"))'],
        check=True, capture_output=True, text=True).stdout.strip())

  def link(self, distributions):
    """Links installed distributions into it, without their programs."""
    for distribution in distributions:
      metadata = pathlib.Path(distribution._path)
      files = [path.relative_to(metadata.parent) for path in metadata.rglob('*')]
      for file in [*files, *distribution.files]:
        link, origin = self.site / file, distribution.locate_file(file)
        # Older distributions list their sources, of which not all are installed.
        if '..' in file.parts or link.exists() or not origin.is_file():
          continue
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(origin, link)

  def pip(self, *args):
    """Runs the pip of this environment for that one; returns what it prints."""
    return subprocess.run(
        [sys.executable, '-m', 'pip', '--python', self.bin / 'python', *args],
        check=True, capture_output=True, text=True).stdout

  def run(self, cwd, program, *args, timeout=240):
    """Runs one of its programs, with nothing of this environment in sight."""
    hidden = ('PYTHONPATH', 'VIRTUAL_ENV')
    return subprocess.run(
        [self.bin / program, *args], cwd=cwd, timeout=timeout,
        capture_output=True, text=True,
        env={name: value for name, value in os.environ.items()
             if name not in hidden})
