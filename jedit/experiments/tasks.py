"""The tasks: one experiment each, from its config to the files of its workdir.

A run is a sequence of stages. Each reads a finished result from the workdir, so a killed run
resumes from where it stopped and gives the same numbers.
"""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from jedit.experiments import downstream, exports, inputs, probing, stages, sweep
from jedit.experiments.checks import Inputs, Problems, check
from jedit.experiments.config import read_settings, read_training
from jedit.experiments.schema import Settings
from jedit.experiments.workdir import PROVENANCE, SUMMARY, SUMMARY_FILE, Workdir
from jedit.io import schema, sealed
from jedit.io.lock import Lock
from jedit.io.out_of_memory import is_out_of_memory
from jedit.io.progress import show
from jedit.methods import HyperNetwork
from jedit.models.language_model import LanguageModel
from jedit.models.patch import Patch
from jedit.moments.corpus import Corpus
from jedit.parallel.devices import announce_devices
from jedit.probes.contrast import check_objects
from jedit.reports import comparison, editors, probes, summary
from jedit.reports.published import read_published
from jedit.solvers import FactorCache
from jedit.testbeds.train import train
from jedit.types import Record, UserError


def run(config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]) -> None:
  """Runs the task `config.task` and writes the results to `workdir`.

  Args:
    config: as in configs/; `jedit.experiments.schema` defines the fields.
    workdir: a new directory, or one with the same config, whose run then resumes.

  Raises:
    UserError: for unusable input, before anything is written.
  """
  task = config.get('task', 'edit')
  if task not in TASKS:
    raise UserError(f'Unknown task {task!r}; choose one of {", ".join(TASKS)}.')
  try:
    with _lock(workdir):
      TASKS[task](config, os.fspath(workdir))
  except Exception as error:
    if not is_out_of_memory(error):
      raise
    reason = ' '.join(str(error).split())[:120]
    raise UserError(
      f'The run is out of memory ({reason}); split the model over more devices with mesh.model, '
      'choose a narrower model.dtype, or use a machine with more memory.'
    ) from error


def _edit(config: ml_collections.ConfigDict, path: str) -> None:
  """Statistics, edit, evaluation and report."""
  found, workdir = _prepare(
    config.to_dict(), path, edits=True, needs_records=True, needs_moments=True
  )
  settings, documents = found.first, found.load_documents()
  lm = inputs.load_model(settings)
  _edit_model(lm, settings, workdir, found.records[''], documents, found.training[''])


def _edit_model(
  lm: LanguageModel,
  settings: Settings,
  workdir: Workdir,
  records: list[Record],
  documents: Corpus | None,
  training: list[Record] | None,
  factors: FactorCache | None = None,
) -> None:
  workdir.begin(
    {
      'seed': settings.seed,
      'model': inputs.describe_model(lm, settings),
      'data': inputs.describe_data(settings, records),
      **({} if training is None else {'training': inputs.describe_training(settings, training)}),
    }
  )
  parts = stages.edit(lm, records, documents, settings, workdir, factors, training)
  records = records[: parts[-1][0].stop]  # a sequence may have stopped early
  _measure(lm, [(part, [patch]) for part, patch in parts], records, settings, workdir)


def _train_editor(config: ml_collections.ConfigDict, path: str) -> None:
  """Trains an editor, whose file is then `editor` of the other tasks."""
  values = config.to_dict()
  given = read_settings(values)
  method = given.required_method
  if not isinstance(method, HyperNetwork):
    raise UserError(f'Method {method.name} has no editor to train; choose mend or malmen.')
  if given.editor:
    raise UserError(f'The editor {given.editor} is trained already; remove editor.')
  found, workdir = _prepare(values, path, edits=True)
  settings, training = found.first, found.training['']
  lm = inputs.load_model(settings)
  named = {} if training is None else {'training': inputs.describe_training(settings, training)}
  workdir.begin({'seed': settings.seed, 'model': inputs.describe_model(lm, settings), **named})
  editor = stages.editor(lm, training, settings, workdir)
  assert editor is not None, 'the method uses one'
  show(editors.write(workdir.path, editor, settings.model.name))
  show(f'The editor is in {inputs.editor_file(settings, workdir.path)}.')


def _stats(config: ml_collections.ConfigDict, path: str) -> None:
  """Second moments alone, for an `edit` in the same workdir."""
  values = config.to_dict()
  method = read_settings(values).required_method
  if not method.kernels:
    raise UserError(f'Method {method.name} needs no second moments; choose another method or task.')
  found, workdir = _prepare(values, path, edits=True, needs_moments=True)
  settings, documents = found.first, found.load_documents()
  lm = inputs.load_model(settings)
  workdir.begin({'seed': settings.seed, 'model': inputs.describe_model(lm, settings)})
  moments = stages.second_moments(lm, documents, [method], settings, workdir)
  assert moments is not None, 'the method needs them'
  show(
    f'Second moments of {len(moments.cov)} kernels over {moments.num_tokens} tokens are in '
    f'{settings.statistics.file or workdir / stages.STATISTICS_FILE}.'
  )


