"""jedit edits facts inside language models and measures what changed and what did not.

Names are imported when they are first used, so that a command line that only prints its help, or
finds a wrong flag, does not wait for the numerical libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from jedit import methods
  from jedit.editing.batches import edit_separately, edit_sequentially
  from jedit.editing.edit import edit
  from jedit.evals.evaluate import evaluate
  from jedit.methods.base import Recipe
  from jedit.methods.presets import preset
  from jedit.models.language_model import LanguageModel, load
  from jedit.models.patch import Patch
  from jedit.moments.collect import statistics
  from jedit.moments.files import SecondMoments
  from jedit.testbeds import testbed
  from jedit.types import Record, Request, UserError

_HOME = {
  'LanguageModel': 'models.language_model',
  'Patch': 'models.patch',
  'Recipe': 'methods.base',
  'Record': 'types',
  'Request': 'types',
  'SecondMoments': 'moments.files',
  'UserError': 'types',
  'edit': 'editing.edit',
  'edit_separately': 'editing.batches',
  'edit_sequentially': 'editing.batches',
  'evaluate': 'evals.evaluate',
  'load': 'models.language_model',
  'preset': 'methods.presets',
  'statistics': 'moments.collect',
  'testbed': 'testbeds',
}

__all__ = [
  'LanguageModel',
  'Patch',
  'Recipe',
  'Record',
  'Request',
  'SecondMoments',
  'UserError',
  'edit',
  'edit_separately',
  'edit_sequentially',
  'evaluate',
  'load',
  'methods',
  'preset',
  'statistics',
  'testbed',
]


def __getattr__(name: str) -> Any:
  if name == 'methods':
    return importlib.import_module('jedit.methods')
  if name not in _HOME:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'jedit.{_HOME[name]}'), name)


def __dir__() -> list[str]:
  return sorted(__all__)
