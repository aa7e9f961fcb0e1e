"""The fields of a config: frozen dataclasses, one per section, with defaults and checks.

`jedit.experiments.config` builds default configs from them and reads configs back before any work
starts. Training has its own fields, `jedit.testbeds.settings`.
"""

import dataclasses
import pathlib
import re
from typing import Any

from jedit import methods
from jedit.editing.edit import Batching, Separate, Sequential, Together
from jedit.methods import Method
from jedit.models.checkpoints import CHECKPOINTS
from jedit.models.hub import Location, find_directory, locate
from jedit.probes.axes import POSITIONS
from jedit.testbeds import NAMES, testbed_directory
from jedit.types import UserError

_TESTBED = 'testbed-'
_MODES = ('together', 'separate', 'sequential')
_SELECTIONS = ('first', 'random')
_LONGEST_TEXT = 2**20  # tokens
PROBES = ('similarity', 'contrast', 'tracing')


def _at_least(section: str, values: Any, **least: int) -> None:
  for name, bound in least.items():
    if getattr(values, name) < bound:
      raise UserError(f'{section}.{name} is {getattr(values, name)}; give at least {bound}.')


def _at_most(section: str, values: Any, **most: int) -> None:
  for name, bound in most.items():
    if getattr(values, name) > bound:
      raise UserError(f'{section}.{name} is {getattr(values, name)}; give at most {bound}.')


def _separated(names: str) -> list[str]:
  return [name.strip() for name in names.split(',') if name.strip()]


