"""Inputs of a run: model, records, text, and prompts whose answers must not change."""

import dataclasses
import hashlib
import itertools
import os
import pathlib
import random
from collections.abc import Iterable, Sequence
from typing import Any

from jedit.data.download import default_directory, fetch
from jedit.data.public import FILES, archives_of
from jedit.data.records import load_records, select
from jedit.editing.prompts import Contexts, check_contexts
from jedit.evals.generation import Generation
from jedit.evals.references import load_references
from jedit.evals.texts import TfIdf
from jedit.experiments.schema import Data, Model, Settings
from jedit.io import schema, sealed, storage
from jedit.models.checkpoints import CHECKPOINTS
from jedit.models.language_model import LanguageModel, load
from jedit.models.patch import Patch
from jedit.moments.corpus import Corpus, read_corpus, read_dataset
from jedit.moments.files import is_archive
from jedit.parallel.mesh import make_mesh
from jedit.testbeds.known_facts import KnownFacts
from jedit.testbeds.world import Prompt, World
from jedit.types import Kernel, Record, UserError

PATCH_FILE = 'patch.safetensors'
EDITOR_FILE = 'editor.safetensors'
CONTEXTS = 'jedit contexts 1'  # format
# Text for second moments of public checkpoints without published ones: the papers' kind, of a
# later dump; its card states the licences CC BY-SA 3.0 and GFDL.
DATASET = ('wikimedia/wikipedia', '20231101.en')
_TRAINING_RECORDS = 7680  # of a world: every fact four times, with other objects
_Groups = list[list[schema.Text]]


class _TrainedOn(schema.Fields):
  records: str
  world: dict[str, Any]


class _Knowledge(schema.Fields):
  """The part of a testbed's knowledge.json that names its facts."""

  config: _TrainedOn


Question = tuple[str, str]  # a prompt and its known answer


def load_model(settings: Settings) -> LanguageModel:
  """The unpatched model, on all devices."""
  mesh = make_mesh(settings.mesh.data, settings.mesh.model)
  return load(settings.model.directory, dtype=settings.model.dtype, mesh=mesh)


def with_default_moments(
  settings: Settings, directory: pathlib.Path | None, kernels: Iterable[Kernel]
) -> Settings:
  """The settings with a source of second moments where they name none.

  That is corpus.txt of the model, or of a public checkpoint the published second moments of its
  MLPs, or a dataset.

  Args:
    settings: of the run.
    directory: of the model, if it is here.
    kernels: whose second moments are needed.
  """
  kernels, wanted, name = tuple(kernels), settings.statistics, settings.model.name
  has_text = directory is not None and (directory / 'corpus.txt').is_file()
  has_file = is_archive(wanted.file) if wanted.file else False
  if wanted.corpus or wanted.dataset or has_text or has_file or not kernels:
    return settings
  if name not in CHECKPOINTS or (wanted.file and pathlib.Path(wanted.file).is_file()):
    return settings
  names = archives_of(name, (kernel.layer for kernel in kernels))
  if names and not wanted.file and all(kernel.name == 'mlp' for kernel in kernels):
    folder = public_directory(settings.data) / names[0]
    found = dataclasses.replace(wanted, file=str(folder.parent))
  else:
    found = dataclasses.replace(wanted, dataset=DATASET[0], dataset_config=DATASET[1])
  return dataclasses.replace(settings, statistics=found)


def published_moments(settings: Settings, kernels: Iterable[Kernel]) -> tuple[str, ...]:
  """Names of the public archives that `with_default_moments` has chosen; none otherwise."""
  names = archives_of(settings.model.name, (kernel.layer for kernel in kernels))
  folder = public_directory(settings.data)
  is_chosen = names and settings.statistics.file == str((folder / names[0]).parent)
  return names if is_chosen else ()


def public_directory(data: Data) -> pathlib.Path:
  """The directory of public files."""
  return pathlib.Path(data.directory) if data.directory else default_directory()


def mirrors_of(data: Data) -> list[str]:
  """Addresses to try before the public ones."""
  return [mirror.strip() for mirror in data.mirrors.split(',') if mirror.strip()]


def load_selection(settings: Settings) -> list[Record]:
  """The records of the run.

  Raises:
    UserError: for an unusable file, or one with fewer records.
  """
  data = settings.data
  records = load_records(_records_file(settings), data.kind or None)  # type: ignore[arg-type]
  seed = settings.seed if data.selection == 'random' else None
  return select(records, data.num_edits, seed, unique_subjects=data.unique_subjects)


