"""Provenance of a patch: everything that decides an edit, as JSON-able values."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax

from jedit.models.language_model import LanguageModel
from jedit.types import Request


def describe(
  lm: LanguageModel, requests: Sequence[Request], method: Any, seed: int
) -> dict[str, Any]:
  """Model, requests, settings, seed and jax version of an edit.

  Args:
    lm: the model that is edited.
    requests: the edits.
    method: settings.
    seed: of every random draw.
  """
  return {
    'model': lm.fingerprint,
    'patches_before': [patch.id for patch in lm.patches],
    'method': describe_settings(method),
    'num_edits': len(requests),
    'requests': digest_requests(requests),
    'seed': seed,
    'jax': jax.__version__,
  }


def digest_requests(requests: Sequence[Request]) -> str:
  """Hash of the requests."""
  return hashlib.sha256(repr(list(requests)).encode()).hexdigest()[:16]


def describe_settings(value: Any) -> Any:
  """Settings as plain values, with the class of every dataclass: solvers may differ in it alone."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    fields = {f.name: describe_settings(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return {'kind': type(value).__name__, **fields}
  if isinstance(value, tuple | list):
    return [describe_settings(each) for each in value]
  if callable(value) or hasattr(value, '__dict__'):
    return getattr(value, '__qualname__', type(value).__qualname__)
  return value
