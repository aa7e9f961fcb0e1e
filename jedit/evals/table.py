"""The result of an evaluation: values of every record and their estimates, as a table."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from jedit.evals import metrics
from jedit.evals.metrics import Summary, Values
from jedit.evals.prompts import Prompts
from jedit.io import html, tables
from jedit.types import UserError

_REPR_ROWS = 8


@dataclasses.dataclass(frozen=True, repr=False)
class Table:
  """Values of every record before and after an edit; `str`, `repr` and notebooks show estimates.

  Attributes:
    case_ids: the records, in the order of the values.
    after: by metric name, one value per record of the evaluated model, in the metric's unit; nan
      where undefined.
    before: the same for the model before the edit; None if not measured.
    unedited_after: by metric name, one value per prompt about an unedited subject; empty without
      such prompts.
    unedited_before: the same for the model before the edit (without `unedited_kept`).
    is_generated_R: mask of the records with generated texts, the only ones in metrics of texts;
      None for none.
    notes: sentences about the procedure and omitted metrics.
    prompts: the scores of every prompt; None for a table of values alone.
  """

  case_ids: tuple[int, ...]
  after: Values
  before: Values | None = None
  unedited_after: Values = dataclasses.field(default_factory=dict)
  unedited_before: Values = dataclasses.field(default_factory=dict)
  is_generated_R: np.ndarray | None = None
  notes: tuple[str, ...] = ()
  prompts: Prompts | None = None

  @functools.cached_property
  def metrics(self) -> dict[str, Summary]:
    """By metric name: `before` (if measured) and `after`, each with `mean`, `ci95` and `n`."""
    states = {}
    if self.before is not None:
      states['before'] = metrics.summarize(self.before | self.unedited_before)
    states['after'] = metrics.summarize(self.after | self.unedited_after)
    return {
      name: {state: found[name] for state, found in states.items() if name in found}
      for name in states['after']
    }

  def to_frame(self) -> pd.DataFrame:
    """Estimates as numbers: metrics as rows; columns (state, 'mean' | 'ci95' | 'n')."""
    columns = {
      (state, field): {
        name: states.get(state, {}).get(field) for name, states in self.metrics.items()
      }
      for state in self._values
      for field in ('mean', 'ci95', 'n')
    }
    return pd.DataFrame(columns, dtype=np.float64).rename_axis(index='metric')

  def to_summary(self) -> dict[str, Any]:
    """Content for summary.json: `metrics`, `undefined` (counts by metric and state), `notes`."""
    return {'metrics': self.metrics, 'undefined': self.undefined, 'notes': list(self.notes)}

  def to_prompts(self) -> pd.DataFrame:
    """One row for each prompt: both objects, their nll and the verdicts; see `Prompts.to_frame`.

    Raises:
      UserError: for a table without them.
    """
    if self.prompts is None:
      raise UserError('The table has values of records alone; make it with jedit.evaluate.')
    return self.prompts.to_frame(self.case_ids)

  def to_records(self) -> list[dict[str, Any]]:
    """One dict per record: case_id, `before` and `after` with every per-record value, `prompts`.

    None where undefined. A record without generated texts lacks their metrics.
    """
    rows = []
    by_prompt = [] if self.prompts is None else list(self.prompts.of_records())
    for r, case_id in enumerate(self.case_ids):
      row: dict[str, Any] = {'case_id': case_id}
      for state, values in self._values.items():
        row[state] = {
          name: None if np.isnan(value_R[r]) else float(value_R[r])
          for name, value_R in values.items()
          if self._is_covered(name)[r]
        }
      rows.append(row | ({'prompts': by_prompt[r]} if by_prompt else {}))
    return rows

  def __str__(self) -> str:
    """All metrics as aligned text, with the notes."""
    return '\n'.join([tables.to_text(self._cells(list(self.metrics))), *self._notes()])

  def __repr__(self) -> str:
    """The headline metrics in at most ten lines."""
    names = [name for name in self.metrics if metrics.entry(name).is_headline][:_REPR_ROWS]
    head, _, *lines = tables.to_text(self._cells(names)).split('\n')
    title = f'Table of {len(self.case_ids)} records, {len(self.metrics)} metrics; print it for all'
    return '\n'.join([title, head, *lines])

  def _repr_html_(self) -> str:
    notes = [html.paragraph(note, 'note') for note in self._notes()]
    return html.block(tables.to_html(self._cells(list(self.metrics))), *notes)

  @property
  def undefined(self) -> dict[str, dict[str, int]]:
    """Number of covered records without a value, by metric and state, if not zero."""
    found: dict[str, dict[str, int]] = {}
    for state, values in self._values.items():
      for name, value_R in values.items():
        count = int(np.sum(np.isnan(value_R) & self._is_covered(name)))
        if count:
          found.setdefault(name, {})[state] = count
    return found

  @property
  def _values(self) -> dict[str, Values]:
    before = {} if self.before is None else {'before': self.before}
    return before | {'after': self.after}

  def _cells(self, names: Sequence[str]) -> pd.DataFrame:
    """A row for each metric: its estimates and their counts."""
    rows = []
    for name in names:
      estimates = [self.metrics[name].get(state) for state in self._values]
      counts = dict.fromkeys(str(each['n']) for each in estimates if each is not None)
      cells = [metrics.as_cell(name, each) for each in estimates]
      rows.append([name, *cells, ' / '.join(counts)])
    return tables.table(['', *self._values, 'n'], rows)

  def _notes(self) -> list[str]:
    """Units, a sentence for each part or metric that some record lacks, and the notes."""
    unit = f'{metrics.units(self.metrics)}; ± half width of the 95% interval'
    left_out: dict[str, dict[str, int]] = {}
    for name, counts in self.undefined.items():
      evidence = metrics.entry(name).evidence
      left_out.setdefault(evidence if evidence in metrics.PARTS else name, counts)
    notes = [f'{unit}; {len(self.case_ids)} records']
    for label, counts in left_out.items():
      for state, count in counts.items():
        have, verb = ('1 record has', 'is') if count == 1 else (f'{count} records have', 'are')
        notes.append(f'{label} {state}: {have} no value and {verb} left out')
    return [*notes, *self.notes]

  def _is_covered(self, name: str) -> np.ndarray:
    """Mask of the records that a metric covers."""
    if metrics.entry(name).evidence == metrics.TEXTS and self.is_generated_R is not None:
      return self.is_generated_R
    return np.ones(len(self.case_ids), bool)
