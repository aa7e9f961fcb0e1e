"""The stages of a run: each reads its result back from the workdir, or makes and keeps it."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jedit import checkpoint
from jedit.contexts import sample_contexts
from jedit.data.edit_rows import Contexts
from jedit.editor import Details
from jedit.editor import edit as edit_requests
from jedit.evals.evaluate import Sample, Table, sample_texts
from jedit.evals.evaluate import evaluate as evaluate_records
from jedit.language_model import LanguageModel
from jedit.log import read_jsonl, to_json
from jedit.patch import Patch
from jedit.recipe import Recipe
from jedit.runner.inputs import PATCH_FILE, Question, load_contexts
from jedit.runner.settings import Settings
from jedit.runner.workdir import Workdir
from jedit.second_moment import SecondMoments, statistics
from jedit.target import TRACE_COLUMNS
from jedit.types import Record

STATISTICS_FILE = 'statistics.safetensors'

_CONTEXTS = 'contexts.json'
_RECORDS = 'records.jsonl'
_UNEDITED = 'unedited.jsonl'
_SAMPLES = 'samples.json'


def second_moments(
  lm: LanguageModel, documents: Sequence[str], settings: Settings, workdir: Workdir
) -> SecondMoments:
  """Second moments of every kernel that the method writes."""
  kernels = settings.recipe.kernels
  wanted = settings.statistics
  with workdir.stage('statistics'):
    return statistics(
      lm,
      documents,
      layers=sorted({layer for _, layer in kernels}),
      sites=tuple(dict.fromkeys(kernel for kernel, _ in kernels)),
      row_tokens=wanted.row_tokens or None,
      batch_tokens=wanted.batch_tokens,
      cache=wanted.file or workdir / STATISTICS_FILE,
    )


def contexts(lm: LanguageModel, settings: Settings, workdir: Workdir) -> Contexts:
  """The prefix contexts: given, or sampled from the model."""
  file = workdir / _CONTEXTS
  if file.is_file():
    return load_contexts(str(file))
  with workdir.stage('contexts'):
    if settings.contexts:
      found = load_contexts(settings.contexts)
    else:
      found = sample_contexts(lm, settings.seed)
  checkpoint.write_json(file, found)
  return found


def patch(
  lm: LanguageModel,
  records: Sequence[Record],
  documents: Sequence[str],
  settings: Settings,
  workdir: Workdir,
) -> Patch:
  """The edit of all records, with statistics and contexts; finished targets stay in `targets`."""
  file = workdir / PATCH_FILE
  if file.is_file():
    return Patch.load(file)
  moments = second_moments(lm, documents, settings, workdir)
  templates = contexts(lm, settings, workdir)
  with workdir.stage('edit'):
    made, details = edit_requests(
      lm,
      [record.request for record in records],
      settings.recipe,
      moments,
      contexts=templates,
      seed=settings.seed,
      batch_size=settings.edit.batch_size or None,
      store=workdir / 'targets',
      details=True,
    )
  # What is left to 'edit' is text to tokens, and whatever an interrupted run did.
  workdir.add_seconds({**details.seconds, 'edit': -sum(details.seconds.values())})
  reached = {'targets': _reached(settings.recipe, details)}
  made = dataclasses.replace(made, provenance={**made.provenance, **reached})
  made.save(file)
  return made


def _reached(method: Recipe, details: Details) -> list[dict[str, Any]]:
  """By stage, how far the targets got: means over the edits at their last evaluation."""
  probability = TRACE_COLUMNS.index('probability')
  nll = TRACE_COLUMNS.index('nll')
  found = []
  for names, targets in zip(method.stages, details.targets, strict=True):
    last_Bx7 = targets.trace[np.arange(len(targets.num_steps)), targets.num_steps - 1]
    found.append(
      {
        'regions': list(names),
        'evaluations': float(targets.num_steps.mean()),
        'nll': float(last_Bx7[:, nll].mean()),
        'probability': float(last_Bx7[:, probability].mean()),
        'programs': targets.num_programs,
      }
    )
  return found


def evaluate(
  edited: LanguageModel,
  lm: LanguageModel,
  records: Sequence[Record],
  questions: Sequence[Question],
  workdir: Workdir,
) -> Table:
  """The metrics of all records before and after, and whether unedited answers stay."""
  if not ((workdir / _RECORDS).is_file() and (workdir / _UNEDITED).is_file()):
    with workdir.stage('evaluate'):
      table = evaluate_records(edited, records, before=lm, unedited=questions)
    _write_lines(workdir / _UNEDITED, _unedited_rows(table, questions))
    _write_lines(workdir / _RECORDS, table.to_records())
  return _read_table(read_jsonl(workdir / _RECORDS), read_jsonl(workdir / _UNEDITED))


def _unedited_rows(table: Table, questions: Sequence[Question]) -> list[dict[str, Any]]:
  """One row per question about a subject that was not edited, with its values."""
  rows = []
  for i, (prompt, answer) in enumerate(questions):
    row: dict[str, Any] = {'prompt': prompt, 'answer': answer}
    for state, values in (('before', table.unedited_before), ('after', table.unedited_after)):
      row[state] = {name: value_N[i] for name, value_N in values.items()}
    rows.append(row)
  return rows


def _write_lines(file: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  lines = [json.dumps(to_json(row), ensure_ascii=False) + '\n' for row in rows]
  with checkpoint.atomic_file(file) as beside:
    beside.write_text(''.join(lines), encoding='utf-8')


def _read_table(rows: Sequence[Mapping[str, Any]], unedited: Sequence[Mapping[str, Any]]) -> Table:
  """The table that the rows were written from: floats survive JSON, nan is None there."""
  return Table(
    case_ids=tuple(row['case_id'] for row in rows),
    after=_columns(rows, 'after'),
    before=_columns(rows, 'before'),
    unedited_after=_columns(unedited, 'after'),
    unedited_before=_columns(unedited, 'before'),
  )


def _columns(rows: Sequence[Mapping[str, Any]], state: str) -> dict[str, np.ndarray]:
  names = rows[0][state] if rows else ()
  return {name: np.array([row[state][name] for row in rows], np.float64) for name in names}


def samples(
  edited: LanguageModel,
  lm: LanguageModel,
  records: Sequence[Record],
  settings: Settings,
  workdir: Workdir,
) -> list[Sample]:
  """A few texts about edited subjects, before and after."""
  file = workdir / _SAMPLES
  if not settings.evaluation.samples:
    return []
  if not file.is_file():
    with workdir.stage('samples'):
      texts = sample_texts(
        edited,
        records,
        before=lm,
        count=settings.evaluation.samples,
        max_new_tokens=settings.evaluation.new_tokens,
        seed=settings.seed,
      )
    checkpoint.write_json(file, texts)
  return [Sample(**text) for text in checkpoint.read_json(file)]


def export(edited: LanguageModel, settings: Settings, workdir: Workdir) -> dict[str, Any]:
  """Writes the edited model as a Hugging Face directory; returns what that cost."""
  wanted = settings.export
  file = workdir / 'export.json'
  path = wanted.path or str(workdir / 'model')
  same = {
    'path': path,
    'dtype': wanted.dtype or edited.config.dtype,
    'model': edited.fingerprint,
    'patches': [each.id for each in edited.patches],
  }
  done = checkpoint.read_json(file) if file.is_file() else {}
  if {name: done.get(name) for name in same} == same and pathlib.Path(path).is_dir():
    return done
  with workdir.stage('export'):
    written = edited.export(path, dtype=wanted.dtype or None)
  made = {**same, 'rounding': written.rounding}
  checkpoint.write_json(file, made)
  return to_json(made)
