"""The files of an evaluation: rows of records and of unedited prompts, and its notes."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jedit.evals import metrics
from jedit.evals.table import Table
from jedit.experiments.inputs import Question
from jedit.io import sealed
from jedit.io.jsonl import read_jsonl, write_jsonl

_RECORDS, _UNEDITED = 'records.jsonl', 'unedited.jsonl'
_RECORD_ROWS, _UNEDITED_ROWS, _NOTES = (
  f'jedit {name} 1' for name in ('records', 'unedited', 'evaluation notes')
)  # formats


def _unedited_rows(table: Table, questions: Sequence[Question]) -> list[dict[str, Any]]:
  """One row per prompt about an unedited subject, with its values."""
  rows = []
  for i, (prompt, answer) in enumerate(questions):
    row: dict[str, Any] = {'prompt': prompt, 'answer': answer}
    for state, values in (('before', table.unedited_before), ('after', table.unedited_after)):
      row[state] = {name: value_N[i] for name, value_N in values.items()}
    rows.append(row)
  return rows


def write_table(
  file: pathlib.Path, table: Table, notes: Sequence[str], questions: Sequence[Question], key: Any
) -> None:
  """Writes an evaluation: its notes, and beside them, before, its rows.

  Args:
    file: of the notes.
    table: of the evaluation.
    notes: sentences besides those of the table.
    questions: prompts about unedited subjects, with their answers.
    key: everything that the table depends on.
  """
  rows = _unedited_rows(table, questions)
  write_jsonl(file.with_name(_UNEDITED), _UNEDITED_ROWS, rows, key)
  write_jsonl(file.with_name(_RECORDS), _RECORD_ROWS, table.to_records(), key)
  sealed.write_json(file, _NOTES, {'notes': [*table.notes, *notes]}, key)


def read_table(file: pathlib.Path, key: Any, sizes: tuple[int, int]) -> Table:
  """The table as written: JSON keeps floats exactly, and None stands for nan.

  Args:
    file: of the notes.
    key: what it must be made of.
    sizes: numbers of records and of prompts about unedited subjects.

  Raises:
    StaleFile: for damaged files and those of another key.
  """
  notes = sealed.read_json(file, _NOTES, key)['notes']
  rows = read_jsonl(file.with_name(_RECORDS), _RECORD_ROWS, key, sizes[0])
  questions = read_jsonl(file.with_name(_UNEDITED), _UNEDITED_ROWS, key, sizes[1])
  generated = [
    any(metrics.entry(name).evidence == metrics.TEXTS for name in row['after']) for row in rows
  ]
  return Table(
    case_ids=tuple(row['case_id'] for row in rows),
    after=_columns(rows, 'after'),
    before=_columns(rows, 'before'),
    unedited_after=_columns(questions, 'after'),
    unedited_before=_columns(questions, 'before'),
    is_generated_R=np.array(generated) if any(generated) else None,
    notes=tuple(notes),
  )


def _columns(rows: Sequence[Mapping[str, Any]], state: str) -> dict[str, np.ndarray]:
  """Values by name; a row may lack some."""
  names = dict.fromkeys(name for row in rows for name in row[state])
  return {n: np.array([row[state].get(n) for row in rows], np.float64) for n in names}
