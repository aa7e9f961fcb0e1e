"""Chunks of an evaluation; results are lines of a file, keyed by a digest of their inputs."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jedit.evals.criteria import Outcomes
from jedit.evals.generation import Generation
from jedit.evals.metrics import METRICS, Values
from jedit.io.jsonl import JsonlWriter, check_ours
from jedit.io.sealed import digest
from jedit.types import Record

if TYPE_CHECKING:
  from jedit.models.language_model import LanguageModel
  from jedit.models.patch import Patch


_FORMAT = 'jedit evaluation 3'


@dataclasses.dataclass(frozen=True)
class EvalOptions:
  """The options of `evaluate`."""

  generation: Generation | None = None
  reencode: bool = False
  tokens_per_batch: int | None = None
  demonstrations: str = ''


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Records and unedited prompts measured together on one model.

  Attributes:
    state: 'before' or 'after' the edit.
    lm: the model without `patches`.
    patches: applied while the chunk is measured.
    records, unedited: slices of the evaluation's records and unedited prompts.
  """

  state: str
  lm: LanguageModel
  patches: Sequence[Patch]
  records: slice
  unedited: slice


@dataclasses.dataclass(frozen=True)
class ChunkResult:
  """Measurements of a chunk.

  Attributes:
    values: by metric name, one value per record.
    prompts: by field of `jedit.evals.prompts`, one value per prompt of the records.
    unedited_exact_N: 1 where every token of the known answer is top-1, per unedited prompt.
    shapes: of the compiled programs, reused by later chunks.
    criteria: outcomes of the records' criteria, see `jedit.evals.criteria`.
  """

  values: Values
  prompts: Values
  unedited_exact_N: np.ndarray
  shapes: tuple[tuple[int, int], ...]
  criteria: Outcomes = ()


def check_store(path: str | os.PathLike[str]) -> None:
  """Raises UserError for a file that holds something else than finished chunks."""
  check_ours(path, _FORMAT)


class Store:
  """Results of finished chunks as lines of a file."""

  def __init__(self, path: str | os.PathLike[str] | None):
    """Opens the file; without a path nothing is stored."""
    self._writer = None if path is None else JsonlWriter(path, _FORMAT)
    self._lines = {} if self._writer is None else {row['key']: row for row in self._writer.rows}

  def __enter__(self) -> Store:
    return self

  def __exit__(self, *unused: object) -> None:
    if self._writer is not None:
      self._writer.close()

  def key(
    self,
    chunk: Chunk,
    records: Sequence[Record],
    unedited: Sequence[tuple[str, str]],
    options: EvalOptions,
  ) -> str:
    """Digest of model, records, prompts, options and metrics."""
    if self._writer is None:
      return ''
    generation = options.generation
    texts = None
    if generation is not None:
      references = generation.references
      texts = {**vars(generation), 'references': references and references.digest}
      texts['notes'] = generation.notes()
    parts = [
      chunk.state,
      [chunk.lm.fingerprint, [patch.id for patch in (*chunk.lm.patches, *chunk.patches)]],
      [dataclasses.asdict(record) for record in records],
      list(unedited),
      [options.reencode, options.tokens_per_batch, options.demonstrations, texts],
      list(METRICS),
    ]
    return digest(parts)

  def get(self, key: str) -> ChunkResult | None:
    """The result stored under a key; None without one."""
    line = self._lines.get(key)
    if line is None:
      return None
    return ChunkResult(
      _arrays(line['values']),
      _arrays(line['prompts']),
      np.array(line['unedited_exact_N'], np.float64),
      tuple(tuple(shape) for shape in line['shapes']),
      line['criteria'],
    )

  def put(self, key: str, chunk: Chunk, result: ChunkResult) -> None:
    """Appends a result."""
    if self._writer is not None:
      place = {'state': chunk.state, 'first': chunk.records.start, 'stop': chunk.records.stop}
      self._writer.write({'key': key, **place, **vars(result)})


def _arrays(values: Mapping[str, Sequence[float | None]]) -> Values:
  return {name: np.array(column, np.float64) for name, column in values.items()}