@dataclasses.dataclass(frozen=True)
class Model:
  """The model to edit.

  Attributes:
    name: for tables; 'testbed-gptj' and 'testbed-llama' are the shipped models.
    path: Hugging Face directory or hub id; empty takes the shipped model or the public checkpoint
      (`jedit.models.checkpoints`) of this name.
    dtype: of weights and activations.
    revision: branch, tag or commit on the hub; empty takes that of the public checkpoint, or the
      main branch.
  """

  name: str = 'testbed-gptj'
  path: str = ''
  dtype: str = 'float32'
  revision: str = ''

  @property
  def directory(self) -> pathlib.Path:
    """The model's directory; hub models are downloaded unless cached.

    Raises:
      UserError: for an unknown name without a path, or a missing model.
    """
    hub = self._on_hub
    return self._shipped if hub is None else find_directory(*hub)

  @property
  def location(self) -> Location:
    """The model's directory, or the download of it, without downloading anything.

    Raises:
      UserError: as `directory`.
    """
    hub = self._on_hub
    return Location(self._shipped) if hub is None else locate(*hub)

  @property
  def _on_hub(self) -> tuple[str, str | None] | None:
    """Path or hub id, and revision; None for the shipped models."""
    if self.path:
      return self.path, self.revision or None
    if self.name not in CHECKPOINTS:
      return None
    public = CHECKPOINTS[self.name]
    return public.hub, self.revision or public.revision or None

  @property
  def _shipped(self) -> pathlib.Path:
    shipped = [_TESTBED + name for name in NAMES]
    if self.name not in shipped:
      raise UserError(
        f'model.path is empty and no model {self.name!r} is shipped; give a Hugging Face directory '
        f'or the id of a model on the hub, or name one of {", ".join([*shipped, *CHECKPOINTS])}.'
      )
    return testbed_directory(self.name.removeprefix(_TESTBED))


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Axes of the device mesh over all processes, see `jedit.parallel.mesh.make_mesh`.

  Attributes:
    data: devices that split rows of text and edits; 0 takes all that `model` leaves.
    model: devices that split each copy of the parameters.
  """

  data: int = 0
  model: int = 1

  def __post_init__(self) -> None:
    _at_least('mesh', self, data=0, model=1)


@dataclasses.dataclass(frozen=True)
class Data:
  """The records to edit and evaluate.

  Attributes:
    records: CounterFact, zsRE, EasyEdit, KnowEdit, RippleEdits or MQuAKE file, or the name of a
      public one to download (`jedit.data.public.RECORDS`); empty takes records.json of the model's
      directory.
    kind: schema of the file, see `jedit.data.records.load_records`; empty detects it.
    num_edits: number of records.
    selection: 'first' takes the first ones, 'random' draws them with the seed of the run.
    unique_subjects: keep only the first record about each subject.
    directory: of the public files; empty takes ~/.cache/jedit/data.
    mirrors: roots to try before the public ones, separated by commas.
  """

  records: str = ''
  kind: str = ''
  num_edits: int = 100
  selection: str = 'first'
  unique_subjects: bool = False
  directory: str = ''
  mirrors: str = ''

  def __post_init__(self) -> None:
    if self.selection not in _SELECTIONS:
      raise UserError(f'data.selection is {self.selection!r}; choose {" or ".join(_SELECTIONS)}.')


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Second moments of the keys to preserve.

  Attributes:
    corpus: text, JSON lines or parquet: a file or a directory of files. Without corpus, dataset and
      file: corpus.txt of the model's directory, the published second moments of a public
      checkpoint, or the dataset of `jedit.experiments.inputs.DATASET`.
    dataset: a dataset of the Hugging Face hub instead.
    dataset_config: its config, such as a Wikipedia dump.
    column: text field of a dataset, JSON lines or parquet.
    streaming: stream the dataset instead of downloading it first.
    max_documents: number of documents drawn; 0 takes all.
    seed: of the draw and the order of documents.
    part: '2/8' takes the second eighth of them, for `SecondMoments.merge`; empty takes all.
    fast: stop after 10 tokens per component of a key.
    max_document_tokens: truncate longer documents; 0 truncates at a row.
    file: of the second moments, shared between runs; empty keeps them in the workdir. Published
      ones are a `.npz` archive, a directory of these, or, without a text, a file of
      `SecondMoments.save`.
    row_tokens: tokens of a packed row; 0 takes the model's positions, at most 512.
    batch_tokens: tokens of a forward pass on each device.
  """

  corpus: str = ''
  dataset: str = ''
  dataset_config: str = ''
  column: str = 'text'
  streaming: bool = False
  max_documents: int = 0
  seed: int = 0
  part: str = ''
  fast: bool = False
  max_document_tokens: int = 0
  file: str = ''
  row_tokens: int = 0
  batch_tokens: int = 8192

  def __post_init__(self) -> None:
    _at_least(
      'statistics',
      self,
      max_documents=0,
      max_document_tokens=0,
      row_tokens=0,
      batch_tokens=1,
      seed=0,
    )
    _at_most('statistics', self, row_tokens=_LONGEST_TEXT, batch_tokens=2**26)
    if self.corpus and self.dataset:
      raise UserError('The config has statistics.corpus and statistics.dataset; give one of them.')
    if self.streaming and not self.dataset:
      raise UserError('statistics.streaming is for a statistics.dataset; name one.')
    number, count = self.divided
    if not 1 <= number <= count:
      raise UserError(f"statistics.part is {self.part!r}; give one such as '2/8', or none.")

  @property
  def divided(self) -> tuple[int, int]:
    """Index of the part, from 1, and number of parts; zeros if undivided."""
    match = re.fullmatch(r'(\d+)/(\d+)', self.part or '1/1')
    return (int(match[1]), int(match[2])) if match else (0, 0)


@dataclasses.dataclass(frozen=True)
class EditorTraining:
  """Training of the editor of MEND or MALMEN; its settings are the method's.

  Attributes:
    records: file of records to train on; empty takes people of a testbed's world whom no record
      edits. Records about subjects of the test are left out.
    kind: schema of the file, see `jedit.data.records.load_records`; empty detects it.
    num_records: number of records; 0 takes all of a file, and 7,680 of a world.
    file: of the trained editor, shared between runs; empty keeps it in the workdir.
  """

  records: str = ''
  kind: str = ''
  num_records: int = 0
  file: str = ''

  def __post_init__(self) -> None:
    _at_least('training', self, num_records=0)


