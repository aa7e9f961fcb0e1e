"""Pages of the documentation site that no file in docs/ holds; mkdocs.yml names this file.

The overview is README.md, with its links as seen from docs/. The reference lists every public name
of jedit and of its subpackages, whose docstrings mkdocstrings fills in. Notebooks of docs/notebooks
are shown with the outputs stored in them.
"""

import inspect
import pathlib
from collections.abc import Iterator
from types import ModuleType

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import jedit

ROOT = pathlib.Path(__file__).parents[1]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
  """Adds the notebooks to the navigation, after the overview."""
  found = sorted((ROOT / 'docs' / 'notebooks').glob('*.ipynb'))
  if found and config.nav is not None:
    config.nav.insert(1, {'Notebooks': [f'notebooks/{file.name}' for file in found]})
  return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Adds the two pages."""
  readme = (ROOT / 'README.md').read_text('utf-8').replace('](docs/', '](')
  files.append(File.generated(config, 'index.md', content=readme))
  files.append(File.generated(config, 'reference.md', content='\n\n'.join(_reference())))
  return files


def _reference() -> Iterator[str]:
  """Directives of mkdocstrings: the names of jedit, then those of each public subpackage."""
  yield '# Reference'
  packages = [value for value in map(jedit.__getattr__, jedit.__all__) if inspect.ismodule(value)]
  shown: set[str] = set()
  for package in (jedit, *packages):
    paths = [path for path in _paths(package) if path not in shown]
    shown.update(paths)
    if paths:
      yield f'## {package.__name__}'
    for path in paths:
      yield f'::: {path}\n    options:\n      heading_level: 3'


def _paths(package: ModuleType) -> list[str]:
  """Where the functions and classes of a package are defined."""
  values = [getattr(package, name) for name in getattr(package, '__all__', sorted(vars(package)))]
  values = [value for value in values if inspect.isfunction(value) or inspect.isclass(value)]
  return [
    f'{value.__module__}.{value.__qualname__}'
    for value in values
    if hasattr(package, '__all__') or value.__module__ == package.__name__
  ]
