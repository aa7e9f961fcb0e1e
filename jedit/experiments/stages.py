"""The stages of a run: each reads its result back from the workdir, or makes and keeps it."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jedit.editing.batches import edit_separately, edit_sequentially
from jedit.editing.contexts import contexts_of, prefixes_of
from jedit.editing.edit import edit as edit_requests
from jedit.editing.prompts import Contexts
from jedit.evals.evaluate import evaluate as evaluate_records
from jedit.evals.evaluate import evaluate_apart
from jedit.evals.metrics import GENERATION
from jedit.evals.samples import Sample, sample_texts
from jedit.evals.table import Table
from jedit.experiments import probing
from jedit.experiments.damage import DamageMonitor
from jedit.experiments.inputs import PATCH_FILE, Question, load_contexts, load_generation
from jedit.experiments.schema import PROBES, Settings
from jedit.experiments.workdir import Workdir
from jedit.io import storage
from jedit.io.jsonl import read_jsonl, write_jsonl
from jedit.io.progress import Progress
from jedit.io.storage import to_json
from jedit.methods import Method
from jedit.models.language_model import LanguageModel
from jedit.models.patch import Patch, merge
from jedit.moments.collect import statistics
from jedit.moments.corpus import Corpus
from jedit.moments.files import SecondMoments, read_moments
from jedit.types import Record, UserError

STATISTICS_FILE = 'statistics.safetensors'
DAMAGE_FILE = 'damage.jsonl'
CHUNKS_FILE = 'evaluation.jsonl'

_BATCHES = 'batches'
_PROBES = 'probes'
_TARGETS = 'targets'
_CONTEXTS = 'contexts.json'
_EVALUATION = 'evaluation.json'
_RECORDS = 'records.jsonl'
_UNEDITED = 'unedited.jsonl'
_SAMPLES = 'samples.json'


def second_moments(
  lm: LanguageModel,
  documents: Corpus | None,
  methods: Sequence[Method],
  settings: Settings,
  workdir: Workdir,
) -> SecondMoments | None:
  """Second moments of every kernel that the methods write; None if they need none.

  In one pass over the documents, or, without any, from the file that the settings name.
  """
  needy = [method for method in methods if method.uses_moments]
  if not needy:
    return None
  wanted = settings.statistics
  layers = sorted({layer for method in needy for layer in method.layers})
  sites = sorted({site for method in needy for site in method.sites})
  with workdir.stage('statistics'):
    if documents is None:
      return read_moments(wanted.file, lm, layers, sites)
    return statistics(
      lm,
      documents,
      layers=layers,
      sites=sites,
      row_tokens=wanted.row_tokens or None,
      batch_tokens=wanted.batch_tokens,
      max_document_tokens=wanted.max_document_tokens or None,
      fast=wanted.fast,
      cache=wanted.file or workdir / STATISTICS_FILE,
    )


def shared_files(settings: Settings, workdir: Workdir) -> dict[str, Any]:
  """Fields of a cell's config that name what a sweep makes for all cells.

  Args:
    settings: of the cell.
    workdir: of the sweep.
  """
  return {
    'contexts': settings.contexts or str(workdir / _shared_contexts(settings)),
    'targets': settings.targets or str(workdir / _TARGETS),
    'statistics': {'file': settings.statistics.file or str(workdir / STATISTICS_FILE)},
    'evaluation': {'store': settings.evaluation.store or str(workdir / CHUNKS_FILE)},
  }


def contexts(
  lm: LanguageModel, settings: Settings, workdir: Workdir, name: str = _CONTEXTS
) -> Contexts:
  """The prefix contexts, given or sampled from the model, and kept as `name`."""
  file = workdir / name
  if file.is_file():
    return load_contexts(str(file))
  with workdir.stage('contexts'):
    given = load_contexts(settings.contexts) if settings.contexts else None
    found = contexts_of(lm, settings.required_method, settings.seed, given)
  storage.write_json(file, found)
  return found


def shared_contexts(lm: LanguageModel, settings: Settings, workdir: Workdir) -> None:
  """Makes the contexts that `shared_files` names for a cell."""
  contexts(lm, settings, workdir, _shared_contexts(settings))


def _shared_contexts(settings: Settings) -> str:
  kind = prefixes_of(settings.required_method)
  return _CONTEXTS if kind == 'memit' else f'contexts_{kind}.json'


def patch(
  lm: LanguageModel,
  records: Sequence[Record],
  documents: Corpus | None,
  settings: Settings,
  workdir: Workdir,
) -> Patch:
  """The edit of all records in one batch or a sequence of them.

  Finished targets stay in `targets`, finished batches of a sequence in `batches`.
  """
  file = workdir / PATCH_FILE
  if file.is_file():
    return Patch.load(file)
  method = settings.required_method
  moments = second_moments(lm, documents, [method], settings, workdir)
  templates = contexts(lm, settings, workdir)
  if settings.edit.mode == 'sequential':
    made = _sequence(lm, records, moments, templates, settings, workdir)
  else:
    with workdir.stage('edit'):
      made, details = edit_requests(
        lm,
        [record.request for record in records],
        method,
        moments,
        contexts=templates,
        seed=settings.seed,
        batch_size=settings.edit.batch_size or None,
        store=_targets_store(settings, workdir),
        details=True,
      )
    _add_parts(workdir, details.seconds)
  made.save(file)
  return made


def separate_patches(
  lm: LanguageModel,
  records: Sequence[Record],
  documents: Corpus | None,
  settings: Settings,
  workdir: Workdir,
) -> list[tuple[slice, Patch]]:
  """An edit of the original model for each batch of records, which say which they are."""
  method = settings.required_method
  moments = second_moments(lm, documents, [method], settings, workdir)
  templates = contexts(lm, settings, workdir)
  found = []
  with workdir.stage('edit'), Progress('edit', len(records), 'edits') as progress:
    for batch in edit_separately(
      lm,
      [record.request for record in records],
      method,
      moments,
      size=settings.edit.size,
      contexts=templates,
      seed=settings.seed,
      batch_size=settings.edit.batch_size or None,
      store=workdir / _BATCHES,
      targets_store=_targets_store(settings, workdir),
    ):
      found.append((batch.edits, batch.patch))
      _add_parts(workdir, batch.seconds)
      progress.update(batch.edits.stop - batch.edits.start)
  return found


def _targets_store(settings: Settings, workdir: Workdir) -> pathlib.Path:
  return pathlib.Path(settings.targets or workdir / _TARGETS)


def _sequence(
  lm: LanguageModel,
  records: Sequence[Record],
  moments: SecondMoments | None,
  templates: Contexts,
  settings: Settings,
  workdir: Workdir,
) -> Patch:
  """Batches one after the other as one patch, until the damage says stop."""
  patches, reason = [], ''
  with workdir.stage('edit'), Progress('edit', len(records), 'edits') as progress:
    monitor = DamageMonitor(workdir / DAMAGE_FILE, lm, records, settings.edit)
    for batch in edit_sequentially(
      lm,
      [record.request for record in records],
      settings.required_method,
      moments,
      size=settings.edit.size,
      accumulate_keys=settings.edit.accumulate_keys,
      contexts=templates,
      seed=settings.seed,
      batch_size=settings.edit.batch_size or None,
      store=workdir / _BATCHES,
    ):
      patches.append(batch.patch)
      _add_parts(workdir, batch.seconds)
      progress.update(batch.edits.stop - batch.edits.start)
      reason = monitor.check(batch.edits.stop, batch.lm)
      if reason:
        break
  whole = merge(patches)
  return dataclasses.replace(whole, provenance={**whole.provenance, 'stopped': reason})


def _add_parts(workdir: Workdir, seconds: Mapping[str, float]) -> None:
  """What is left to 'edit' is text to tokens, and whatever an interrupted run did."""
  workdir.add_seconds({**seconds, 'edit': -sum(seconds.values())})


def evaluate(
  parts: Sequence[tuple[slice, LanguageModel]],
  lm: LanguageModel,
  records: Sequence[Record],
  questions: Sequence[Question],
  settings: Settings,
  workdir: Workdir,
) -> Table:
  """The metrics of all records before and after, and whether unedited answers stay.

  Each part of the records is asked of its own model; one model for all is the usual case. Finished
  chunks stay in `evaluation.jsonl`, which the cells of a sweep share: what the unedited model says
  of the same records is measured once.
  """
  files = [workdir / name for name in (_RECORDS, _UNEDITED, _EVALUATION)]
  if not all(file.is_file() for file in files):
    with workdir.stage('evaluate'):
      generation, notes = load_generation(settings, records)
      how: dict[str, Any] = {
        'unedited': questions,
        'generation': generation,
        'reencode': settings.evaluation.reencode,
        'store': settings.evaluation.store or workdir / CHUNKS_FILE,
      }
      if len(parts) == 1:
        table = evaluate_records(parts[0][1], records, before=lm, **how)
      else:
        table = evaluate_apart(parts, records, lm, **how)
    write_jsonl(workdir / _UNEDITED, _unedited_rows(table, questions))
    write_jsonl(workdir / _RECORDS, table.to_records())
    storage.write_json(workdir / _EVALUATION, {'notes': [*table.notes, *notes]})
  return _read_table(*files)


def probe(
  name: str,
  lm: LanguageModel,
  records: Sequence[Record],
  settings: Settings,
  words: Mapping[str, Sequence[str]],
  workdir: Workdir,
) -> None:
  """Runs one probe and keeps what it found; see `probing.measure`."""
  file = workdir / _PROBES / f'{name}.json'
  if not file.is_file():
    requests = [record.request for record in records]
    with workdir.stage(name):
      found = probing.measure(name, lm, requests, settings.probe, words=words, seed=settings.seed)
    storage.write_json(file, found)


def finished_probes(workdir: Workdir) -> dict[str, Any]:
  """What the probes of this and earlier runs found, by name."""
  files = {name: workdir / _PROBES / f'{name}.json' for name in PROBES}
  return {name: storage.read_json(file) for name, file in files.items() if file.is_file()}


def _unedited_rows(table: Table, questions: Sequence[Question]) -> list[dict[str, Any]]:
  """One row per question about a subject that was not edited, with its values."""
  rows = []
  for i, (prompt, answer) in enumerate(questions):
    row: dict[str, Any] = {'prompt': prompt, 'answer': answer}
    for state, values in (('before', table.unedited_before), ('after', table.unedited_after)):
      row[state] = {name: value_N[i] for name, value_N in values.items()}
    rows.append(row)
  return rows


def _read_table(records: pathlib.Path, unedited: pathlib.Path, evaluation: pathlib.Path) -> Table:
  """The table that the files were written from: floats survive JSON, nan is None there."""
  rows = _read_rows(records, ('case_id', 'before', 'after'))
  questions = _read_rows(unedited, ('before', 'after'))
  notes = storage.read_json(evaluation)['notes']
  generated = [not set(row['after']).isdisjoint(GENERATION) for row in rows]
  return Table(
    case_ids=tuple(row['case_id'] for row in rows),
    after=_columns(rows, 'after'),
    before=_columns(rows, 'before'),
    unedited_after=_columns(questions, 'after'),
    unedited_before=_columns(questions, 'before'),
    is_generated_R=np.array(generated) if any(generated) else None,
    notes=tuple(notes),
  )


def _read_rows(file: pathlib.Path, fields: Sequence[str]) -> list[dict[str, Any]]:
  """Result lines with these fields, whose values are numbers or null.

  Raises:
    UserError: for a line that is something else, by number.
  """
  rows = read_jsonl(file)
  for number, row in enumerate(rows, start=1):
    values = [row.get(state) for state in ('before', 'after')]
    if not all(field in row for field in fields) or not all(
      isinstance(each, dict)
      and all(value is None or isinstance(value, int | float) for value in each.values())
      for each in values
    ):
      raise UserError(
        f'Line {number} of {file} is no result with {", ".join(fields)}; remove {file.name} to '
        'evaluate again.'
      )
  return rows


def _columns(rows: Sequence[Mapping[str, Any]], state: str) -> dict[str, np.ndarray]:
  """Values by name; a row may lack those that it was not asked for."""
  names = dict.fromkeys(name for row in rows for name in row[state])
  return {n: np.array([row[state].get(n) for row in rows], np.float64) for n in names}


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
    storage.write_json(file, texts)
  return finished_samples(workdir)


def finished_samples(workdir: Workdir) -> list[Sample]:
  """The texts that `samples` kept; none where it was not asked for any."""
  file = workdir / _SAMPLES
  return [Sample(**text) for text in storage.read_json(file)] if file.is_file() else []


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
  done = storage.read_json(file) if file.is_file() else {}
  if {name: done.get(name) for name in same} == same and pathlib.Path(path).is_dir():
    return done
  with workdir.stage('export'):
    written = edited.export(path, dtype=wanted.dtype or None)
  made = {**same, 'rounding': written.rounding}
  storage.write_json(file, made)
  return to_json(made)
