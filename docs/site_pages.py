"""Pages of the documentation site that no file in docs/ holds; mkdocs.yml names this file.

The overview is README.md, with its links as seen from docs/. The reference lists every public name
of jedit and of its subpackages, whose docstrings mkdocstrings fills in.
"""

import inspect
import pathlib
from collections.abc import Iterator
from types import ModuleType

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import jedit

ROOT = pathlib.Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Adds the two pages."""
  readme = (ROOT / 'README.md').read_text('utf-8').replace('](docs/', '](')
  files.append(File.generated(config, 'index.md', content=readme))
  files.append(File.generated(config, 'reference.md', content='\n\n'.join(_reference())))
  return files


def _reference() -> Iterator[str]:
  """Directives of mkdocstrings: the names of jedit, then those of each public subpackage."""
  yield '# Reference'
  yield from _section(jedit)
  for value in map(jedit.__getattr__, jedit.__all__):
    if inspect.ismodule(value):
      yield from _section(value)


def _section(module: ModuleType) -> Iterator[str]:
  """The functions and classes of a package, each where it is defined."""
  found = [getattr(module, name) for name in getattr(module, '__all__', sorted(vars(module)))]
  found = [value for value in found if inspect.isfunction(value) or inspect.isclass(value)]
  found = [value for value in found if value.__module__.startswith('jedit.')]
  if found:
    yield f'## {module.__name__}'
  for value in found:
    yield f'::: {value.__module__}.{value.__qualname__}\n    options:\n      heading_level: 3'
