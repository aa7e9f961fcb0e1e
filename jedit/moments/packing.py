"""Documents to packed token batches, made while they are asked for.

Documents are cut to a length cap and packed into rows without gaps; a token attends within its
own document at positions counted from the document's start, so packing changes nothing.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import transformers

from jedit.moments.corpus import Corpus
from jedit.parallel.shapes import round_up
from jedit.types import UserError

_TEXTS_PER_CALL = 256  # the tokenizer works on these in parallel


@dataclasses.dataclass(frozen=True)
class PackedBatch:
  """Rows of packed documents.

  Attributes:
    token_NxT: token ids, 0 where a row is not full.
    segment_NxT: number of the document in its row from 1; 0 marks padding.
    position_NxT: position of each token in its document.
    num_tokens: tokens that are not padding.
    end: documents of the corpus up to the end of this batch; the next one begins with that number.
  """

  token_NxT: np.ndarray
  segment_NxT: np.ndarray
  position_NxT: np.ndarray
  num_tokens: int
  end: int


@dataclasses.dataclass(frozen=True, eq=False)
class PackedText:
  """A corpus as batches of tokens, made while they are asked for.

  Attributes:
    tokenizer: special tokens that it adds to a text (BOS) are part of the document.
    corpus: the texts.
    row_tokens: T, tokens of a row; at most the model's positions.
    batch_tokens: N·T of a batch, rounded down to whole rows; all batches have this shape.
    max_document_tokens: longer documents are cut; None cuts at a row's length.
    multiple: N is a multiple of it, for devices that share the rows.
  """

  tokenizer: transformers.PreTrainedTokenizerBase
  corpus: Corpus
  row_tokens: int
  batch_tokens: int
  max_document_tokens: int | None = None
  multiple: int = 1

  @property
  def shape(self) -> tuple[int, int]:
    """N and T of the batches."""
    num_rows = max(1, self.batch_tokens // self.row_tokens)
    return round_up(num_rows, self.multiple), self.row_tokens

  def batches(self, start: int = 0) -> Iterator[PackedBatch]:
    """Documents in order, packed first into rows, then rows into batches.

    Args:
      start: the document to begin with: the `end` of a batch gives the batches after it.

    Raises:
      UserError: if there is no text.
    """
    num_rows, row_tokens = self.shape
    rows: list[list[list[int]]] = []
    room, end = 0, start
    for document in self._documents(start):
      if len(document) > room:
        if len(rows) == num_rows:
          yield _batch(rows, self.shape, end)
          rows = []
        rows.append([])
        room = row_tokens
      if document:
        rows[-1].append(document)
        room -= len(document)
      end += 1
    if rows:
      yield _batch(rows, self.shape, end)
    elif start == 0:
      raise UserError('There is no text in the corpus; give documents that have tokens.')

  def _documents(self, start: int) -> Iterator[list[int]]:
    """Token ids of the documents, cut."""
    cap = min(self.max_document_tokens or self.row_tokens, self.row_tokens)
    texts = self.corpus.read(start)
    while some := list(itertools.islice(texts, _TEXTS_PER_CALL)):
      for ids in self.tokenizer(some, truncation=False, padding=False)['input_ids']:
        yield ids[:cap]


def _batch(rows: list[list[list[int]]], shape: tuple[int, int], end: int) -> PackedBatch:
  token, segment, position = (np.zeros(shape, np.int32) for _ in range(3))
  for n, documents in enumerate(rows):
    at = 0
    for number, ids in enumerate(documents, start=1):
      stop = at + len(ids)
      token[n, at:stop] = ids
      segment[n, at:stop] = number
      position[n, at:stop] = np.arange(len(ids))
      at = stop
  return PackedBatch(token, segment, position, int((segment > 0).sum()), end)
