"""Jobs of an evaluation; finished ones are lines of a file, found by all that they depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jedit.evals.generation import Generation
from jedit.evals.table import Values
from jedit.io.jsonl import JsonlWriter, read_jsonl
from jedit.io.storage import to_json
from jedit.types import Record

if TYPE_CHECKING:
  from jedit.models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class How:
  """The choices of `evaluate`."""

  generation: Generation | None = None
  reencode: bool = False
  tokens_per_batch: int | None = None


@dataclasses.dataclass(frozen=True)
class Job:
  """A chunk of records, and of the other questions, that one model is asked."""

  state: str
  lm: LanguageModel
  records: slice
  unedited: slice


@dataclasses.dataclass(frozen=True)
class Found:
  """What a job found.

  Attributes:
    values: by metric name, one value per record of the job.
    unedited_acc: one value per question.
    shapes: of the programs that were needed; later jobs use them again.
  """

  values: Values
  unedited_acc: np.ndarray
  shapes: tuple[tuple[int, int, int], ...]


class Store:
  """Finished jobs as lines of a file, found again by everything that they depend on."""

  def __init__(self, path: str | os.PathLike[str] | None):
    self._writer = None if path is None else JsonlWriter(path)
    lines = [] if path is None else read_jsonl(path)
    self._lines = {line['key']: line for line in lines if 'key' in line}

  def __enter__(self) -> Store:
    return self

  def __exit__(self, *unused: object) -> None:
    if self._writer is not None:
      self._writer.close()

  def key(
    self,
    job: Job,
    records: Sequence[Record],
    unedited: Sequence[tuple[str, str]],
    how: How,
  ) -> str:
    """A digest of model, questions and choices."""
    if self._writer is None:
      return ''
    generation = how.generation
    texts = None
    if generation is not None:
      references = generation.references
      texts = {**vars(generation), 'references': references and references.digest}
      texts['notes'] = generation.notes()
    parts = [
      job.state,
      [job.lm.fingerprint, [patch.id for patch in job.lm.patches]],
      [dataclasses.asdict(record) for record in records],
      list(unedited),
      [how.reencode, how.tokens_per_batch, texts],
    ]
    return hashlib.sha256(json.dumps(to_json(parts)).encode()).hexdigest()

  def get(self, key: str) -> Found | None:
    line = self._lines.get(key)
    if line is None:
      return None
    return Found(
      {name: np.array(values, np.float64) for name, values in line['values'].items()},
      np.array(line['unedited_acc'], np.float64),
      tuple(tuple(shape) for shape in line['shapes']),
    )

  def put(self, key: str, job: Job, found: Found) -> None:
    if self._writer is not None:
      place = {'state': job.state, 'first': job.records.start, 'stop': job.records.stop}
      self._writer.write({'key': key, **place, **vars(found)})
