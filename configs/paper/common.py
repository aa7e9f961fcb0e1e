"""Shared parts of the papers' experiments: model and scale, cells, published rows.

The argument of `--config=configs/paper/NAME.py:MODEL:EDITS` is the model and optionally the number
of edits; batches and edit counts of the paper shrink in proportion.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jedit.configs import edit
from jedit.experiments.config import method_section
from jedit.methods import presets
from jedit.types import UserError

# Models whose published rows are printed beside those of a testbed.
_STANDS_FOR = {'testbed-gptj': ('gptj-6b',), 'testbed-llama': ('llama-7b', 'llama-2-7b')}
_TESTBED_EDITS = 24
# Texts are generated for every n-th case_id, on testbeds with few records more often.
_INTERVAL, _TESTBED_INTERVAL = 10, 2
# Reference files of consistency; testbeds have none.
_REFERENCES = dict(snippets='attribute_snippets.json', idf='idf.npy', vocabulary='tfidf_vocab.json')

# Columns of the papers' tables for CounterFact, and (token accuracies) for zsRE.
SUCCESS = ('score', 'efficacy', 'paraphrase', 'neighborhood', 'fluency', 'consistency')
ACCURACY = ('score', 'efficacy_acc', 'paraphrase_acc', 'neighborhood_acc')

Cell = tuple[str, dict[str, Any]]

# Printed beside published rows of MEND; docs/hypernetworks.md has the evidence.
MEND_NOTE = (
  "Published rows of MEND repeat MEMIT's, whose released code writes the last chunk of edits "
  'alone: the last 16 of 10,000 in chunks of 128, which leaves the model nearly unedited.'
)


class Experiment:
  """The scale of an experiment, and the parts of its cells.

  Attributes:
    is_testbed: True on a shipped model.
    num_edits: number of records.
    paper_model: the paper's model whose rows are printed.
  """

  def __init__(self, argument: str, models: Sequence[str], num_edits: int = 10_000):
    """Reads the config's argument.

    Args:
      argument: 'MODEL' or 'MODEL:EDITS'; empty for the first model.
      models: the paper's models.
      num_edits: the paper's number of edits.
    """
    model, _, edits = argument.partition(':')
    self._model = model or models[0]
    self.is_testbed = self._model in _STANDS_FOR
    known = [*models, *_STANDS_FOR]
    if self._model not in known:
      raise UserError(f'The model is {model!r}; choose of {", ".join(known)}.')
    self._paper_edits = num_edits
    self.num_edits = int(edits or (_TESTBED_EDITS if self.is_testbed else num_edits))
    stands_for = _STANDS_FOR.get(self._model, (self._model,))
    self.paper_model = next((each for each in models if each in stands_for), models[0])

  def method(self, name: str, variant: str = '', **fields: Any) -> dict[str, Any]:
    """The section `method` of a preset with changed fields; testbeds have no variants."""
    return {'method': method_section(name, **{**self._preset(name, variant), **fields})}

  def nets(self, *names: str) -> list[Cell]:
    """Cells of MEND and MALMEN, which train their editors first.

    On the papers' models they need records to train on (`--config.training.records`), which the
    papers do not publish, and are left out.
    """
    return [(name.upper(), self.method(name)) for name in names] if self.is_testbed else []

  def last_layer(self, name: str, variant: str = '') -> dict[str, Any]:
    """As `method`, on the last of the preset's layers alone."""
    return self.method(name, variant, layers=self._preset(name, variant)['layers'][-1:])

  def scaled(self, edits: int) -> int:
    """Scales a number of edits of the paper to this run."""
    return max(1, round(edits * self.num_edits / self._paper_edits))

  def log_sizes(self) -> list[int]:
    """The 17 edit counts of PMET and JEEP, exp(ln(n) i / 16), without repetitions.

    Testbeds take every second one, since their neighbouring counts differ by little.
    """
    steps = range(0, 17, 2 if self.is_testbed else 1)
    counts = [math.exp(math.log(self.num_edits) * i / 16) for i in steps]
    return list(dict.fromkeys(int(count + 1e-9) for count in counts))

  def config(
    self,
    cells: Sequence[Cell],
    source: str,
    rows: Mapping[str, Sequence[Any]] | None = None,
    columns: Sequence[str] = SUCCESS,
    base: str = 'pmet',
    records: str = 'multi_counterfact.json',
    note: str = '',
  ) -> ConfigDict:
    """A sweep of cells, with a paper's rows.

    Args:
      cells: see `jedit.experiments.sweep.read_cells`.
      source: paper and table.
      rows: the paper's numbers, or pairs of a number and its interval, by name of a cell,
        'unedited' or another editor; the last columns may be missing.
      columns: metrics of `rows`.
      base: the method whose published run provides the other sections.
      records: the paper's file; testbeds have their own.
      note: printed beside the rows.
    """
    c = edit.get_config(f'{base},{self._model}')
    c.task = 'sweep'
    c.data.num_edits = self.num_edits
    if not self.is_testbed:
      c.data.records = records
    c.evaluation.samples = 1
    c.cells = tuple(cells)
    published = [(name, dict(zip(columns, row))) for name, row in (rows or {}).items()]
    if self.is_testbed and columns == ACCURACY:
      for _, row in published:
        del row['score']  # the paper's is of accuracies, a testbed's of success rates
    if any('fluency' in row for _, row in published):
      c.evaluation.generation_interval = _TESTBED_INTERVAL if self.is_testbed else _INTERVAL
    if any('consistency' in row for _, row in published) and not self.is_testbed:
      c.evaluation.update(_REFERENCES)
    c.published = dict(source=source, rows=tuple(published), note=note)
    return c

  def _preset(self, name: str, variant: str) -> Mapping[str, Any]:
    model = f'{self._model}-{variant}' if variant and not self.is_testbed else self._model
    return presets.find(name, model).fields


def sized(name: str, size: int) -> str:
  """Name of a cell with `size` edits in one model; curves parse it."""
  return f'{name}, {size:,} edit{"" if size == 1 else "s"}'


def chunks(size: int) -> dict[str, Any]:
  """Batches of `size` on the original model, each evaluated on its own records."""
  return {'edit': {'mode': 'separate', 'edits_per_batch': size}}


def sequence(size: int) -> dict[str, Any]:
  """Sequential batches of `size`."""
  return {'edit': {'mode': 'sequential', 'edits_per_batch': size, 'canary': 0}}