@dataclasses.dataclass(frozen=True)
class Edit:
  """Batches of edits.

  Attributes:
    mode: 'together' edits all records in one batch; 'separate' edits the original model with each
      batch and evaluates it on that batch's records; 'sequential' edits one batch after the other
      and evaluates the last model on all records.
    edits_per_batch: records of a batch when separate or sequential; 1 for single edits.
    target_batch_size: edits whose targets are optimised together; 0 fits it to the device. In
      float32 the result does not depend on it, in bfloat16 it does; a patch has the number used.
    accumulate_keys: in a sequence, preserve the keys of earlier batches as well.
    canary: in a sequence, number of records whose neighborhood prompts are evaluated per batch.
    min_neighborhood: stop a sequence once specificity on the canary falls below, in percent.
    max_growth: stop a sequence once ‖W - W₀‖ / ‖W₀‖ of an edited kernel exceeds this; 0 never.
  """

  mode: str = 'together'
  edits_per_batch: int = 1
  target_batch_size: int = 0
  accumulate_keys: bool = False
  canary: int = 50
  min_neighborhood: float = 0.0
  max_growth: float = 0.0

  def __post_init__(self) -> None:
    if self.mode not in _MODES:
      raise UserError(f'edit.mode is {self.mode!r}; choose one of {", ".join(_MODES)}.')
    _at_least('edit', self, edits_per_batch=1, target_batch_size=0, canary=0)
    _at_least('edit', self, min_neighborhood=0, max_growth=0)

  @property
  def batching(self) -> Batching:
    """The batches of `jedit.edit`."""
    if self.mode == 'separate':
      return Separate(self.edits_per_batch)
    if self.mode == 'sequential':
      return Sequential(self.edits_per_batch, self.accumulate_keys)
    return Together()


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Measurements besides the metrics of the records.

  Attributes:
    unedited: number of prompts about unedited subjects, to count unchanged answers.
    samples: number of texts generated before and after.
    new_tokens: length of each.
    generation_interval: generate and evaluate texts for records whose case_id is a multiple of it,
      10 in the papers; 0 generates none, which is much faster.
    generation_tokens: length of these texts with their prompts.
    snippets: attribute snippets for consistency and essence, a JSON file or the name of the public
      one. Both metrics are omitted without the file.
    idf, vocabulary: published word weights, idf.npy and tfidf_vocab.json; empty counts the words of
      the snippets.
    tokens_per_batch: tokens of a forward pass, which bounds the memory; 0 chooses by device.
    reencode: zsRE token accuracies by the published procedure, see `jedit.evals.zsre_reference`.
    store: JSON lines file of finished chunks, shared between consecutive runs; empty keeps them in
      the workdir.
    demonstrations: text file of questions with answers, put before the questions of MQuAKE; empty
      for none.
    harness: tasks of lm-evaluation-harness to run before and after, names or YAML files separated
      by commas; empty for none.
    harness_limit: first documents of each task; 0 takes all.
    harness_shots: examples in the prompt; -1 takes each task's own number.
  """

  unedited: int = 1000
  samples: int = 3
  new_tokens: int = 30
  generation_interval: int = 0
  generation_tokens: int = 100
  snippets: str = ''
  idf: str = ''
  vocabulary: str = ''
  tokens_per_batch: int = 0
  reencode: bool = False
  store: str = ''
  demonstrations: str = ''
  harness: str = ''
  harness_limit: int = 0
  harness_shots: int = -1

  def __post_init__(self) -> None:
    _at_least('evaluation', self, unedited=0, samples=0, new_tokens=1)
    _at_least('evaluation', self, harness_limit=0, harness_shots=-1)
    _at_least('evaluation', self, generation_interval=0, generation_tokens=1, tokens_per_batch=0)
    _at_most('evaluation', self, new_tokens=_LONGEST_TEXT, generation_tokens=_LONGEST_TEXT)
    if bool(self.idf) != bool(self.vocabulary):
      raise UserError('evaluation.idf and evaluation.vocabulary go together; give both or none.')

  @property
  def downstream(self) -> list[str]:
    """The tasks of lm-evaluation-harness."""
    return _separated(self.harness)


@dataclasses.dataclass(frozen=True)
class Export:
  """The exported model, or the LoRA adapter of the patches.

  Attributes:
    path: a new directory; empty takes `model` or `adapter` in the workdir.
    dtype: of the stored tensors; empty keeps each as it was, see `LanguageModel.export`.
    adapter: write a LoRA adapter for the unedited model instead, see `Patch.to_lora`.
    max_rank: of the adapter's kernels; 0 keeps them exact.
  """

  path: str = ''
  dtype: str = ''
  adapter: bool = False
  max_rank: int = 0

  def __post_init__(self) -> None:
    _at_least('export', self, max_rank=0)
    if self.adapter and self.dtype:
      raise UserError('export.dtype is of models; leave it out for a LoRA adapter, in float32.')
    if self.max_rank and not self.adapter:
      raise UserError('export.max_rank is of adapters; set export.adapter=True or leave it out.')


@dataclasses.dataclass(frozen=True)
class Probe:
  """Probes of the model's activations on the records of `data`.

  Attributes:
    probes: from 'similarity' (PMET), 'contrast' (JEEP) and 'tracing' (ROME), separated by commas.
    top_k: number of words in the Jaccard similarity.
    words: JSON file of additional sets of words, by name, for the contrast; empty for none.
    window: layers whose MLP or attention outputs tracing restores together; 10 in ROME's figures.
    noise: standard deviation of tracing's noise, relative to that of the embeddings.
    draws: of the noise for each record.
    positions: tokens at which tracing restores outputs, from `jedit.probes.axes.POSITIONS`,
      separated by commas; time is proportional to their number.
  """

  probes: str = 'similarity, contrast, tracing'
  top_k: int = 50
  words: str = ''
  window: int = 3
  noise: float = 3.0
  draws: int = 4
  positions: str = ', '.join(POSITIONS)

  def __post_init__(self) -> None:
    _at_least('probe', self, top_k=1, window=1, noise=0, draws=1)
    _at_most('probe', self, draws=10_000)
    for name in self.names:
      if name not in PROBES:
        raise UserError(f'Unknown probe {name!r}; choose from {", ".join(PROBES)}.')
    if not self.names:
      raise UserError(f'probe.probes is empty; choose from {", ".join(PROBES)}.')
    for name in self.traced:
      if name not in POSITIONS:
        raise UserError(f'Unknown position {name!r}; choose from {", ".join(POSITIONS)}.')
    if not self.traced:
      raise UserError(f'probe.positions is empty; choose from {", ".join(POSITIONS)}.')

  @property
  def names(self) -> tuple[str, ...]:
    """The probes without duplicates."""
    return tuple(dict.fromkeys(_separated(self.probes)))

  @property
  def traced(self) -> tuple[str, ...]:
    """Positions of tracing in the order of a prompt's tokens."""
    named = dict.fromkeys(_separated(self.positions))
    return tuple(sorted(named, key=lambda name: (*POSITIONS, name).index(name)))


