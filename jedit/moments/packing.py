"""Documents to packed token batches, made while they are asked for.

Documents are cut to a length cap and packed into rows of fixed length; a token attends within its
own document at positions counted from the document's start, so packing changes nothing.
"""

import concurrent.futures
import dataclasses
import itertools
import random
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import transformers

from jedit.moments.corpus import Corpus
from jedit.parallel.shapes import best_fit
from jedit.types import UserError

_TEXTS_PER_CALL = 256  # the tokenizer works on these in parallel
_ROWS_PER_WINDOW = 256  # packed together; what remains empty at their end is lost

_Item = TypeVar('_Item')


class Place(NamedTuple):
  """The beginning of a batch in a corpus.

  Attributes:
    document: first document of the window that the batch begins in.
    row: rows of the window that earlier batches hold.
  """

  document: int = 0
  row: int = 0


START = Place()


@dataclasses.dataclass(frozen=True)
class PackedBatch:
  """Rows of packed documents.

  Attributes:
    token_NxT: token ids, 0 where a row is not full.
    segment_NxT: number of the document in its row from 1; 0 marks padding.
    position_NxT: position of each token in its document.
    num_documents: documents in the batch.
    end: beginning of the next batch.
  """

  token_NxT: np.ndarray
  segment_NxT: np.ndarray
  position_NxT: np.ndarray
  num_documents: int
  end: Place

  @property
  def num_tokens(self) -> int:
    """Tokens that are not padding."""
    return int((self.segment_NxT > 0).sum())


@dataclasses.dataclass(frozen=True, eq=False)
class PackedText:
  """A corpus as batches of tokens, made while they are asked for.

  Attributes:
    tokenizer: special tokens that it adds to a text (BOS) are part of the document.
    corpus: the texts.
    row_tokens: T, tokens of a row; at most the model's positions.
    batch_tokens: tokens of a batch on each device, rounded down to whole rows.
    max_document_tokens: longer documents are cut; None cuts at a row's length.
    row_shards: devices that share the rows of a batch.
  """

  tokenizer: transformers.PreTrainedTokenizerBase
  corpus: Corpus
  row_tokens: int
  batch_tokens: int
  max_document_tokens: int | None = None
  row_shards: int = 1

  @property
  def shape(self) -> tuple[int, int]:
    """N and T of all batches."""
    return batch_shape(self.row_tokens, self.batch_tokens, self.row_shards)

  def batches(self, start: Place = START) -> Iterator[PackedBatch]:
    """Windows of documents in order, their rows in random order.

    Args:
      start: the `end` of a batch gives the batches after it, without what came before.

    Raises:
      UserError: if there is no text.
    """
    num_rows, _ = self.shape
    rows: list[list[list[int]]] = []
    end = start
    for row, end in self._rows(start):
      rows.append(row)
      if len(rows) == num_rows:
        yield _batch(rows, self.shape, end)
        rows = []
    if rows:
      yield _batch(rows, self.shape, end)
    elif end == START:
      raise UserError('There is no text in the corpus; give documents that have tokens.')

  def _rows(self, start: Place) -> Iterator[tuple[list[list[int]], Place]]:
    """Rows of documents, each with the place behind it."""
    first, done = start
    for window in self._windows(first):
      found = best_fit([len(ids) for ids in window], [self.row_tokens])
      rows = [[window[index] for index in row] for _, row in found]
      # A pass may stop within a window, and its first rows hold the longest documents.
      random.Random(first).shuffle(rows)
      for number, row in enumerate(rows[done:], start=done + 1):
        yield row, Place(first, number)
      first, done = first + len(window), 0

  def _windows(self, start: int) -> Iterator[list[list[int]]]:
    """Token ids of successive documents, cut; as many as fill a window's rows."""
    cap = min(self.max_document_tokens or self.row_tokens, self.row_tokens)
    texts = self.corpus.read(start)
    window: list[list[int]] = []
    num_tokens = 0
    while some := list(itertools.islice(texts, _TEXTS_PER_CALL)):
      for ids in self.tokenizer(some, truncation=False, padding=False)['input_ids']:
        window.append(ids[:cap])
        num_tokens += len(window[-1])
        if num_tokens >= _ROWS_PER_WINDOW * self.row_tokens:
          yield window
          window, num_tokens = [], 0
    if window:
      yield window


def batch_shape(row_tokens: int, batch_tokens: int, row_shards: int = 1) -> tuple[int, int]:
  """Rows and tokens of a batch; arguments as of `PackedText`."""
  return row_shards * max(1, batch_tokens // row_tokens), row_tokens


def prefetch(items: Iterator[_Item], depth: int = 2) -> Iterator[_Item]:
  """The same items, made ahead in a thread while their user works on earlier ones."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    coming = deque(pool.submit(next, items, None) for _ in range(depth))
    while (item := coming.popleft().result()) is not None:
      coming.append(pool.submit(next, items, None))
      yield item


def _batch(rows: list[list[list[int]]], shape: tuple[int, int], end: Place) -> PackedBatch:
  token, segment, position = (np.zeros(shape, np.int32) for _ in range(3))
  for n, documents in enumerate(rows):
    at = 0
    for number, ids in enumerate(documents, start=1):
      stop = at + len(ids)
      token[n, at:stop] = ids
      segment[n, at:stop] = number
      position[n, at:stop] = np.arange(len(ids))
      at = stop
  return PackedBatch(token, segment, position, sum(map(len, rows)), end)
