"""The stages of a run: each reads its result from the workdir, or computes and stores it."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

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
from jedit.evals.evaluate import evaluate_apart
from jedit.evals.samples import Sample, sample_texts
from jedit.evals.table import Table
from jedit.experiments import probing
from jedit.experiments.damage import DamageMonitor
from jedit.experiments.inputs import (
  CONTEXTS,
  PATCH_FILE,
  Question,
  describe_training,
  editor_file,
  load_contexts,
  load_demonstrations,
  load_generation,
)
from jedit.experiments.results import EVALUATION, read_table, write_table
from jedit.experiments.schema import PROBES, Settings
from jedit.experiments.workdir import Workdir
from jedit.hypernetworks.editor import Editor
from jedit.hypernetworks.train import train_editor
from jedit.io import sealed, storage
from jedit.io.progress import Progress
from jedit.methods import HyperNetwork, Method
from jedit.models.language_model import LanguageModel
from jedit.models.patch import Patch, patch_of
from jedit.moments.collect import statistics
from jedit.moments.corpus import Corpus
from jedit.moments.files import SecondMoments, read_moments
from jedit.solvers import FactorCache
from jedit.types import Record

STATISTICS_FILE = 'statistics.safetensors'
DAMAGE_FILE = 'damage.jsonl'
CHUNKS_FILE = 'evaluation.jsonl'

_PROBES = 'probes'
_TARGETS = 'targets'
_CONTEXTS = 'contexts.json'
_SAMPLES = 'samples.json'
_TEXTS, _PROBE = 'jedit samples 1', 'jedit probe 1'  # formats


def finished(workdir: Workdir) -> list[str]:
  """The stages of `jedit.experiments.plan` that the workdir has results of."""
  files = {
    'statistics': (STATISTICS_FILE, PATCH_FILE),
    **dict.fromkeys(('targets', 'keys', 'solve'), (PATCH_FILE,)),
    'evaluate': (EVALUATION,),
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

  def collect(cache: str | pathlib.Path) -> SecondMoments:
    assert documents is not None, 'without them the moments are read'
    return statistics(
      lm,
      documents,
      layers=layers,
      kernels=names,
      row_tokens=wanted.row_tokens or None,
      batch_tokens=wanted.batch_tokens,
      max_document_tokens=wanted.max_document_tokens or None,
      fast=wanted.fast,
      cache=cache,
    )

  with workdir.stage('statistics'):
    if documents is None:
      return read_moments(wanted.file, lm, layers, names)
    if wanted.file:
      return collect(wanted.file)
    own = workdir / STATISTICS_FILE
    found = sealed.kept(own, collect)
    if found is None:
      storage.remove(own)
      found = collect(own)
    return found


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
  key = sealed.digest([method, dataclasses.replace(settings.training, file='')])
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
  given = load_contexts(settings.contexts) if settings.contexts else None
  key = [lm.fingerprint, prefixes_of(settings.required_method), settings.seed, given]
  stored = sealed.kept(file, load_contexts, key)
  if stored is not None:
    return stored
  with workdir.stage('contexts'):
    found = contexts_of(lm, settings.required_method, settings.seed, given)
  sealed.write_json(file, CONTEXTS, {'contexts': found}, key)
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
    training: records to train on; not needed if an editor is given.
    settings, workdir: of the run.
  """
  method = settings.required_method
  if not isinstance(method, HyperNetwork):
    return None
  file = editor_file(settings, workdir.path)
  if settings.editor:
    found = Editor.load(file)
    found.check(lm, method)
    return found
  assert training is not None, 'without an editor there are records'
  key = [lm.fingerprint, lm.config.dtype, method, settings.seed]
  key.append(describe_training(settings, training)['sha256'])
  stored = sealed.kept(file, Editor.load, key)
  if stored is not None:
    return stored
  with workdir.stage('training'):
    trained = train_editor(
      lm, training, method, seed=settings.seed, store=file.with_name(f'{file.stem}.partial')
    )
  trained.save(file, key)
  return trained


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
  text = None if documents is None else documents.identity
  trained = editor(lm, training, settings, workdir)
  key = workdir.key(lm.fingerprint, records, text, trained and trained.id)
  stored = sealed.kept(file, Patch.load, key)
  if stored is not None:
    return [(slice(0, stored.provenance['num_edits']), stored)]
  if factors is None:
    moments = second_moments(lm, documents, [method], settings, workdir)
  else:
    assert isinstance(factors.source, SecondMoments)
    moments = factors.source
  templates = contexts(lm, settings, workdir)
  parts: list[tuple[slice, EditResult]] = []
  reason = ''
  with workdir.stage('edit'), _batch_progress(batching, len(records)) as progress:
    monitor = None
    if isinstance(batching, Sequential):
      monitor = DamageMonitor(workdir / DAMAGE_FILE, lm, records, settings.edit, key)
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
  provenance = {**patch.provenance, 'config': sealed.digest(workdir.key())}
  if monitor is not None:
    provenance['stopped'] = reason
  patch = dataclasses.replace(patch, provenance=provenance)
  patch.save(file, key)
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
  file = workdir / EVALUATION
  ids = [[part.indices(len(records)), [each.id for each in patches]] for part, patches in parts]
  options = dataclasses.replace(
    settings.evaluation, store='', harness='', harness_limit=0, harness_shots=-1
  )
  demonstrations = load_demonstrations(settings)
  key: list[Any] = [lm.fingerprint, lm.config.dtype, records, questions, ids, options]
  key += [settings.seed, demonstrations]
  sizes = len(records), len(questions)
  table = sealed.kept(file, read_table, key, sizes)
  if table is None:
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
        demonstrations=demonstrations,
        store=settings.evaluation.store or workdir / CHUNKS_FILE,
      )
    write_table(file, table, notes, questions, key)
    table = read_table(file, key, sizes)
  return table


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
  key = _probe_key(name, lm, records, words, workdir)
  if sealed.kept(file, sealed.read_json, _PROBE, key) is None:
    requests = [record.request for record in records]
    with workdir.stage(name):
      found = probing.measure(name, lm, requests, settings.probe, words=words, seed=settings.seed)
    sealed.write_json(file, _PROBE, found, key)