@dataclasses.dataclass(frozen=True)
class Planning:
  """The task `plan`.

  Attributes:
    topology: TPUs to compile for, such as 'v5e:4x4' (`jedit.parallel.topology`); empty plans for
      the devices of this machine, without compiling.
  """

  topology: str = ''


@dataclasses.dataclass(frozen=True)
class Settings:
  """A checked config of any task but `train`.

  Attributes:
    task: see `jedit.experiments.TASKS`.
    seed: of contexts, drawn records, unedited prompts and the choice of sampled texts.
    method: a section with a name and the fields of `jedit.methods.<name>`.
    contexts: a contexts.json to use; empty samples contexts from the model.
    targets: directory of optimised targets, shared between runs; empty keeps them in the workdir.
    editor: file of a trained editor for MEND or MALMEN; empty trains one first.
    patches: for `evaluate`, `export` and `probe`: patch files or workdirs, separated by commas.
      Empty takes the patch of the workdir; a probe then takes the unedited model.
    patches_anywhere: allow patches of another model, or in another order than they were made in.
    workdirs: of finished runs, for `compare`, separated by commas.
  """

  task: str = 'edit'
  seed: int = 0
  model: Model = Model()
  mesh: Mesh = Mesh()
  data: Data = Data()
  method: Method | None = None
  contexts: str = ''
  targets: str = ''
  editor: str = ''
  training: EditorTraining = EditorTraining()
  statistics: Statistics = Statistics()
  edit: Edit = Edit()
  evaluation: Evaluation = Evaluation()
  export: Export = Export()
  probe: Probe = Probe()
  plan: Planning = Planning()
  patches: str = ''
  patches_anywhere: bool = False
  workdirs: str = ''

  def __post_init__(self) -> None:
    _at_least('config', self, seed=0)

  @property
  def required_method(self) -> Method:
    """The method.

    Raises:
      UserError: without one in the config.
    """
    if self.method is None:
      known = ', '.join(methods.METHODS)
      raise UserError(f'The config has no method; give it a section with a name, one of {known}.')
    return self.method

  @property
  def compared(self) -> list[str]:
    """The workdirs to compare."""
    return _separated(self.workdirs)

  @property
  def dataset(self) -> str:
    """Name of the records in tables."""
    return pathlib.Path(self.data.records).stem if self.data.records else self.model.name