def _evaluate(config: ml_collections.ConfigDict, path: str) -> None:
  """Measures existing patches."""
  found, workdir = _prepare(config.to_dict(), path, needs_records=True, needs_patches=True)
  settings, patches, records = found.first, found.patches, found.records['']
  _check_own(settings, patches, workdir)
  lm = inputs.load_model(settings)
  _apply(lm, patches)
  workdir.begin(
    {
      'seed': settings.seed,
      'model': inputs.describe_model(lm, settings),
      'data': inputs.describe_data(settings, records),
      'patches': {'ids': [patch.id for patch in patches]},
    }
  )
  _measure(lm, [(slice(0, len(records)), patches)], records, settings, workdir)


def _export(config: ml_collections.ConfigDict, path: str) -> None:
  """Writes the edited model as a Hugging Face directory, or its patches as a LoRA adapter."""
  found, workdir = _prepare(config.to_dict(), path, needs_patches=True)
  settings = found.first
  _check_own(settings, found.patches, workdir)
  lm = inputs.load_model(settings)
  edited = _apply(lm, found.patches)
  workdir.begin({'model': inputs.describe_model(lm, settings)})
  if settings.export.adapter:
    written = exports.export_adapter(edited, settings, workdir)
    lost, rank = max(written['errors'].values()), max(written['ranks'].values())
    error = f'truncated by up to {100 * lost:.2g}% of an update' if lost else 'exact'
    show(f'The LoRA adapter is in {written["path"]}, of rank {rank}, {error}.')
    return
  written = exports.export_model(edited, settings, workdir)
  show(f'The edited model is in {written["path"]}, stored as {written["dtype"]}.')
  lost = [each['update'] for each in written['rounding'].values() if each['update'] is not None]
  if lost:
    show(f'Rounding to {written["dtype"]} moved the edits by up to {100 * max(lost):.2f}%.')


def _sweep(config: ml_collections.ConfigDict, path: str) -> None:
  """Edits once per cell, each in a workdir of its own, and writes a table of all.

  The cells share the model, its second moments and the contexts; finished ones are not repeated.
  """
  values = config.to_dict()
  cells = sweep.read_cells(values)
  published, axis = read_published(values), sweep.read_axis(values, cells)
  settings = {name: read_settings(cell) for name, cell in cells.items()}
  sweep.check_shared(settings)
  problems = Problems()
  opened: dict[str, tuple[Settings, Workdir]] = {}
  with problems.noted():
    whole = Workdir(path, values)
    for name, cell in cells.items():
      shared = stages.shared_files(settings[name], whole)
      place = str(whole / 'cells' / sweep.folder(name))
      opened[name] = _open(sweep.with_shared(cell, shared), place)
  needs = dict(edits=True, needs_records=True, needs_moments=True)
  found = _fetch(check(settings, path, problems, **needs), settings, whole, **needs)
  first, documents = found.first, found.load_documents()
  methods = [each.required_method for each in settings.values()]
  lm = inputs.load_model(first)
  whole.begin({'seed': first.seed, 'model': inputs.describe_model(lm, first)})
  moments = stages.second_moments(lm, documents, methods, first, whole)
  factors = None if moments is None else FactorCache(moments)
  for each in settings.values():
    stages.shared_contexts(lm, each, whole)
  summaries = {}
  for number, (name, (cell_settings, workdir)) in enumerate(opened.items(), start=1):
    with _lock(workdir.path):
      if _finished_summary(workdir) is None:
        show(f'Cell {number} of {len(cells)}: {name}')
        records, training = found.records[name], found.training[name]
        _edit_model(lm, cell_settings, workdir, records, None, training, factors)
      summaries[name] = sealed.read_json(workdir / SUMMARY_FILE, SUMMARY)
  sealed.write_json(whole / sweep.SWEEP_FILE, sweep.SWEEP, {'cells': summaries})
  title = f'{len(cells)} runs on {first.model.name}'
  provenance = sealed.read_json(whole / 'provenance.json', PROVENANCE)
  samples = [stages.finished_samples(workdir) for _, workdir in opened.values()]
  texts = dict(zip(cells, samples, strict=True)) if all(samples) else None
  text = comparison.write(
    whole.path, 'sweep', title, summaries, provenance, published, texts, axis=axis
  )
  show(f'\n{text}\n\nThe files are in {whole.path}; open report.html there.')


def _compare(config: ml_collections.ConfigDict, path: str) -> None:
  """Compares finished runs."""
  settings, workdir = _open(config.to_dict(), path)
  summaries, configs = sweep.read_runs(settings.compared)
  workdir.begin({})
  title = f'{len(summaries)} runs compared'
  provenance = {'workdirs': settings.compared}
  text = comparison.write(workdir.path, 'compare', title, summaries, provenance, configs=configs)
  show(f'\n{text}\n\nThe files are in {workdir.path}; open report.html there.')


