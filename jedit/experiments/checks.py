"""One pass over the inputs of a run, before anything is loaded, downloaded or written.

All that is missing or inconsistent ends up in one sentence.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jedit.data.download import fetch, plan_downloads
from jedit.data.public import FILES, RECORDS
from jedit.data.records import cuts_instances
from jedit.editing.prompts import encode_edits
from jedit.evals.chunks import check_store
from jedit.evals.downstream import check_tasks
from jedit.evals.evaluate import check_texts
from jedit.experiments import inputs
from jedit.experiments.amounts import updated_of
from jedit.experiments.plan import Plan, make_plan
from jedit.experiments.probing import load_words
from jedit.experiments.schema import Settings
from jedit.hypernetworks.editor import Editor
from jedit.io.downloads import Download
from jedit.methods import HyperNetwork
from jedit.models import ModelConfig
from jedit.models.generate import check_memory
from jedit.models.load import (
  bytes_per_device,
  check_directory,
  check_fits,
  read_config,
  read_sizes,
)
from jedit.models.patch import Patch
from jedit.models.precision import check_dtype
from jedit.models.tokenizer import load_tokenizer
from jedit.moments.corpus import Corpus, plan_dataset
from jedit.moments.files import check_archives, is_archive
from jedit.moments.sums import num_values
from jedit.parallel.devices import announce_devices, find_devices
from jedit.parallel.mesh import make_mesh
from jedit.parallel.topology import find_topology
from jedit.types import Kernel, Record, UserError
from jedit.units import format_bytes

_AT_ONCE = 64  # texts that are generated together


class Problems:
  """The sentences of several checks, joined to one."""

  def __init__(self) -> None:
    self._sentences: list[str] = []

  @contextlib.contextmanager
  def noted(self, label: str = '') -> Iterator[None]:
    """Keeps the sentence of a UserError in the block, with a label in front."""
    try:
      yield
    except UserError as error:
      sentence = f'{label}{error}'
      if sentence not in self._sentences:
        self._sentences.append(sentence)

  def stop(self) -> None:
    """Raises a UserError with all sentences, if there are any."""
    if len(self._sentences) == 1:
      raise UserError(self._sentences[0])
    if self._sentences:
      parts = '; '.join(f'({n}) {text[:-1]}' for n, text in enumerate(self._sentences, start=1))
      raise UserError(f'{len(self._sentences)} things are in the way of this run: {parts}.')


@dataclasses.dataclass
class Inputs:
  """What the checks of a run found; inputs that are downloaded first are None.

  Attributes:
    settings: by cell of a sweep, with default second moments; a single run has the key ''.
    devices: of the run.
    mesh: of the devices.
    config: sizes of the model.
    tokenizer: of the model; None if it is downloaded first.
    records: by cell.
    training: records to train an editor on, by cell; None for methods without one, and if an
      editor is given.
    documents: text for second moments.
    patches: to apply.
    downloads: what `fetch` gets.
    collects: second moments are collected from text.
  """

  settings: dict[str, Settings]
  devices: Sequence[jax.Device] = ()
  mesh: Mesh | None = None
  config: ModelConfig | None = None
  tokenizer: Any = None
  records: dict[str, list[Record]] = dataclasses.field(default_factory=dict)
  training: dict[str, list[Record] | None] = dataclasses.field(default_factory=dict)
  documents: Corpus | None = None
  patches: list[Patch] = dataclasses.field(default_factory=list)
  downloads: list[Download] = dataclasses.field(default_factory=list)
  collects: bool = False

  @property
  def first(self) -> Settings:
    """The settings of a single run, or of the first cell, with what all cells share."""
    return next(iter(self.settings.values()))

  def load_documents(self) -> Corpus | None:
    """The text for second moments; None if they are not collected."""
    if self.collects and self.documents is None:
      return inputs.load_documents(self.first)
    return self.documents

  def plan(self, done: Sequence[str] = ()) -> Plan:
    """The plan of the run; `done` names its finished stages."""
    assert self.config is not None, 'the checks have passed'
    return make_plan(
      self.first,
      self.config,
      self.mesh,
      self.devices,
      records=next(iter(self.records.values()), None),
      documents=self.documents,
      tokenizer=self.tokenizer,
      collects=self.collects,
      downloads=self.downloads,
      done=done,
      num_cells=len(self.settings),
    )

  def fetch(self) -> None:
    """Downloads what is missing."""
    data = self.first.data
    for download in self.downloads:
      if download.name in FILES:
        fetch(download.name, data.directory or None, mirrors=inputs.mirrors_of(data))
    _ = self.first.model.directory
    self.load_documents()


def check(
  settings: Mapping[str, Settings],
  workdir: str | os.PathLike[str],
  problems: Problems,
  *,
  edits: bool = False,
  needs_records: bool = False,
  needs_moments: bool = False,
  needs_patches: bool = False,
  needs_words: bool = False,
) -> Inputs:
  """Checks the inputs of a run, or of the cells of a sweep.

  Args:
    settings: by cell; '' for a single run.
    workdir: of the results.
    problems: found so far; all are raised at the end.
    edits: the method is checked against model and records.
    needs_records, needs_moments, needs_patches, needs_words: inputs of the task. A probe, which
      needs words, takes patches only if the settings name some.

  Raises:
    UserError: for everything that is missing or inconsistent, in one sentence.
  """
  found = Inputs(dict(settings))
  first = found.first
  has_devices = False
  with problems.noted():
    topology = first.plan.topology if first.task == 'plan' else ''
    if not topology:
      announce_devices()
    found.devices = find_topology(topology) if topology else find_devices()
    found.mesh = make_mesh(first.mesh.data, first.mesh.model, found.devices)
    has_devices = True
  directory, tokenizer = _check_model(found, problems, has_devices)
  for name, each in settings.items():
    label = f'In the cell {name!r}: ' if name else ''
    if needs_records:
      with problems.noted(label):
        _check_records(found, name, directory)
    if edits:
      with problems.noted(label):
        _check_method(found, name)
    if needs_records and (edits or needs_patches):
      with problems.noted(label):
        _check_texts(found, name, tokenizer)
      if each.evaluation.store:
        with problems.noted(label):
          check_store(each.evaluation.store)
    if edits:
      with problems.noted(label):
        found.training[name] = _find_training(each)
    if edits and each.contexts:
      with problems.noted(label):
        _check_contexts(found, name, tokenizer)
  if needs_records and (edits or needs_patches) and first.evaluation.downstream:
    with problems.noted():
      check_tasks(first.evaluation.downstream)
  if needs_moments:
    with problems.noted():
      kernels = {kernel for each in settings.values() for kernel in each.required_method.kernels}
      _check_moments(found, directory, sorted(kernels))
  if needs_words:
    with problems.noted():
      load_words(first.probe.words)
  if needs_patches or needs_words and first.patches:
    with problems.noted():
      found.patches = inputs.load_patches(first, pathlib.Path(workdir))
  with problems.noted():
    _check_space(found, pathlib.Path(workdir))
  problems.stop()
  return found


def _check_model(
  found: Inputs, problems: Problems, has_devices: bool
) -> tuple[pathlib.Path | None, Any]:
  """Directory and tokenizer of a model that is here; sets its config."""
  wanted = found.first.model
  tokenizer, location = None, None
  with problems.noted():
    check_dtype(wanted.dtype)
    location = wanted.location
    if location.path is not None:
      read = read_sizes if found.first.task == 'plan' else check_directory
      found.config = read(location.path, wanted.dtype)
    elif location.download is not None and location.hf_config is not None:
      found.downloads.append(location.download)
      found.config = read_config(location.hf_config, wanted.dtype, location.download.name)
    if found.config is not None and has_devices:
      label = str(location.path or wanted.path or wanted.name)
      check_fits(label, found.config, wanted.dtype, found.mesh, found.devices[0])
  directory = location.path if location else None
  if directory is not None and directory.is_dir() and _has_tokenizer(found, directory):
    with problems.noted():
      tokenizer = found.tokenizer = load_tokenizer(directory)
  return directory, tokenizer


def _has_tokenizer(found: Inputs, directory: pathlib.Path) -> bool:
  """False for a directory with no more than the sizes that a plan needs."""
  return found.first.task != 'plan' or any(directory.glob('*token*'))


def _check_records(found: Inputs, name: str, directory: pathlib.Path | None) -> None:
  """Loads the records, or finds their download."""
  settings = found.settings[name]
  wanted, data = settings.data.records, settings.data
  if wanted in FILES and not pathlib.Path(wanted).is_file():
    missing = plan_downloads([wanted], data.directory or None, inputs.mirrors_of(data))
    found.downloads += [download for download in missing if download not in found.downloads]
    if missing:
      return
  if wanted or directory is not None:
    found.records[name] = inputs.load_selection(settings)
  elif found.config is not None:  # of a model that is not here yet, and is no testbed
    raise UserError(f'data.records is empty; name a file, or one of {", ".join(RECORDS)}.')


def _check_texts(found: Inputs, name: str, tokenizer: Any) -> None:
  """Every text that will be scored or continued: tokens, lengths and memory."""
  settings, config, records = found.settings[name], found.config, found.records.get(name)
  if config is None or records is None or tokenizer is None:
    return
  wanted = settings.evaluation
  questions = inputs.unedited_questions(settings, records)
  demonstrations = inputs.load_demonstrations(settings)
  longest = check_texts(tokenizer, config, records, questions, demonstrations)
  if wanted.samples:
    config.check_length(longest + wanted.new_tokens)
    check_memory(config, min(wanted.samples, _AT_ONCE), longest + wanted.new_tokens)
  if wanted.generation_interval:
    config.check_length(wanted.generation_tokens)
    check_memory(config, _AT_ONCE, wanted.generation_tokens)


def _check_contexts(found: Inputs, name: str, tokenizer: Any) -> None:
  """The file of contexts, and the records in them."""
  groups = inputs.load_contexts(found.settings[name].contexts)
  records = found.records.get(name)
  if found.config is not None and records is not None and tokenizer is not None:
    requests = [record.request for record in records]
    encode_edits(tokenizer, requests, groups, found.config.position_limit)


def _check_method(found: Inputs, name: str) -> None:
  """The method against the model."""
  settings = found.settings[name]
  records, num_edits = found.records.get(name), settings.data.num_edits
  count = num_edits if records is None else len(records)
  at_once = count if settings.edit.mode == 'together' else min(settings.edit.edits_per_batch, count)
  size = settings.edit.edits_per_batch
  if settings.edit.mode == 'separate' and records is not None and cuts_instances(records, size):
    raise UserError(
      'Separate batches would cut instances whose edits belong together; set edit.mode to together '
      'or sequential.'
    )
  if settings.task == 'stats':  # of whichever edits
    at_once = 1
  if found.config is not None:
    settings.required_method.check(found.config, at_once)


def _find_training(settings: Settings) -> list[Record] | None:
  """Records to train an editor on; None for methods without one, and if an editor is given."""
  method = settings.required_method
  if not isinstance(method, HyperNetwork):
    if settings.editor:
      raise UserError(f'Method {method.name} edits without an editor; remove editor.')
    return None
  if not settings.editor:
    return inputs.load_training(settings)
  if not pathlib.Path(settings.editor).is_file():
    raise UserError(
      f'There is no editor {settings.editor}; train one with --config.task=train_editor.'
    )
  Editor.load(settings.editor)
  return None


def _check_moments(
  found: Inputs, directory: pathlib.Path | None, kernels: Sequence[Kernel]
) -> None:
  """Fills in default second moments and finds their files or their text."""
  if not kernels:
    return
  for name, each in found.settings.items():
    found.settings[name] = inputs.with_default_moments(each, directory, kernels)
  first = found.first
  wanted = first.statistics
  if names := inputs.published_moments(first, kernels):
    data = first.data
    try:
      missing = plan_downloads(names, data.directory or None, inputs.mirrors_of(data))
    except UserError as error:
      raise UserError(
        f'{str(error)[:-1]}, or give second moments in statistics.file or a text for them in '
        'statistics.corpus.'
      ) from error
    found.downloads += missing
  elif wanted.file and is_archive(wanted.file):
    if found.config is not None:
      check_archives(wanted.file, found.config, kernels)
  elif wanted.dataset and (download := plan_dataset(wanted.dataset, wanted.dataset_config)):
    found.collects = True
    if not wanted.streaming:
      found.downloads.append(download)
  elif wanted.dataset or wanted.corpus or directory is not None:
    found.documents = inputs.load_documents(first)
    found.collects = found.documents is not None


def _check_space(found: Inputs, workdir: pathlib.Path) -> None:
  """Refuses a run that writes more than the disks have free."""
  wanted = [(download.folder, download.num_bytes or 0) for download in found.downloads]
  wanted.append((workdir, _bytes_written(found)))
  by_disk: dict[int, list[tuple[pathlib.Path, int]]] = {}
  for folder, size in wanted:
    by_disk.setdefault(os.stat(_existing(folder)).st_dev, []).append((folder, size))
  for places in by_disk.values():
    total = sum(size for _, size in places)
    free = shutil.disk_usage(_existing(places[0][0])).free
    if total > free:
      names = ', '.join(dict.fromkeys(str(folder) for folder, size in places if size))
      raise UserError(
        f'The run writes about {format_bytes(total)} to {names}, where {format_bytes(free)} are '
        'free; free some space, or name other places in --workdir, data.directory and HF_HOME.'
      )


def _existing(folder: pathlib.Path) -> pathlib.Path:
  """The lowest directory above that exists."""
  place = folder.absolute()
  while not place.exists():
    place = place.parent
  return place


def _bytes_written(found: Inputs) -> int:
  """Bytes of the large files in the workdir: second moments with their saves, patch, model."""
  settings, config = found.first, found.config
  if config is None:
    return 0
  if settings.task == 'export' and not settings.export.adapter:
    return sum(bytes_per_device(config, config.dtype).values())
  method, total = settings.method, 0
  if method is not None and found.collects:
    sizes = [config.key_sizes[kernel.name] for kernel in method.kernels]
    total += sum(4 * size**2 + 16 * num_values(size) for size in sizes)
  if method is not None and settings.task == 'edit':
    kernels = updated_of(method)
    each = sum(config.key_sizes[kernel.name] + config.width for kernel in kernels)
    total += 4 * settings.data.num_edits * each
  return total
