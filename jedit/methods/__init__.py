"""Editing methods as frozen settings; `get` finds one by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jedit.methods.base import Recipe
from jedit.methods.fine_tune import FineTuning
from jedit.methods.fine_tuning import ft, ft_l, ft_w
from jedit.methods.single_region import alphaedit, emmet, memit, pmet, r_rome, rome
from jedit.methods.two_regions import jeep
from jedit.types import UserError

__all__ = [
  'METHODS',
  'Method',
  'alphaedit',
  'emmet',
  'ft',
  'ft_l',
  'ft_w',
  'get',
  'jeep',
  'memit',
  'pmet',
  'r_rome',
  'rome',
]

Method = Recipe | FineTuning

METHODS: Mapping[str, Callable[..., Method]] = {
  'alphaedit': alphaedit,
  'emmet': emmet,
  'ft': ft,
  'ft_l': ft_l,
  'ft_w': ft_w,
  'jeep': jeep,
  'memit': memit,
  'pmet': pmet,
  'r_rome': r_rome,
  'rome': rome,
}


def get(name: str, **fields: Any) -> Method:
  """The settings of a method by its name.

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
