"""Provenance of a patch: everything that decides an edit, as JSON-able values."""

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jedit.editing.method import Method
from jedit.models.language_model import LanguageModel
from jedit.types import Request


def describe(
  lm: LanguageModel, requests: Sequence[Request], method: Method, seed: int
) -> dict[str, Any]:
  """Model, requests, settings, seed and jax version of an edit.

  Args:
    lm: the model that is edited.
    requests: the edits.
    method: a dataclass, or an object whose public attributes are its settings.
    seed: of every random draw.
  """
  settings = describe_settings(method)
  if not isinstance(settings, dict):
    public = {name: each for name, each in vars(method).items() if not name.startswith('_')}
    settings = {'kind': type(method).__name__, **describe_settings(public)}
  return {
    'model': lm.fingerprint,
    'family': lm.config.family,
    'patches_before': [patch.id for patch in lm.patches],
    'method': {'name': method.name, **settings},
    'num_edits': len(requests),
    'requests': digest_requests(requests),
    'seed': seed,
    'jax': jax.__version__,
  }


def digest_requests(requests: Sequence[Request]) -> str:
  """Hash of the requests."""
  return hashlib.sha256(repr(list(requests)).encode()).hexdigest()[:16]


def describe_settings(value: Any) -> Any:
  """Settings as JSON-able values; dataclasses name their class: solvers may differ in it alone.

  Infinite thresholds, which disable a rule, become None. Other objects are named by their `repr`.
  """
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {f.name: describe_settings(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return {'kind': type(value).__name__, **fields}
  if isinstance(value, Mapping):
    return {str(name): describe_settings(each) for name, each in value.items()}
  if isinstance(value, tuple | list):
    return [describe_settings(each) for each in value]
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if value is None or isinstance(value, str | int):
    return value
  return getattr(value, '__qualname__', None) or repr(value)
