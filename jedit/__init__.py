"""jedit edits facts inside language models and measures what changed and what did not."""

from jedit import methods
from jedit.editor import edit
from jedit.evals.evaluate import evaluate
from jedit.language_model import LanguageModel, load
from jedit.patch import Patch
from jedit.recipe import Recipe
from jedit.second_moment import SecondMoments, statistics
from jedit.testbeds import testbed
from jedit.types import Record, Request, UserError

__all__ = [
  'LanguageModel',
  'Patch',
  'Recipe',
  'Record',
  'Request',
  'SecondMoments',
  'UserError',
  'edit',
  'evaluate',
  'load',
  'methods',
  'statistics',
  'testbed',
]
