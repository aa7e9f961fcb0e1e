"""Where a patch comes from: the part of its provenance that every editor writes."""

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
  """What decides an edit, as JSON-able values.

  Args:
    lm: the model that is edited.
    requests: what is written.
    method: settings, a dataclass with a name.
    seed: of whatever is drawn.
  """
  return {
    'model': lm.fingerprint,
    'patches_before': [patch.id for patch in lm.patches],
    'method': _settings(method),
    'num_edits': len(requests),
    'requests': hashlib.sha256(repr(list(requests)).encode()).hexdigest()[:16],
    'seed': seed,
    'jax': jax.__version__,
  }


def _settings(value: Any) -> Any:
  """Dataclasses as dicts that say of which kind they are: solvers differ in nothing else."""
  if dataclasses.is_dataclass(value):
    fields = {f.name: _settings(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return {'kind': type(value).__name__, **fields}
  if isinstance(value, tuple):
    return [_settings(each) for each in value]
  return value