def _probe(config: ml_collections.ConfigDict, path: str) -> None:
  """Probes the hidden states between prompts and answers."""
  found, workdir = _prepare(config.to_dict(), path, needs_records=True, needs_words=True)
  settings, records = found.first, found.records['']
  words = probing.load_words(settings.probe.words)
  lm = inputs.load_model(settings)
  if 'contrast' in settings.probe.names:
    check_objects([record.request for record in records])
  probed = _apply(lm, found.patches)
  workdir.begin(
    {
      'seed': settings.seed,
      'model': inputs.describe_model(lm, settings),
      'data': inputs.describe_data(settings, records),
      'patches': {'ids': [patch.id for patch in found.patches]},
    }
  )
  for name in settings.probe.names:
    stages.probe(name, probed, records, settings, words, workdir)
  results = stages.finished_probes(probed, records, words, workdir)
  show(probes.write(workdir.path, f'{settings.model.name} from within', results))


def _plan(config: ml_collections.ConfigDict, path: str) -> None:
  """Prints what an edit takes on the devices of this machine or of a named topology."""
  values = config.to_dict()
  settings = {'': read_settings(values)}
  edits = settings[''].required_method
  needs = dict(edits=True, needs_records=True, needs_moments=bool(edits.kernels))
  show(str(check(settings, path, Problems(), **needs).plan()))


def _train(config: ml_collections.ConfigDict, path: str) -> None:
  """Trains a testbed, whose directory is then a `model.path` for the other tasks."""
  complete = read_training(config.to_dict())
  workdir = Workdir(path, complete.to_dict())
  made = workdir / 'model' / 'knowledge.json'
  if made.is_file():
    knows = schema.read_json(made, dict[str, Any])
    show(f'{made.parent} is trained already: {knows["trained"]}% of trained prompts are right.')
    return
  announce_devices()
  train(complete, path)
  workdir.begin({'seed': complete.seed})


TASKS: Mapping[str, Callable[[ml_collections.ConfigDict, str], None]] = {
  'edit': _edit,
  'stats': _stats,
  'train': _train,
  'train_editor': _train_editor,
  'sweep': _sweep,
  'evaluate': _evaluate,
  'probe': _probe,
  'compare': _compare,
  'export': _export,
  'plan': _plan,
}


def _lock(workdir: str | os.PathLike[str]) -> Lock:
  """One run at a time has a workdir."""
  return Lock(pathlib.Path(workdir).absolute() / '.lock', f'The workdir {os.fspath(workdir)}')


def _finished_summary(workdir: Workdir) -> dict[str, Any] | None:
  """The summary of a finished run; None for any other run."""
  file = workdir / SUMMARY_FILE
  return sealed.kept(file, sealed.read_json, SUMMARY, workdir.key())


def _check_own(settings: Settings, patches: Sequence[Patch], workdir: Workdir) -> None:
  """Refuses a patch that lies in the workdir and was made by another run."""
  made_by = patches[0].provenance.get('config')
  if not settings.patches and made_by != sealed.digest(workdir.key()):
    raise UserError(
      f'{workdir / inputs.PATCH_FILE} is of another run; restore it, or make the edit again.'
    )


def _prepare(config: Mapping[str, Any], path: str, **needs: bool) -> tuple[Inputs, Workdir]:
  """The checked inputs of a run and its workdir; prints the plan, downloads what is missing."""
  settings = {'': read_settings(config)}
  problems = Problems()
  with problems.noted():
    workdir = Workdir(path, config)
  found = check(settings, path, problems, **needs)
  return _fetch(found, settings, workdir, **needs), workdir


def _fetch(
  found: Inputs, settings: Mapping[str, Settings], workdir: Workdir, **needs: bool
) -> Inputs:
  """Prints the plan; downloads what is missing, and checks it like the rest."""
  show(str(found.plan(stages.finished(workdir))))
  if not found.downloads:
    return found
  found.fetch()
  return check(settings, workdir.path, Problems(), **needs)


def _open(config: Mapping[str, Any], path: str) -> tuple[Settings, Workdir]:
  return read_settings(config), Workdir(path, config)


def _apply(lm: LanguageModel, patches: Sequence[Patch]) -> LanguageModel:
  for patch in patches:
    lm = lm.apply(patch)
  return lm


def _measure(
  lm: LanguageModel,
  parts: Sequence[tuple[slice, Sequence[Patch]]],
  records: Sequence[Record],
  settings: Settings,
  workdir: Workdir,
) -> None:
  """Evaluates each part of the records on its patched model, generates texts, reports both."""
  questions = inputs.unedited_questions(settings, records)
  table = stages.evaluate(parts, lm, records, questions, settings, workdir)
  part, first = parts[0]
  edited = _apply(lm, first)
  samples = stages.samples(edited, lm, records[part], settings, workdir)
  tasks = downstream.measure(edited, lm, settings, workdir)
  found = summary.summarize(
    [patch for _, patches in parts for patch in patches],
    table,
    model=settings.model.name,
    dataset=settings.dataset,
    selection=inputs.describe_selection(settings, records),
    mode=settings.edit.mode,
    edits_per_batch=settings.edit.edits_per_batch,
    seconds=workdir.seconds,
  )
  sealed.write_json(workdir / SUMMARY_FILE, SUMMARY, found, workdir.key())
  summary.write_page(workdir.path, found, table, records, samples, tasks)
  show(summary.as_text(found, table, samples, str(workdir.path), tasks))
