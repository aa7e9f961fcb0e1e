"""jedit edits facts inside language models and measures what changed and what did not.

Names are imported when they are first used, so that a command line that prints its help or finds a
wrong flag does not wait for the numerical libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from jedit import methods, models, parallel, probes, testbeds
  from jedit.data.records import load_records
  from jedit.editing.edit import Separate, Sequential, Together, edit, edit_stream
  from jedit.editing.result import EditResult
  from jedit.evals.evaluate import evaluate
  from jedit.evals.samples import sample_texts
  from jedit.experiments.plan import plan
  from jedit.experiments.results import read_records
  from jedit.hypernetworks.editor import Editor
  from jedit.hypernetworks.train import train_editor
  from jedit.methods.presets import preset
  from jedit.methods.recipe import Recipe
  from jedit.models.language_model import LanguageModel, load
  from jedit.models.patch import Patch
  from jedit.moments.collect import statistics
  from jedit.moments.files import SecondMoments
  from jedit.parallel.compilation_cache import cache_compilations
  from jedit.solvers import FactorCache
  from jedit.testbeds import testbed
  from jedit.types import Kernel, Record, Request, UserError

_HOME = {
  'EditResult': 'editing.result',
  'Editor': 'hypernetworks.editor',
  'FactorCache': 'solvers',
  'Kernel': 'types',
  'LanguageModel': 'models.language_model',
  'Patch': 'models.patch',
  'Recipe': 'methods.recipe',
  'Record': 'types',
  'Request': 'types',
  'SecondMoments': 'moments.files',
  'Separate': 'editing.edit',
  'Sequential': 'editing.edit',
  'Together': 'editing.edit',
  'UserError': 'types',
  'cache_compilations': 'parallel.compilation_cache',
  'edit': 'editing.edit',
  'edit_stream': 'editing.edit',
  'evaluate': 'evals.evaluate',
  'load': 'models.language_model',
  'load_records': 'data.records',
  'plan': 'experiments.plan',
  'preset': 'methods.presets',
  'read_records': 'experiments.results',
  'sample_texts': 'evals.samples',
  'statistics': 'moments.collect',
  'testbed': 'testbeds',
  'train_editor': 'hypernetworks.train',
}
_PACKAGES = ('methods', 'models', 'parallel', 'probes', 'testbeds')

__all__ = [
  'EditResult',
  'Editor',
  'FactorCache',
  'Kernel',
  'LanguageModel',
  'Patch',
  'Recipe',
  'Record',
  'Request',
  'SecondMoments',
  'Separate',
  'Sequential',
  'Together',
  'UserError',
  'cache_compilations',
  'edit',
  'edit_stream',
  'evaluate',
  'load',
  'load_records',
  'methods',
  'models',
  'parallel',
  'plan',
  'preset',
  'probes',
  'read_records',
  'sample_texts',
  'statistics',
  'testbed',
  'testbeds',
  'train_editor',
]


def __getattr__(name: str) -> Any:
  if name == '__version__':
    from importlib import metadata  # slow: main has to catch signals first

    return metadata.version('jedit')
  if name in _PACKAGES:
    return importlib.import_module(f'jedit.{name}')
  if name not in _HOME:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'jedit.{_HOME[name]}'), name)


def __dir__() -> list[str]:
  return sorted([*__all__, '__version__'])
