"""What an evaluation found: values of every record, their summary, and both as text to read."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from jedit.evals import metrics

Values = dict[str, np.ndarray]
Summary = dict[str, dict[str, float | int | None]]


@dataclasses.dataclass(frozen=True)
class Table:
  """What was measured: per-record values, their summary, and both as a text to read.

  Attributes:
    case_ids: the records, in the order of the values.
    after: by metric name, one value per record of the evaluated model, in percent; nan where
      undefined.
    before: the same of the model it came from; None where none was given.
    unedited_after: by metric name, one value per prompt about a subject that was not edited; empty
      without such prompts. `unedited_acc`: 100 where every token of the known answer is on top,
      so that greedy decoding gives it. `unedited_kept`: the same over the prompts that the model
      answered right before, nan for the others.
    unedited_before: the same of the model it came from (without `unedited_kept`).
    is_generated_R: for which records texts were generated; None where for none. The metrics in
      `metrics.GENERATION` were asked of these alone.
    notes: sentences about how the numbers were made and what was left out.
  """

  case_ids: tuple[int, ...]
  after: Values
  before: Values | None = None
  unedited_after: Values = dataclasses.field(default_factory=dict)
  unedited_before: Values = dataclasses.field(default_factory=dict)
  is_generated_R: np.ndarray | None = None
  notes: tuple[str, ...] = ()

  @functools.cached_property
  def metrics(self) -> dict[str, Summary]:
    """By metric name: `before` (where measured) and `after`, each with `mean`, `ci95` and `n`."""
    after = metrics.summarize(self.after) | _summarize_each(self.unedited_after)
    before: Summary = {}
    if self.before is not None:
      before = metrics.summarize(self.before) | _summarize_each(self.unedited_before)
    return {
      name: ({'before': before[name]} if name in before else {}) | {'after': after[name]}
      for name in after
    }

  def to_summary(self) -> dict[str, Any]:
    """In the form of summary.json: `metrics`, `undefined` (counts by metric and state), `notes`."""
    return {'metrics': self.metrics, 'undefined': self.undefined, 'notes': list(self.notes)}

  def to_records(self) -> list[dict[str, Any]]:
    """One dict per record: case_id, and `before` and `after` with every per-record value.

    Percent, except essence; None where a value is undefined. A record without generated texts has
    no entry for their metrics.
    """
    rows = []
    for r, case_id in enumerate(self.case_ids):
      row: dict[str, Any] = {'case_id': case_id}
      for state, values in (('before', self.before), ('after', self.after)):
        if values is not None:
          row[state] = {
            name: None if np.isnan(value_R[r]) else float(value_R[r])
            for name, value_R in values.items()
            if self._asked(name)[r]
          }
      rows.append(row)
    return rows

  def __str__(self) -> str:
    """The table as aligned text, `mean ± ci95` in percent."""
    states = ('before', 'after') if self.before is not None else ('after',)
    rows = [('', *states, 'n')]
    for name, by_state in self.metrics.items():
      cells = [_cell(by_state.get(state)) for state in states]
      counts = [by_state[state]['n'] for state in states if state in by_state]
      rows.append((name, *cells, ' / '.join(str(count) for count in dict.fromkeys(counts))))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
      cells = [row[0].ljust(widths[0])]
      cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
      lines.append('  '.join(cells).rstrip())
    lines.insert(1, '-' * max(len(line) for line in lines))
    notes = [f'percent, ± half width of the 95% interval; {len(self.case_ids)} records']
    if any(name in self.after for name in metrics.GENERATION):
      notes.append('fluency is in bits x 100, essence a perplexity')
    return '\n'.join([*lines, *notes, *self.left_out(), *self.notes])

  @property
  def undefined(self) -> dict[str, dict[str, int]]:
    """By metric and state: how many records that were asked have no value, where there are some."""
    found: dict[str, dict[str, int]] = {}
    for state, values in (('before', self.before), ('after', self.after)):
      for name, value_R in (values or {}).items():
        count = int(np.sum(np.isnan(value_R) & self._asked(name)))
        if count:
          found.setdefault(name, {})[state] = count
    return found

  def left_out(self) -> list[str]:
    """A sentence for each part, and each metric of generated texts, that some record lacks."""
    labels = {f'{part}_acc': part for part in metrics.PARTS}
    labels |= {name: name for name in metrics.GENERATION}
    notes = []
    for name, label in labels.items():
      for state, count in self.undefined.get(name, {}).items():
        have = '1 record has' if count == 1 else f'{count} records have'
        verb = 'is' if count == 1 else 'are'
        notes.append(f'{label} {state}: {have} no value and {verb} left out')
    return notes

  def _asked(self, name: str) -> np.ndarray:
    """Of which records a metric was asked."""
    if name in metrics.GENERATION and self.is_generated_R is not None:
      return self.is_generated_R
    return np.ones(len(self.case_ids), bool)


def _summarize_each(values: Values) -> Summary:
  return {name: metrics.summarize_values(value_R) for name, value_R in values.items()}


def _cell(summary: Mapping[str, float | int | None] | None) -> str:
  if summary is None or summary['mean'] is None:
    return '–'
  return f'{summary["mean"]:.1f} ±{summary["ci95"]:5.1f}'
