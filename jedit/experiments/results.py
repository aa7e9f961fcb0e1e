"""The files of an evaluation: rows of records and of unedited prompts, and its notes."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jedit.evals import metrics
from jedit.evals.prompts import Prompts
from jedit.evals.table import Table
from jedit.experiments.inputs import Question
from jedit.io import sealed
from jedit.io.jsonl import read_jsonl, write_jsonl
from jedit.types import UserError

_RECORDS, _UNEDITED, EVALUATION = 'records.jsonl', 'unedited.jsonl', 'evaluation.json'
_RECORD_ROWS = 'jedit records 2'  # formats
_UNEDITED_ROWS, _NOTES = 'jedit unedited 1', 'jedit evaluation notes 1'


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
    prompts=_prompts(rows),
  )


def read_records(path: str | os.PathLike[str]) -> pd.DataFrame:
  """The prompts of a finished run, one row each, with the nll of both objects and the verdicts.

  Args:
    path: workdir of the run, or its records.jsonl beside evaluation.json, which has the key.

  Returns:
    The columns of `jedit.evals.prompts.Prompts.to_frame`.

  Raises:
    UserError: for a place without these files, damaged ones and those of another version.
  """
  folder = pathlib.Path(path)
  file = folder / _RECORDS if folder.is_dir() else folder
  notes = file.with_name(EVALUATION)
  for each in (file, notes):
    if not each.is_file():
      raise UserError(f'There is no {each}; give the workdir of a run that has been evaluated.')
  rows = read_jsonl(file, _RECORD_ROWS, sealed.key_of(notes, _NOTES))
  found = _prompts(rows)
  if found is None:
    raise UserError(f'{file} has values of records alone; evaluate again.')
  return found.to_frame([row['case_id'] for row in rows])


def _prompts(rows: Sequence[Mapping[str, Any]]) -> Prompts | None:
  """The prompts of all rows; None for a table that had none."""
  has_them = bool(rows) and 'prompts' in rows[0]
  return Prompts.from_records([row['prompts'] for row in rows]) if has_them else None


def _columns(rows: Sequence[Mapping[str, Any]], state: str) -> dict[str, np.ndarray]:
  """Values by name; a row may lack some."""
  names = dict.fromkeys(name for row in rows for name in row[state])
  return {n: np.array([row[state].get(n) for row in rows], np.float64) for n in names}
