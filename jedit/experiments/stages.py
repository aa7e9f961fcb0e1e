"""The stages of a run: each reads its result from the workdir, or computes and stores it."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jedit.editing.contexts import contexts_of, prefixes_of
from jedit.editing.edit import (
  Batching,
  Separate,
  Sequential,
  Together,
  collect,
  edit_stream,
)
from jedit.editing.prompts import BARE, Contexts
from jedit.editing.result import Details, EditResult
from jedit.evals import metrics
from jedit.evals.evaluate import evaluate_apart
from jedit.evals.samples import Sample, sample_texts
from jedit.evals.table import Table
from jedit.experiments import probing
from jedit.experiments.damage import DamageMonitor
from jedit.experiments.inputs import (
  PATCH_FILE,
  Question,
  editor_file,
  load_contexts,
  load_generation,
)
from jedit.experiments.schema import PROBES, Settings
from jedit.experiments.workdir import Workdir
from jedit.hypernetworks.editor import Editor
from jedit.hypernetworks.train import train_editor
from jedit.io import storage
from jedit.io.jsonl import read_jsonl, write_jsonl
from jedit.io.memo import digest
from jedit.io.progress import Progress
from jedit.io.storage import to_json
from jedit.methods import HyperNetwork, Method
from jedit.models.language_model import LanguageModel
from jedit.models.patch import Patch, patch_of
from jedit.moments.collect import statistics
from jedit.moments.corpus import Corpus
from jedit.moments.files import SecondMoments, read_moments
from jedit.solvers import FactorCache
from jedit.types import Record, UserError

STATISTICS_FILE = 'statistics.safetensors'
DAMAGE_FILE = 'damage.jsonl'
CHUNKS_FILE = 'evaluation.jsonl'

_PROBES = 'probes'
_TARGETS = 'targets'
_CONTEXTS = 'contexts.json'
_EVALUATION = 'evaluation.json'
_RECORDS = 'records.jsonl'
_UNEDITED = 'unedited.jsonl'
_SAMPLES = 'samples.json'


def finished(workdir: Workdir) -> list[str]:
  """The stages of `jedit.experiments.plan` that the workdir has results of."""
  files = {
    'statistics': (STATISTICS_FILE, PATCH_FILE),
    **dict.fromkeys(('targets', 'keys', 'solve'), (PATCH_FILE,)),
    'evaluate': (_EVALUATION,),
  }
  return [name for name, each in files.items() if any((workdir / f).is_file() for f in each)]


def second_moments(
  lm: LanguageModel,
  documents: Corpus | None,
  methods: Sequence[Method],
  settings: Settings,
  workdir: Workdir,
) -> SecondMoments | None:
  """Second moments of every kernel that the methods need; None if they need none.

  Collected in one pass over the documents, or read from the file of the settings without any.
  """
  needed = {kernel for method in methods for kernel in method.kernels}
  if not needed:
    return None
  wanted = settings.statistics
  layers = sorted({kernel.layer for kernel in needed})
  names = sorted({kernel.name for kernel in needed})
  with workdir.stage('statistics'):
    if documents is None:
      return read_moments(wanted.file, lm, layers, names)
    return statistics(
      lm,
      documents,
      layers=layers,
      kernels=names,
      row_tokens=wanted.row_tokens or None,
      batch_tokens=wanted.batch_tokens,
      max_document_tokens=wanted.max_document_tokens or None,
      fast=wanted.fast,
      cache=wanted.file or workdir / STATISTICS_FILE,
    )


def shared_files(settings: Settings, workdir: Workdir) -> dict[str, Any]:
  """Config fields for the files that a sweep shares between its cells.

  Args:
    settings: of the cell.
    workdir: of the sweep.
  """
  return {
    'contexts': settings.contexts or _shared_contexts(settings, workdir),
    'targets': settings.targets or str(workdir / _TARGETS),
    'training': {'file': settings.training.file or _shared_editor(settings, workdir)},
    'statistics': {'file': settings.statistics.file or str(workdir / STATISTICS_FILE)},
    'evaluation': {'store': settings.evaluation.store or str(workdir / CHUNKS_FILE)},
  }


def _shared_editor(settings: Settings, workdir: Workdir) -> str:
  """Path of the editor of all cells with this method and training; empty for other methods."""
  method = settings.required_method
  if not isinstance(method, HyperNetwork):
    return ''
  key = digest([method, dataclasses.replace(settings.training, file='')])
  return str(workdir / f'editor_{method.name}_{key[:8]}.safetensors')


def contexts(
  lm: LanguageModel, settings: Settings, workdir: Workdir, name: str = _CONTEXTS
) -> Contexts:
  """The prefix contexts, given or sampled from the model, stored as `name`.

  Methods without sampled contexts get the bare prompt, and no file.
  """
  if not settings.contexts and prefixes_of(settings.required_method) is None:
    return BARE
  file = workdir / name
  if file.is_file():
    return load_contexts(str(file))
  with workdir.stage('contexts'):
    given = load_contexts(settings.contexts) if settings.contexts else None
    found = contexts_of(lm, settings.required_method, settings.seed, given)
  storage.write_json(file, found)
  return found


def shared_contexts(lm: LanguageModel, settings: Settings, workdir: Workdir) -> None:
  """Samples the contexts that `shared_files` names for a cell."""
  if path := _shared_contexts(settings, workdir):
    contexts(lm, settings, workdir, pathlib.Path(path).name)


def _shared_contexts(settings: Settings, workdir: Workdir) -> str:
  """Path of the contexts of a cell's kind; empty for a method without sampled contexts."""
  kind = prefixes_of(settings.required_method)
  if kind is None:
    return ''
  return str(workdir / (_CONTEXTS if kind == 'memit' else f'contexts_{kind}.json'))


