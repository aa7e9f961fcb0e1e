"""Published and tuned settings by name: the method sections of the shipped configs."""

import importlib
import pathlib

from jedit import configs, methods
from jedit.recipe import Recipe
from jedit.types import UserError

# Models whose configs carry a shorter name.
_SHORT = {'gptj-6b': 'gptj'}


def preset(method: str, model: str) -> Recipe:
  """The recipe of a shipped config.

  Args:
    method: such as 'pmet'.
    model: such as 'gptj-6b' or 'testbed-gptj', for configs/pmet_testbed_gptj.py.

  Raises:
    UserError: where there is no such config; lists those that exist.
  """
  if (method, model) not in names():
    known = ', '.join(f'{each!r} for {on!r}' for each, on in names())
    raise UserError(f'There is no preset {method!r} for {model!r}; choose {known}.')
  module = importlib.import_module(
    f'jedit.configs.{method}_{_SHORT.get(model, model).replace("-", "_")}'
  )
  return methods.get(**module.get_config().method.to_dict())


def names() -> list[tuple[str, str]]:
  """All presets as (method, model)."""
  stems = sorted(file.stem for path in configs.__path__ for file in pathlib.Path(path).glob('*.py'))
  full = {short: model for model, short in _SHORT.items()}
  found = []
  for stem in stems:
    method, _, model = stem.partition('_')
    if method in methods.METHODS and model:
      model = model.replace('_', '-')
      found.append((method, full.get(model, model)))
  return found
