"""Scores of every prompt of an evaluation, of which the values of records are means.

The published codes store them as `*_prompts_probs` and `*_prompts_correct`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jedit.evals.metrics import PARTS, PartScores, Values, success

# Of a prompt: nats per token of the new object and of the true one; 1 if the wanted one of the two
# is likelier; 1 if every token of the wanted one is on top (for single objects the share of them).
FIELDS = ('nll_new', 'nll_true', 'success', 'acc')


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
  """The prompts of R records in order, P in all, and their scores before and after an edit.

  Attributes:
    record_P: index of the record.
    part_P: from `metrics.PARTS`; the wanted object of 'neighborhood' is the true one.
    text_P: prompts with their subject.
    new_P, true_P: the two objects; the true one of 'neighborhood' is the answer that has to stay,
      and None for a single object elsewhere.
    after: by name in `FIELDS`, a value for each prompt; nan where there is none.
    before: the same for the model before the edit; None if not measured.
  """

  record_P: np.ndarray
  part_P: Sequence[str]
  text_P: Sequence[str]
  new_P: Sequence[str | None]
  true_P: Sequence[str | None]
  after: Values
  before: Values | None = None

  @property
  def states(self) -> dict[str, Values]:
    """Scores by state, 'before' first."""
    before = {} if self.before is None else {'before': self.before}
    return before | {'after': self.after}

  def of_records(self) -> Iterator[dict[str, Any]]:
    """For each record, by part, its objects, texts and scores: the form of records.jsonl.

    A field without any value is left out.
    """
    columns = {
      state: {name: _plain(v) for name, v in each.items()} for state, each in self.states.items()
    }
    starts = np.searchsorted(self.record_P, np.arange(self.record_P.max(initial=-1) + 2))
    for first, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
      parts: dict[str, Any] = {}
      while first < stop:
        part = self.part_P[first]
        end = first + 1
        while end < stop and self.part_P[end] == part:
          end += 1
        chosen = slice(first, end)
        parts[part] = {'new': self.new_P[first], 'true': self.true_P[first]}
        parts[part]['text'] = list(self.text_P[chosen])
        for state, values in columns.items():
          scores = {name: value_P[chosen] for name, value_P in values.items()}
          parts[part][state] = {
            name: value_P for name, value_P in scores.items() if any(v is not None for v in value_P)
          }
        first = end
      yield parts

  @classmethod
  def from_records(cls, records: Sequence[Mapping[str, Any]]) -> 'Prompts':
    """The prompts that `of_records` gave."""
    found = [
      (number, part, each) for number, parts in enumerate(records) for part, each in parts.items()
    ]

    def column(pick: Any) -> list[Any]:
      return [value for _, _, each in found for value in pick(each)]

    def scores(state: str) -> Values:
      return {
        name: np.array(
          column(lambda each, name=name: each[state].get(name, [None] * len(each['text']))),
          np.float64,
        )
        for name in FIELDS
      }

    return cls(
      record_P=np.array([number for number, _, each in found for _ in each['text']], np.int64),
      part_P=[part for _, part, each in found for _ in each['text']],
      text_P=column(lambda each: each['text']),
      new_P=column(lambda each: [each['new']] * len(each['text'])),
      true_P=column(lambda each: [each['true']] * len(each['text'])),
      after=scores('after'),
      before=scores('before') if any('before' in each for _, _, each in found) else None,
    )

  def to_frame(self, case_ids: Sequence[int]) -> pd.DataFrame:
    """One row for each prompt.

    Args:
      case_ids: of the records.

    Returns:
      Columns case_id, part, number (from 0, in its part), prompt, new, true, and for each state
      'before' and 'after' those of `FIELDS`, such as nll_new_after.
    """
    columns: dict[str, Any] = {
      'case_id': np.asarray(case_ids)[self.record_P],
      'part': pd.Categorical(self.part_P, PARTS),
      'number': 0,
      'prompt': self.text_P,
      'new': self.new_P,
      'true': self.true_P,
    }
    for state, values in self.states.items():
      columns |= {f'{name}_{state}': values[name] for name in FIELDS}
    frame = pd.DataFrame(columns)
    places = [self.record_P, frame['part']]
    frame['number'] = frame.groupby(places, observed=True).cumcount()
    return frame


def _plain(value_P: np.ndarray) -> list[float | int | None]:
  """JSON values: None for nan, and whole numbers without a point."""
  is_there_P = ~np.isnan(value_P)
  is_whole = bool(np.all(value_P[is_there_P] == np.round(value_P[is_there_P])))
  return [
    (int(value) if is_whole else value) if is_there else None
    for value, is_there in zip(value_P.tolist(), is_there_P.tolist(), strict=True)
  ]


def prompt_values(evidence: Sequence[Mapping[str, Any]]) -> Values:
  """Scores of the prompts of records, in order.

  Args:
    evidence: by part, the `PartScores` of a record.

  Returns:
    By name in `FIELDS`, [P].
  """
  found = [_part_values(part, each[part]) for each in evidence for part in PARTS if part in each]
  return {
    name: np.concatenate([values[name] for values in found]) if found else np.zeros(0)
    for name in FIELDS
  }


def _part_values(part: str, scores: PartScores) -> Values:
  wanted_P, nothing_P = scores.wanted_nll_P, np.full(len(scores.wanted_nll_P), np.nan)
  other_P = nothing_P if scores.other_nll_P is None else scores.other_nll_P
  new_P, true_P = (other_P, wanted_P) if part == 'neighborhood' else (wanted_P, other_P)
  return {
    'nll_new': new_P,
    'nll_true': true_P,
    'success': success(wanted_P, other_P),
    'acc': scores.acc_P,
  }
