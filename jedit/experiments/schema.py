"""The sections of a config as frozen dataclasses, so that mistakes fail before any work starts.

A field that a config leaves out has its default; one that does not exist is an error.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from jedit import methods
from jedit.methods import Method
from jedit.models.hub import find_directory
from jedit.probes.tracing import POSITIONS
from jedit.testbeds import NAMES, testbed_directory
from jedit.types import UserError

_TESTBED = 'testbed-'
_MODES = ('together', 'separate', 'sequential')
_SELECTIONS = ('first', 'random')
PROBES = ('similarity', 'contrast', 'tracing')


def _at_least(section: str, values: Any, **least: int) -> None:
  for name, bound in least.items():
    if getattr(values, name) < bound:
      raise UserError(f'{section}.{name} is {getattr(values, name)}; give at least {bound}.')


def _separated(names: str) -> list[str]:
  return [name.strip() for name in names.split(',') if name.strip()]


@dataclasses.dataclass(frozen=True)
class Model:
  """The model to edit.

  Attributes:
    name: for tables; 'testbed-gptj' and 'testbed-llama' are the shipped models.
    path: Hugging Face directory, or id of a model on the Hugging Face hub; empty takes the shipped
      model of this name.
    dtype: of weights and activations.
    revision: branch, tag or commit on the hub; empty takes the main branch.
  """

  name: str = 'testbed-gptj'
  path: str = ''
  dtype: str = 'float32'
  revision: str = ''

  @property
  def directory(self) -> pathlib.Path:
    """Where the model is; one of the hub is downloaded where it is not there yet.

    Raises:
      UserError: without a path, for a name that is not shipped, and for a model that is not found.
    """
    if self.path:
      return find_directory(self.path, self.revision or None)
    shipped = [_TESTBED + name for name in NAMES]
    if self.name not in shipped:
      raise UserError(
        f'model.path is empty and no model {self.name!r} is shipped; give a Hugging Face directory '
        f'or the id of a model on the hub, or name {" or ".join(shipped)}.'
      )
    return testbed_directory(self.name.removeprefix(_TESTBED))


@dataclasses.dataclass(frozen=True)
class Mesh:
  """How all devices of all processes are used, see `jedit.parallel.mesh.make_mesh`.

  Attributes:
    data: devices that share rows of texts and edits; 0 takes as many as `model` leaves.
    model: devices that share each copy of the parameters.
  """

  data: int = 0
  model: int = 1

  def __post_init__(self) -> None:
    _at_least('mesh', self, data=0, model=1)


@dataclasses.dataclass(frozen=True)
class Data:
  """The records to edit and to measure.

  Attributes:
    records: a JSON file, or the name of a public one (`jedit.data.download.FILES`); empty takes
      the records.json that a testbed's directory holds.
    kind: schema of the file, see `jedit.data.records.load_records`; empty tells it from the file.
    num_edits: how many records.
    selection: 'first' takes the first ones, 'random' draws them with the seed of the run.
    unique_subjects: of several records about one subject only the first is taken.
    directory: where public files lie that are named without a directory, and where they are
      downloaded to; empty takes ~/.cache/jedit/data.
    mirrors: roots to download from before the public ones, separated by commas.
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
    corpus: text, JSON lines or parquet, as a file or a directory of files; with no dataset either,
      the corpus.txt of a testbed's directory.
    dataset: a dataset of the Hugging Face hub instead.
    dataset_config: its config, such as a Wikipedia dump.
    column: field of the text in a dataset, JSON lines or parquet.
    streaming: reads the dataset while it goes instead of storing it first.
    max_documents: how many are drawn; 0 takes all.
    seed: draws documents and their order.
    part: '2/8' takes the second eighth of them, for `SecondMoments.merge`; empty takes all.
    fast: stops after 10 tokens per component of a key.
    max_document_tokens: longer documents are cut; 0 cuts at a row.
    file: where the moments are kept, for runs that share them; empty keeps them in the workdir.
      Finished ones from elsewhere: a `.npz` archive, a directory of these, or, where no text is
      given, a file of `SecondMoments.save`.
    row_tokens: tokens of a packed row; 0 takes the model's positions, at most 512.
    batch_tokens: tokens that go through the model together.
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
      'statistics', self, max_documents=0, max_document_tokens=0, row_tokens=0, batch_tokens=1
    )
    if self.corpus and self.dataset:
      raise UserError('The config has statistics.corpus and statistics.dataset; give one of them.')
    if self.streaming and not self.dataset:
      raise UserError('statistics.streaming is for a statistics.dataset; name one.')
    number, count = self.divided
    if not 1 <= number <= count:
      raise UserError(f"statistics.part is {self.part!r}; give one such as '2/8', or none.")

  @property
  def divided(self) -> tuple[int, int]:
    """Number of the part, from 1, and of all parts; zeros for what is no part."""
    match = re.fullmatch(r'(\d+)/(\d+)', self.part or '1/1')
    return (int(match[1]), int(match[2])) if match else (0, 0)