def load_demonstrations(settings: Settings) -> str:
  """The text before questions of MQuAKE; empty without a file."""
  path = settings.evaluation.demonstrations
  if not path:
    return ''
  try:
    return storage.read_bytes(path).decode()
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is not UTF-8; give a text in UTF-8.') from error


def load_training(settings: Settings) -> list[Record]:
  """Records to train an editor on, none of them about a subject of the test.

  Raises:
    UserError: without a file, for a model other than the testbeds, or if too few records remain.
  """
  wanted = settings.training
  if not wanted.records:
    world = _world(settings.model)
    if world is None:
      raise UserError(
        'The model has no made-up world to train an editor on; give records in training.records, '
        'or a trained editor in editor.'
      )
    return world.training_records(wanted.num_records or _TRAINING_RECORDS, settings.seed)
  file = public_file(wanted.records, settings.data)
  tested_file = _records_file(settings)
  is_same = file.resolve() == tested_file.resolve()
  tested = load_selection(settings) if is_same else load_records(tested_file)
  subjects = {record.request.subject for record in tested}
  records = [
    record
    for record in load_records(file, wanted.kind or None)  # type: ignore[arg-type]
    if record.request.subject not in subjects
  ]
  return select(records, wanted.num_records or None)


def editor_file(settings: Settings, workdir: pathlib.Path) -> pathlib.Path:
  """The file of the editor: given, shared, or in the workdir."""
  return pathlib.Path(settings.editor or settings.training.file or workdir / EDITOR_FILE)


def describe_training(settings: Settings, records: Sequence[Record]) -> dict[str, Any]:
  """Provenance of the records that an editor is trained on."""
  return {
    'file': settings.training.records or 'made-up world',
    'sha256': hashlib.sha256(repr(list(records)).encode()).hexdigest(),
    'num_records': len(records),
  }


def describe_selection(settings: Settings, records: Sequence[Record]) -> str:
  """Selection of the records and order of edits and evaluation, as one sentence."""
  data, size = settings.data, settings.edit.edits_per_batch
  chosen = {
    'first': 'the first ones in file order',
    'random': f'drawn without replacement with seed {settings.seed}',
  }[data.selection]
  if data.unique_subjects:
    chosen += ', only the first for each subject'
  order = {
    'together': 'edited in one batch and evaluated afterwards',
    'separate': f'edited in batches of {size} on the original model, each evaluated on its own '
    'records',
    'sequential': f'edited in batches of {size} one after the other, all evaluated at the end',
  }[settings.edit.mode]
  return f'Selection: {len(records)} of {_records_file(settings).name}, {chosen}; {order}.'


def public_file(name: str, data: Data) -> pathlib.Path:
  """The path of a file; a public one named without a directory is downloaded if absent.

  Raises:
    UserError: if the download fails.
  """
  path = pathlib.Path(name)
  if path.is_file() or name not in FILES:
    return path
  return fetch(name, data.directory or None, mirrors=mirrors_of(data))


def load_generation(
  settings: Settings, records: Sequence[Record]
) -> tuple[Generation | None, list[str]]:
  """Settings of generation, and a sentence for each missing file.

  Raises:
    UserError: for an unusable file.
  """
  wanted, data = settings.evaluation, settings.data
  if not wanted.generation_interval:
    return None, []
  notes = []
  found: dict[str, pathlib.Path] = {}
  for field in ('snippets', 'idf', 'vocabulary'):
    if not (name := getattr(wanted, field)):
      continue
    try:
      path = public_file(name, data)
      if not path.is_file():
        raise UserError(f'File {path} does not exist; check the path.')
      found[field] = path
    except UserError as error:
      notes.append(f'Consistency and essence are omitted, no evaluation.{field}: {error}')
  references = None
  generation = Generation(
    interval=wanted.generation_interval, num_tokens=wanted.generation_tokens, seed=settings.seed
  )
  chosen = [record for record in records if generation.chooses(record)]
  if 'snippets' in found and chosen and not notes:
    tfidf = TfIdf.load(found['idf'], found['vocabulary']) if 'idf' in found else None
    references = load_references(found['snippets'], chosen, tfidf)
    weights = found['idf'].name if tfidf else 'the snippets themselves'
    notes.append(f'Consistency: snippets of {found["snippets"].name}, weights of {weights}.')
  return dataclasses.replace(generation, references=references), notes


def _records_file(settings: Settings) -> pathlib.Path:
  if settings.data.records:
    return public_file(settings.data.records, settings.data)
  file = settings.model.directory / 'records.json'
  if not file.is_file():
    raise UserError(f'{file.parent} has no records.json; give a file in data.records.')
  return file


