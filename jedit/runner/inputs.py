"""What a run starts from: model, records, text, questions about what must stay."""

import hashlib
import itertools
import pathlib
import random
from collections.abc import Sequence
from typing import Any

from jedit import checkpoint
from jedit.data.corpus import Corpus, read_corpus, read_dataset
from jedit.data.edit_rows import Contexts, check_contexts
from jedit.data.requests import load_records, select
from jedit.language_model import LanguageModel, load
from jedit.mesh import make_mesh
from jedit.patch import Patch
from jedit.runner.settings import Data, Model, Settings
from jedit.second_moment import is_archive
from jedit.testbeds.known_facts import KnownFacts
from jedit.testbeds.world import Prompt, World
from jedit.types import Record, UserError

PATCH_FILE = 'patch.safetensors'

Question = tuple[str, str]  # a prompt and its known answer


def load_model(settings: Settings) -> LanguageModel:
  """The model, without any patch, on all devices."""
  mesh = make_mesh(settings.mesh.data, settings.mesh.model)
  return load(settings.model.directory, dtype=settings.model.dtype, mesh=mesh)


def load_selection(settings: Settings) -> list[Record]:
  """The records of the run.

  Raises:
    UserError: for a file that cannot be used, or one with fewer records.
  """
  data = settings.data
  records = load_records(_records_file(settings), data.kind or None)  # type: ignore[arg-type]
  seed = settings.seed if data.selection == 'random' else None
  return select(records, data.num_edits, seed)


def _records_file(settings: Settings) -> pathlib.Path:
  if settings.data.records:
    return pathlib.Path(settings.data.records)
  file = settings.model.directory / 'records.json'
  if not file.is_file():
    raise UserError(f'{file.parent} has no records.json; give a file in data.records.')
  return file


def load_documents(settings: Settings) -> Corpus | None:
  """The text for second moments; None where `statistics.file` has them from elsewhere.

  Raises:
    UserError: where there is none.
  """
  wanted = settings.statistics
  if wanted.file and is_archive(wanted.file):
    if not pathlib.Path(wanted.file).exists():
      raise UserError(f'There is no {wanted.file}; give a file in statistics.file that exists.')
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
      f'{beside.parent} has no corpus.txt; give a text file in statistics.corpus, or second '
      'moments in statistics.file.'
    )
  return corpus.draw(wanted.max_documents, wanted.seed).part(*wanted.divided)


def load_contexts(path: str) -> Contexts:
  """The groups of templates in a contexts.json.

  Raises:
    UserError: for a file that holds something else.
  """
  groups = checkpoint.read_json(path)
  if not isinstance(groups, list) or not all(
    isinstance(group, list) and all(isinstance(text, str) for text in group) for group in groups
  ):
    raise UserError(f'{path} holds no contexts; give a JSON list of lists of templates.')
  return check_contexts(groups)


def load_patches(settings: Settings, workdir: pathlib.Path) -> list[Patch]:
  """The patches that the config names, or the one that an edit left in the workdir.

  Raises:
    UserError: where there is none.
  """
  names = [name.strip() for name in settings.patches.split(',') if name.strip()]
  paths = [pathlib.Path(name) for name in names]
  files = [path / PATCH_FILE if path.is_dir() else path for path in paths]
  if not files and not (workdir / PATCH_FILE).is_file():
    raise UserError(
      f'There is no {PATCH_FILE} in {workdir}; name a patch or the workdir of an edit in patches.'
    )
  return [Patch.load(file) for file in files or [workdir / PATCH_FILE]]


def unedited_questions(settings: Settings, records: Sequence[Record]) -> list[Question]:
  """Questions about subjects that `records` do not edit, with the answers that should stay.

  They are drawn with the seed from all that the model was taught, where its directory tells, and
  from the neighbourhood prompts of the records elsewhere.
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
  """Everything that a testbed knows; None for a model whose directory does not tell.

  Records of another file are about other things: then nothing is known.
  """
  made_by = model.directory / 'knowledge.json'
  if data.records or not made_by.is_file():
    return None
  config = checkpoint.read_json(made_by)['config']
  if config['records']:
    return KnownFacts(load_records(model.directory / 'records.json')).prompts()
  return World(**config['world']).prompts()


def describe_model(lm: LanguageModel, settings: Settings) -> dict[str, Any]:
  """Provenance of the model."""
  return {
    'name': settings.model.name,
    'source': lm.source,
    'dtype': lm.config.dtype,
    'fingerprint': lm.fingerprint,
  }


def describe_data(settings: Settings, records: Sequence[Record]) -> dict[str, Any]:
  """Provenance of the records: the file and which of it were chosen."""
  file = _records_file(settings)
  return {
    'file': str(file),
    'sha256': hashlib.sha256(file.read_bytes()).hexdigest(),
    'selection': settings.data.selection,
    'case_ids': [record.case_id for record in records],
  }
