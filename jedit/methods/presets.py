"""Published and tuned settings by name: the method sections of the shipped configs."""

import importlib
import pathlib

from jedit import configs, methods
from jedit.methods import Method
from jedit.types import UserError

# First words of file names that are shorter than the model's name.
_FULL = {'gptj': 'gptj-6b'}


def preset(method: str, model: str) -> Method:
  """The method of a shipped config; docs/presets.md has a table of them.

  Args:
    method: such as 'pmet'.
    model: such as 'gptj-6b', 'llama-2-7b' or 'testbed-gptj', for configs/pmet_testbed_gptj.py;
      with the rest of the file's name where there is one: 'gptj-6b-zsre'.

  Raises:
    UserError: where there is no such config; lists those that exist.
  """
  stems = _stems()
  if (method, model) not in stems:
    models = [on for each, on in stems if each == method]
    if models:
      raise UserError(f'There is no preset {method!r} for {model!r}; choose {_any(models)}.')
    known = sorted({each for each, _ in stems})
    raise UserError(f'There is no preset of a method {method!r}; choose {_any(known)}.')
  module = importlib.import_module(f'jedit.configs.{stems[method, model]}')
  return methods.get(**module.get_config().method.to_dict())


def names() -> list[tuple[str, str]]:
  """All presets as (method, model)."""
  return list(_stems())


def _stems() -> dict[tuple[str, str], str]:
  """Names of the configs' files by (method, model)."""
  found = {}
  for stem in sorted(f.stem for path in configs.__path__ for f in pathlib.Path(path).glob('*.py')):
    named = [method for method in methods.METHODS if stem.startswith(f'{method}_')]
    if named:
      method = max(named, key=len)  # names of methods may contain a _, too
      first, *rest = stem.removeprefix(f'{method}_').split('_')
      found[method, '-'.join([_FULL.get(first, first), *rest])] = stem
  return found


def _any(words: list[str]) -> str:
  return ', '.join(repr(word) for word in words)
