"""jedit edits facts inside language models and measures what changed and what did not."""

from jedit import methods
from jedit.editor import edit
from jedit.language_model import LanguageModel, load
from jedit.patch import Patch
from jedit.recipe import Recipe
from jedit.second_moment import SecondMoments
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
  'load',
  'methods',
]