def finished_probes(
  lm: LanguageModel,
  records: Sequence[Record],
  words: Mapping[str, Sequence[str]],
  workdir: Workdir,
) -> dict[str, Any]:
  """Results of the probes of this and earlier runs on the same inputs, by name."""
  found = {}
  for name in PROBES:
    key = _probe_key(name, lm, records, words, workdir)
    file = workdir / _PROBES / f'{name}.json'
    found[name] = sealed.kept(file, sealed.read_json, _PROBE, key)
  return {name: each for name, each in found.items() if each is not None}


def _probe_key(
  name: str,
  lm: LanguageModel,
  records: Sequence[Record],
  words: Mapping[str, Sequence[str]],
  workdir: Workdir,
) -> list[Any]:
  return [name, workdir.key(lm.fingerprint, [each.id for each in lm.patches], records, words)]


def samples(
  edited: LanguageModel,
  lm: LanguageModel,
  records: Sequence[Record],
  settings: Settings,
  workdir: Workdir,
) -> list[Sample]:
  """Texts about a few edited subjects, before and after."""
  if not settings.evaluation.samples:
    return []
  file = workdir / _SAMPLES
  options = settings.evaluation
  key: list[Any] = [lm.fingerprint, lm.config.dtype, records, [p.id for p in edited.patches]]
  key += [options.samples, options.new_tokens, settings.seed]
  stored = sealed.kept(file, read_samples, key)
  if stored is not None:
    return stored
  with workdir.stage('samples'):
    texts = sample_texts(
      edited,
      records,
      before=lm,
      count=settings.evaluation.samples,
      max_new_tokens=settings.evaluation.new_tokens,
      seed=settings.seed,
    )
  sealed.write_json(file, _TEXTS, {'samples': texts}, key)
  return list(texts)


def finished_samples(workdir: Workdir) -> list[Sample]:
  """The texts of a finished run; none without that stage."""
  file = workdir / _SAMPLES
  return sealed.kept(file, read_samples) or []


def read_samples(file: pathlib.Path, key: Any = None) -> list[Sample]:
  """The texts stored by `samples`."""
  content = sealed.read_json(file, _TEXTS, key, kind=dict[str, list[Sample]])
  return content['samples']
