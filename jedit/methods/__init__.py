"""Editing methods as recipes; `get` finds one by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jedit.methods.single_region import emmet, memit, pmet, rome
from jedit.methods.two_regions import jeep
from jedit.recipe import Recipe
from jedit.types import UserError

__all__ = ['METHODS', 'emmet', 'get', 'jeep', 'memit', 'pmet', 'rome']

METHODS: Mapping[str, Callable[..., Recipe]] = {
  'emmet': emmet,
  'jeep': jeep,
  'memit': memit,
  'pmet': pmet,
  'rome': rome,
}


def get(name: str, **fields: Any) -> Recipe:
  """The recipe of a method by its name.

  Raises:
    UserError: for a name or field that does not exist, or one that is missing.
  """
  if name not in METHODS:
    raise UserError(f'There is no method {name!r}; choose one of {", ".join(METHODS)}.')
  parameters = inspect.signature(METHODS[name]).parameters
  for field in fields:
    if field not in parameters:
      raise UserError(f'Method {name} has no field {field!r}; it has {", ".join(parameters)}.')
  for field, parameter in parameters.items():
    if parameter.default is parameter.empty and field not in fields:
      raise UserError(f'Method {name} needs {field}; give it.')
  return METHODS[name](**fields)