def editor(
  lm: LanguageModel, training: Sequence[Record] | None, settings: Settings, workdir: Workdir
) -> Editor | None:
  """The editor of the run, given or trained; None for methods that need none.

  Args:
    lm: the unedited model.
    training: records to train on; not needed if there is an editor.
    settings, workdir: of the run.
  """
  method = settings.required_method
  if not isinstance(method, HyperNetwork):
    return None
  file = editor_file(settings, workdir.path)
  if not file.is_file():
    assert training is not None, 'without an editor there are records'
    with workdir.stage('training'):
      trained = train_editor(
        lm, training, method, seed=settings.seed, store=file.with_name(f'{file.stem}.partial')
      )
    trained.save(file)
  found = Editor.load(file)
  found.check(lm, method)
  return found


def edit(
  lm: LanguageModel,
  records: Sequence[Record],
  documents: Corpus | None,
  settings: Settings,
  workdir: Workdir,
  factors: FactorCache | None = None,
  training: Sequence[Record] | None = None,
) -> list[tuple[slice, Patch]]:
  """Patches with the slices of records they edit: one for all, or one per separate batch.

  Finished targets are stored in `targets`, finished batches in `batches`. A sequence stops early
  when it damages the model.

  Args:
    lm, records, settings, workdir: of the run.
    documents: text for second moments.
    factors: factorised second moments, shared by the cells of a sweep.
    training: records to train an editor on, for methods that use one and have none yet.
  """
  file, batching, method = workdir / PATCH_FILE, settings.edit.batching, settings.required_method
  if file.is_file():
    patch = Patch.load(file)
    return [(slice(0, patch.provenance['num_edits']), patch)]
  if factors is None:
    moments = second_moments(lm, documents, [method], settings, workdir)
  else:
    assert isinstance(factors.source, SecondMoments)
    moments = factors.source
  templates = contexts(lm, settings, workdir)
  trained = editor(lm, training, settings, workdir)
  parts: list[tuple[slice, EditResult]] = []
  reason = ''
  with workdir.stage('edit'), _batch_progress(batching, len(records)) as progress:
    monitor = None
    if isinstance(batching, Sequential):
      monitor = DamageMonitor(workdir / DAMAGE_FILE, lm, records, settings.edit)
    for batch in edit_stream(
      lm,
      [record.request for record in records],
      method,
      moments,
      contexts=templates,
      seed=settings.seed,
      batching=batching,
      target_batch_size=settings.edit.target_batch_size or None,
      store=workdir.path,
      target_store=settings.targets or workdir / _TARGETS,
      factors=factors,
      editor=trained,
    ):
      parts.append((batch.edits, dataclasses.replace(batch.result, details=Details())))
      # The stage 'edit' counts all these seconds; name its parts separately.
      seconds = batch.result.seconds
      workdir.add_seconds({**seconds, 'edit': -sum(seconds.values())})
      if progress is not None:
        progress.update(batch.edits.stop - batch.edits.start)
      if monitor is not None:
        reason = monitor.check(batch.edits.stop, batch.lm)
        if reason:
          break
  if isinstance(batching, Separate):
    return [(edits, patch_of(result)) for edits, result in parts]
  patch = patch_of(collect([result for _, result in parts], batching))
  if monitor is not None:
    patch = dataclasses.replace(patch, provenance={**patch.provenance, 'stopped': reason})
  patch.save(file)
  return [(slice(0, parts[-1][0].stop), patch)]


