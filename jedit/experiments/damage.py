"""Monitors the damage that a sequence of edits does to the model, to stop in time."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jedit.evals.evaluate import evaluate
from jedit.experiments.schema import Edit
from jedit.io import sealed
from jedit.io.jsonl import read_jsonl, write_jsonl
from jedit.io.progress import quiet
from jedit.io.storage import to_json
from jedit.models.language_model import LanguageModel
from jedit.types import Record

_FORMAT = 'jedit damage 1'


class DamageMonitor:
  """Growth of the edited kernels and specificity on a few records, batch by batch.

  Attributes:
    rows: one dict per batch, first the unedited model's: `edits` so far, `growth` by parameter
      path (‖W - W₀‖ / ‖W₀‖, Frobenius norms) and `neighborhood`, percent, or None.
  """

  def __init__(
    self,
    file: pathlib.Path,
    lm: LanguageModel,
    records: Sequence[Record],
    settings: Edit,
    key: Any = None,
  ):
    """Args:

    file: JSON lines; rows already there are not measured again.
    lm: the unedited model.
    records: of the run; the first ones with neighborhood prompts are the canary.
    settings: size of the canary and thresholds.
    key: everything that the rows depend on.
    """
    self._file, self._settings, self._key = file, settings, key
    watched = [record for record in records if record.neighborhood_prompts]
    self._canary = [
      dataclasses.replace(record, paraphrase_prompts=()) for record in watched[: settings.canary]
    ]
    self.rows: list[dict[str, Any]] = sealed.kept(file, read_jsonl, _FORMAT, key) or []
    if not self.rows:
      self._add(0, lm)

  def check(self, edits: int, lm: LanguageModel) -> str:
    """Measures the model after so many edits; returns the reason to stop as a sentence, or ''."""
    known = [row for row in self.rows if row['edits'] == edits]
    row = known[0] if known else self._add(edits, lm)
    path, growth = max(row['growth'].items(), key=lambda item: item[1])
    if self._settings.max_growth and growth > self._settings.max_growth:
      return (
        f'Stopped after {edits} edits: {path} has moved by {growth:.2f} of its norm, more than '
        f'edit.max_growth = {self._settings.max_growth:g}.'
      )
    kept = row['neighborhood']
    if kept is not None and kept < self._settings.min_neighborhood:
      return (
        f'Stopped after {edits} edits: neighborhood on the canary is {kept:.1f}%, below '
        f'edit.min_neighborhood = {self._settings.min_neighborhood:g}.'
      )
    return ''

  def _add(self, edits: int, lm: LanguageModel) -> dict[str, Any]:
    paths = dict.fromkeys(path for patch in lm.patches for path in patch.updates)
    row = {
      'edits': edits,
      'growth': {path: _growth(lm, path) for path in paths},
      'neighborhood': self._neighborhood(lm),
    }
    self.rows.append(to_json(row))
    write_jsonl(self._file, _FORMAT, self.rows, self._key)
    return self.rows[-1]

  def _neighborhood(self, lm: LanguageModel) -> float | None:
    if not self._canary:
      return None
    with quiet():
      found = evaluate(lm, self._canary).metrics
    # Records without a true answer have token accuracy, not success.
    return found.get('neighborhood', found['neighborhood_acc'])['after']['mean']  # type: ignore[return-value]


def _growth(lm: LanguageModel, path: str) -> float:
  now: Any = lm.params
  base: Any = lm.base
  for key in path.split('/'):
    now, base = now[key], base[key]
  base = base.astype(jnp.float32)
  return float(jnp.linalg.norm(now - base) / jnp.linalg.norm(base))