@dataclasses.dataclass(frozen=True)
class Edit:
  """How the edit is run.

  Attributes:
    batch_size: edits whose targets are optimised at once, which does not change the result; 0
      takes what suits the device.
    mode: 'together' edits all records in one batch; 'separate' edits batches of `size`, each from
      the original model and measured on its own records; 'sequential' edits such batches one
      after the other, and measures the last model on all of them.
    size: records of a batch; 'separate' with 1 are single edits.
    accumulate_keys: in a sequence, preserves the keys of earlier batches, too.
    canary: in a sequence, records of the run whose neighbourhood is asked about after every
      batch; 0 for none.
    min_neighborhood: percent; a sequence stops once the neighbourhood of the canary is below.
    max_growth: a sequence stops once ‖W - W₀‖ / ‖W₀‖ of some edited kernel is above; 0 for never.
  """

  batch_size: int = 0
  mode: str = 'together'
  size: int = 1
  accumulate_keys: bool = False
  canary: int = 50
  min_neighborhood: float = 0.0
  max_growth: float = 0.0

  def __post_init__(self) -> None:
    if self.mode not in _MODES:
      raise UserError(f'edit.mode is {self.mode!r}; choose one of {", ".join(_MODES)}.')
    _at_least('edit', self, batch_size=0, size=1, canary=0, min_neighborhood=0, max_growth=0)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What is measured besides the metrics of the records.

  Attributes:
    unedited: questions about subjects that are not edited, to see how many answers are kept.
    samples: texts that are generated before and after.
    new_tokens: length of each.
    generation_interval: texts are generated and measured for records whose case_id is a multiple
      of it, 10 in the papers; 0 generates none, which is much faster.
    generation_tokens: length of these texts with their prompts.
    snippets: attribute snippets, a JSON file or the name of the public one, for consistency and
      essence; a file that cannot be had leaves them out.
    idf, vocabulary: the published weights of words, idf.npy and tfidf_vocab.json, likewise; empty
      counts the words of the snippets.
    reencode: token accuracies of zsRE by the published procedure, see `jedit.evals.zsre_reference`.
    store: JSON lines file of finished parts, for runs one after the other that share them; empty
      keeps them in the workdir.
  """

  unedited: int = 1000
  samples: int = 3
  new_tokens: int = 30
  generation_interval: int = 0
  generation_tokens: int = 100
  snippets: str = ''
  idf: str = ''
  vocabulary: str = ''
  reencode: bool = False
  store: str = ''

  def __post_init__(self) -> None:
    _at_least('evaluation', self, unedited=0, samples=0, new_tokens=1)
    _at_least('evaluation', self, generation_interval=0, generation_tokens=1)
    if bool(self.idf) != bool(self.vocabulary):
      raise UserError('evaluation.idf and evaluation.vocabulary go together; give both or none.')


@dataclasses.dataclass(frozen=True)
class Export:
  """Where the edited model goes.

  Attributes:
    path: directory to be; empty takes `model` in the workdir.
    dtype: of the stored tensors; empty keeps each as it was, see `LanguageModel.export`.
  """

  path: str = ''
  dtype: str = ''


@dataclasses.dataclass(frozen=True)
class Probe:
  """What is looked at inside of the model, for the task `probe`; `data` says on which records.

  Attributes:
    probes: of 'similarity' (PMET), 'contrast' (JEEP) and 'tracing' (ROME), separated by commas.
    top_k: words that the Jaccard similarity compares.
    words: JSON file with sets of words by name that the contrast follows, too; empty for none.
    window: layers whose MLP or attention outputs tracing puts back together.
    noise: standard deviation of tracing's noise, in those of the embeddings.
    draws: of the noise for each record.
    positions: tokens at which tracing puts them back, of `jedit.probes.tracing.POSITIONS`,
      separated by commas; each takes as long as any other.
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
    for name in self.names:
      if name not in PROBES:
        raise UserError(f'There is no probe {name!r}; choose of {", ".join(PROBES)}.')
    if not self.names:
      raise UserError(f'probe.probes is empty; choose of {", ".join(PROBES)}.')
    for name in self.traced:
      if name not in POSITIONS:
        raise UserError(f'There is no position {name!r}; choose of {", ".join(POSITIONS)}.')
    if not self.traced:
      raise UserError(f'probe.positions is empty; choose of {", ".join(POSITIONS)}.')

  @property
  def names(self) -> tuple[str, ...]:
    """The probes, each once."""
    return tuple(dict.fromkeys(_separated(self.probes)))

  @property
  def traced(self) -> tuple[str, ...]:
    """Where tracing puts outputs back, in the order of a prompt's tokens."""
    named = dict.fromkeys(_separated(self.positions))
    return tuple(sorted(named, key=lambda name: (*POSITIONS, name).index(name)))


