"""Editing methods as frozen settings; `get` finds one by name.

Any object with the members of `Method` is a method. An entry in `METHODS` makes one known to
configs and the command line: a constructor whose arguments are the fields of the section `method`.
"""

import inspect
from collections.abc import Callable
from typing import Any

from jedit.editing.method import Method
from jedit.methods.alphaedit import alphaedit
from jedit.methods.emmet import emmet
from jedit.methods.fine_tuning import FineTuning, ft, ft_l, ft_w
from jedit.methods.hypernetwork import HyperNetwork
from jedit.methods.jeep import jeep
from jedit.methods.malmen import malmen
from jedit.methods.memit import memit
from jedit.methods.mend import mend
from jedit.methods.pmet import pmet
from jedit.methods.recipe import Recipe
from jedit.methods.rome import r_rome, rome
from jedit.types import UserError

__all__ = [
  'METHODS',
  'FineTuning',
  'HyperNetwork',
  'Method',
  'Recipe',
  'alphaedit',
  'emmet',
  'ft',
  'ft_l',
  'ft_w',
  'get',
  'jeep',
  'malmen',
  'memit',
  'mend',
  'pmet',
  'r_rome',
  'rome',
]

METHODS: dict[str, Callable[..., Method]] = {
  'alphaedit': alphaedit,
  'emmet': emmet,
  'ft': ft,
  'ft_l': ft_l,
  'ft_w': ft_w,
  'jeep': jeep,
  'malmen': malmen,
  'memit': memit,
  'mend': mend,
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
    if field.replace('spread', 'schedule') in parameters and field not in parameters:
      raise UserError(f'The field {field} is called {field.replace("spread", "schedule")} now.')
    if field not in parameters:
      raise UserError(f'Method {name} has no field {field!r}; it has {", ".join(parameters)}.')
  for field, parameter in parameters.items():
    if parameter.default is parameter.empty and field not in fields:
      raise UserError(f'Method {name} needs {field}; give it.')
  return METHODS[name](**fields)
