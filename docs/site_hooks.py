"""Makes pages of the site out of files that are not in docs/."""

import pathlib
import re

from mkdocs.structure import files as files_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent
_PAGES = {'README.md': 'index.md', 'CONTRIBUTING.md': 'contributing.md',
          'CHANGELOG.md': 'changelog.md'}
_PICTURES = 'benchmarks/results'


def _with_links(text: str) -> str:
  """Returns a page whose links lead where the files are in the site."""
  text = text.replace('](docs/', '](').replace(f'](../{_PICTURES}/', '](pictures/')
  for file, page in _PAGES.items():
    text = re.sub(rf'\]\((\.\./)?{re.escape(file)}', f']({page}', text)
  return text.replace('](LICENSE)', '](LICENSE.txt)')


def on_files(files, config):
  """Adds them to the site."""
  for file, page in _PAGES.items():
    files.append(files_lib.File.generated(
        config, page, content=_with_links((ROOT / file).read_text())))
  for path in (ROOT / _PICTURES).glob('*.png'):
    files.append(files_lib.File.generated(
        config, f'pictures/{path.name}', content=path.read_bytes()))
  files.append(files_lib.File.generated(
      config, 'LICENSE.txt', content=(ROOT / 'LICENSE').read_text()))
  return files


def on_page_markdown(markdown, page, config, files):
  """Mends links of the pages that are in docs/."""
  del page, config, files
  return _with_links(markdown)