@dataclasses.dataclass(frozen=True)
class Settings:
  """A config, checked.

  Attributes:
    task: what to do, see `jedit.experiments.TASKS`.
    seed: of contexts, drawn records, unedited questions and the choice of sampled texts.
    method: None where the config has no such section.
    contexts: a contexts.json to use instead of sampling; empty samples.
    targets: directory of optimised targets, for runs that share them; empty keeps them in the
      workdir.
    patches: for the tasks `evaluate` and `export`: patch files or workdirs, separated by commas;
      empty takes the patch of the workdir. For `probe`, empty probes the unedited model.
    workdirs: for the task `compare`: those of finished runs, separated by commas.
  """

  task: str = 'edit'
  seed: int = 0
  model: Model = Model()
  mesh: Mesh = Mesh()
  data: Data = Data()
  method: Method | None = None
  contexts: str = ''
  targets: str = ''
  statistics: Statistics = Statistics()
  edit: Edit = Edit()
  evaluation: Evaluation = Evaluation()
  export: Export = Export()
  probe: Probe = Probe()
  patches: str = ''
  workdirs: str = ''

  @property
  def required_method(self) -> Method:
    """The method.

    Raises:
      UserError: where the config has none.
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
    """What the records are called in tables."""
    return pathlib.Path(self.data.records).stem if self.data.records else self.model.name


def read_settings(config: Mapping[str, Any]) -> Settings:
  """Checks a config and turns its sections into dataclasses.

  Args:
    config: nested mappings; a ConfigDict's `to_dict()`.

  Raises:
    UserError: for fields that do not exist or have a value of another type, and for what the
      sections and the method do not accept.
  """
  values: dict[str, Any] = {}
  for field in _fields(Settings, config, 'The config'):
    value = config[field.name]
    if field.name == 'method':
      values['method'] = read_method(value)
    elif dataclasses.is_dataclass(field.type):
      values[field.name] = _section(field.type, field.name, value)
    else:
      values[field.name] = _typed(field, field.name, value)
  return Settings(**values)


def read_method(section: Any) -> Method:
  """The method that the section `method` of a config describes.

  Raises:
    UserError: for a section without name, and what `jedit.methods.get` does not accept.
  """
  if not isinstance(section, Mapping) or not isinstance(section.get('name'), str):
    raise UserError(f'method is {section!r}; give a section with a name and the fields of it.')
  fields = {name: value for name, value in section.items() if name != 'name'}
  for name, value in fields.items():
    if name.startswith('layers') and not isinstance(value, list | tuple):
      raise UserError(f'method.{name} is {value!r}; give a tuple of layer numbers.')
  return methods.get(section['name'], **fields)


def _section(cls: Any, name: str, values: Any) -> Any:
  if not isinstance(values, Mapping):
    raise UserError(f'The config section {name} is {values!r}; give its fields.')
  fields = _fields(cls, values, f'The config section {name}')
  return cls(**{f.name: _typed(f, f'{name}.{f.name}', values[f.name]) for f in fields})


def _fields(cls: Any, values: Mapping[str, Any], label: str) -> list[dataclasses.Field]:
  """The fields that have a value, once all values are known to be fields."""
  fields = {field.name: field for field in dataclasses.fields(cls)}
  for name in values:
    if name not in fields:
      raise UserError(f'{label} has no field {name!r}; it has {", ".join(fields)}.')
  return [field for field in fields.values() if field.name in values]


def _typed(field: dataclasses.Field, name: str, value: Any) -> Any:
  kind: Any = field.type
  kinds = (int, float) if kind is float else kind
  if not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool):
    words = {str: 'a string', int: 'a whole number', float: 'a number', bool: 'True or False'}[kind]
    raise UserError(f'The config field {name} is {value!r}; give {words}.')
  return value
