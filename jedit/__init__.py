"""jedit edits facts inside language models and measures what changed and what did not.

Names are imported when they are first used, so that a command line that only prints its help, or
finds a wrong flag, does not wait for the numerical libraries.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from jedit import methods
  from jedit.accumulate import statistics
  from jedit.batches import edit_separately, edit_sequentially
  from jedit.editor import edit
  from jedit.evals.evaluate import evaluate
  from jedit.language_model import LanguageModel, load
  from jedit.patch import Patch
  from jedit.presets import preset
  from jedit.recipe import Recipe
  from jedit.second_moment import SecondMoments
  from jedit.testbeds import testbed
  from jedit.types import Record, Request, UserError

_HOME = {
  'LanguageModel': 'language_model',
  'Patch': 'patch',
  'Recipe': 'recipe',
  'Record': 'types',
  'Request': 'types',
  'SecondMoments': 'second_moment',
  'UserError': 'types',
  'edit': 'editor',
  'edit_separately': 'batches',
  'edit_sequentially': 'batches',
  'evaluate': 'evals.evaluate',
  'load': 'language_model',
  'preset': 'presets',
  'statistics': 'accumulate',
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