def load_documents(settings: Settings) -> Corpus | None:
  """The text for second moments; None if `statistics.file` holds computed ones.

  Raises:
    UserError: without either.
  """
  wanted = settings.statistics
  if wanted.file and is_archive(wanted.file):
    if not pathlib.Path(wanted.file).exists():
      raise UserError(f'{wanted.file} does not exist; give an existing file in statistics.file.')
    return None
  beside = settings.model.directory / 'corpus.txt'
  if wanted.dataset:
    corpus = read_dataset(
      wanted.dataset, wanted.dataset_config, wanted.column, streaming=wanted.streaming
    )
  elif wanted.corpus or beside.is_file():
    corpus = read_corpus(wanted.corpus or beside, wanted.column)
  elif pathlib.Path(wanted.file).is_file():
    return None
  else:
    raise UserError(
      f'{beside.parent} has no corpus.txt; give a text file in statistics.corpus, a dataset of the '
      f'hub in statistics.dataset (such as {DATASET[0]}), or second moments in statistics.file.'
    )
  return corpus.draw(wanted.max_documents, wanted.seed).part(*wanted.divided)


def load_contexts(path: str | os.PathLike[str], key: Any = None) -> Contexts:
  """The groups of templates in a contexts.json of a run, or in a JSON list of lists.

  Args:
    path: the file.
    key: what it must be made of; None takes any, and files that jedit did not write.

  Raises:
    UserError: for a file of another form or key.
  """
  if key is None and not sealed.is_sealed_json(pathlib.Path(path)):
    return check_contexts(schema.read_json(path, _Groups))
  return check_contexts(sealed.read_json(path, CONTEXTS, key, dict[str, _Groups])['contexts'])


def load_patches(settings: Settings, workdir: pathlib.Path) -> list[Patch]:
  """The patches named by the config, or the patch of the workdir.

  Raises:
    UserError: without a patch.
  """
  names = [name.strip() for name in settings.patches.split(',') if name.strip()]
  paths = [pathlib.Path(name) for name in names]
  files = [path / PATCH_FILE if path.is_dir() else path for path in paths]
  if not files and not (workdir / PATCH_FILE).is_file():
    raise UserError(
      f'{workdir} has no {PATCH_FILE}; name a patch or the workdir of an edit in patches.'
    )
  patches = [Patch.load(file) for file in files or [workdir / PATCH_FILE]]
  return [patch.anywhere() for patch in patches] if settings.patches_anywhere else patches


def unedited_questions(settings: Settings, records: Sequence[Record]) -> list[Question]:
  """Prompts about unedited subjects with their answers, to detect side effects.

  Drawn with the seed of the run from a testbed's training facts, or else from the neighborhood
  prompts of the records.
  """
  taught = _taught(settings.model, settings.data)
  if taught is not None:
    found = {(p.text, p.answer): p.subject or p.text for p in taught}
  else:
    found = {
      (prompt, record.neighborhood_target or record.request.target_true or ''): prompt
      for record in records
      for prompt in record.neighborhood_prompts
    }
  questions = [question for question in found if question[1]]
  random.Random(f'unedited {settings.seed}').shuffle(questions)
  edited = {record.request.subject for record in records}
  kept = (q for q in questions if not any(subject in found[q] for subject in edited))
  return list(itertools.islice(kept, settings.evaluation.unedited))


def _taught(model: Model, data: Data) -> list[Prompt] | None:
  """All training facts of a testbed; None for other models and other files of records."""
  made_by = model.directory / 'knowledge.json'
  if data.records or not made_by.is_file():
    return None
  world = _world(model)
  if world is None:
    return KnownFacts(load_records(model.directory / 'records.json')).prompts()
  return world.prompts()


def _world(model: Model) -> World | None:
  """The made-up world that a testbed was trained on; None for other models."""
  made_by = model.directory / 'knowledge.json'
  if not made_by.is_file():
    return None
  made = schema.read_json(made_by, _Knowledge).config
  return None if made.records else schema.check(World, made.world, f'{made_by}', strict=False)


def describe_model(lm: LanguageModel, settings: Settings) -> dict[str, Any]:
  """Provenance of the model."""
  return {
    'name': settings.model.name,
    'source': lm.source,
    'dtype': lm.config.dtype,
    'fingerprint': lm.fingerprint,
  }


def describe_data(settings: Settings, records: Sequence[Record]) -> dict[str, Any]:
  """Provenance of the records: file and selection."""
  file = _records_file(settings)
  return {
    'file': str(file),
    'sha256': hashlib.sha256(file.read_bytes()).hexdigest(),
    'selection': settings.data.selection,
    'unique_subjects': settings.data.unique_subjects,
    'case_ids': [record.case_id for record in records],
  }