def _batch_progress(
  batching: Batching, num_edits: int
) -> contextlib.AbstractContextManager[Progress | None]:
  """Progress over batches; a single batch shows the progress of its stages."""
  if isinstance(batching, Together):
    return contextlib.nullcontext()
  return Progress('edit', num_edits, 'edits')


def evaluate(
  parts: Sequence[tuple[slice, Sequence[Patch]]],
  lm: LanguageModel,
  records: Sequence[Record],
  questions: Sequence[Question],
  settings: Settings,
  workdir: Workdir,
) -> Table:
  """Metrics of all records before and after, and of the unedited prompts.

  Each part of the records, usually all, is measured on the model with its patches. Finished chunks
  are stored in `evaluation.jsonl`, which the cells of a sweep share, so that the unedited model is
  measured once.
  """
  files = [workdir / name for name in (_RECORDS, _UNEDITED, _EVALUATION)]
  if not all(file.is_file() for file in files):
    with workdir.stage('evaluate'):
      generation, notes = load_generation(settings, records)
      table = evaluate_apart(
        parts,
        records,
        lm,
        unedited=questions,
        generation=generation,
        reencode=settings.evaluation.reencode,
        tokens_per_batch=settings.evaluation.tokens_per_batch or None,
        store=settings.evaluation.store or workdir / CHUNKS_FILE,
      )
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
  """Runs one probe and stores its result; see `probing.measure`."""
  file = workdir / _PROBES / f'{name}.json'
  if not file.is_file():
    requests = [record.request for record in records]
    with workdir.stage(name):
      found = probing.measure(name, lm, requests, settings.probe, words=words, seed=settings.seed)
    storage.write_json(file, found)


def finished_probes(workdir: Workdir) -> dict[str, Any]:
  """Results of the probes of this and earlier runs, by name."""
  files = {name: workdir / _PROBES / f'{name}.json' for name in PROBES}
  return {name: storage.read_json(file) for name, file in files.items() if file.is_file()}


def _unedited_rows(table: Table, questions: Sequence[Question]) -> list[dict[str, Any]]:
  """One row per prompt about an unedited subject, with its values."""
  rows = []
  for i, (prompt, answer) in enumerate(questions):
    row: dict[str, Any] = {'prompt': prompt, 'answer': answer}
    for state, values in (('before', table.unedited_before), ('after', table.unedited_after)):
      row[state] = {name: value_N[i] for name, value_N in values.items()}
    rows.append(row)
  return rows


def _read_table(records: pathlib.Path, unedited: pathlib.Path, evaluation: pathlib.Path) -> Table:
  """The table as written: JSON keeps floats exactly, and None stands for nan."""
  rows = _read_rows(records, ('case_id', 'before', 'after'))
  questions = _read_rows(unedited, ('before', 'after'))
  notes = storage.read_json(evaluation)['notes']
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


def _read_rows(file: pathlib.Path, fields: Sequence[str]) -> list[dict[str, Any]]:
  """Result lines with these fields, whose values are numbers or null.

  Raises:
    UserError: for any other line, with its number.
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
        f'Line {number} of {file} is not a result with {", ".join(fields)}; remove {file.name} to '
        'evaluate again.'
      )
  return rows


def _columns(rows: Sequence[Mapping[str, Any]], state: str) -> dict[str, np.ndarray]:
  """Values by name; a row may lack some."""
  names = dict.fromkeys(name for row in rows for name in row[state])
  return {n: np.array([row[state].get(n) for row in rows], np.float64) for n in names}


def samples(
  edited: LanguageModel,
  lm: LanguageModel,
  records: Sequence[Record],
  settings: Settings,
  workdir: Workdir,
) -> list[Sample]:
  """Texts about a few edited subjects, before and after."""
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
  """The texts stored by `samples`; none without that stage."""
  file = workdir / _SAMPLES
  return [Sample(**text) for text in storage.read_json(file)] if file.is_file() else []


def export(edited: LanguageModel, settings: Settings, workdir: Workdir) -> dict[str, Any]:
  """Writes the edited model as a Hugging Face directory; returns dtype and rounding errors."""
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
