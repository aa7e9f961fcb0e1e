"""Documents to packed token batches, made while they are asked for.

Documents are cut to a length cap and packed into rows; a token attends within its own document at
positions counted from the document's start, so packing changes nothing. A row is no longer than its
longest document needs, since attention compares every token with all of its row: the lengths are
the longest one, its half, its quarter and so on, and a batch has rows of one length.
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
_ROWS_PER_WINDOW = 256  # of the longest, packed together
_SHORTEST_ROW = 128  # shorter ones save little attention and cost a program

_Item = TypeVar('_Item')
_Row = list[list[int]]  # token ids of documents


class Place(NamedTuple):
  """The beginning of a batch in a corpus.

  Attributes:
    document: first document of a window; earlier batches hold all before it.
    rows: by length of a row, ascending, how many from there on earlier batches hold.
    rest: batches at the end of the text, of rows that filled none of their length, that are done.
  """

  document: int = 0
  rows: tuple[int, ...] = ()
  rest: int = 0


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
    row_tokens: T, tokens of the longest rows; at most the model's positions.
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
  def shapes(self) -> tuple[tuple[int, int], ...]:
    """N and T of the batches, by ascending T; a batch has about as many tokens in each."""
    sizes = [self.row_tokens]
    while sizes[0] % 2 == 0 and sizes[0] // 2 >= _SHORTEST_ROW:
      sizes.insert(0, sizes[0] // 2)
    return tuple(batch_shape(size, self.batch_tokens, self.row_shards) for size in sizes)

  def batches(self, start: Place = START) -> Iterator[PackedBatch]:
    """Rows of each length in the order of windows, in random order within; at the end the rest.

    Args:
      start: the `end` of a batch gives the batches after it, without what came before.

    Raises:
      UserError: if there is no text.
    """
    shapes, taken = self.shapes, _Taken(start, len(self.shapes))
    skipped = list(taken.counts)
    waiting: list[list[_Row]] = [[] for _ in shapes]
    for stop, rows in self._windows(start.document):
      taken.open(stop, [sum(number == each for each, _ in rows) for number in range(len(shapes))])
      for number, row in rows:
        if skipped[number] > 0:
          skipped[number] -= 1
          continue
        waiting[number].append(row)
        if len(waiting[number]) == shapes[number][0]:
          yield _batch(waiting[number], shapes[number], taken.add(number, shapes[number][0]))
          waiting[number] = []
    rest = list(_rest(waiting, shapes))
    if not rest and taken.end == START:
      raise UserError('There is no text in the corpus; give documents that have tokens.')
    for number, (some, shape) in enumerate(rest[start.rest :], start=start.rest + 1):
      yield _batch(some, shape, taken.end._replace(rest=number))

  def _windows(self, start: int) -> Iterator[tuple[int, list[tuple[int, _Row]]]]:
    """For each window the first document of the next, and rows with the number of their shape."""
    sizes = [size for _, size in self.shapes]
    for stop, documents in self._documents(start):
      packed = best_fit([len(ids) for ids in documents], sizes)
      rows = [(sizes.index(size), [documents[index] for index in row]) for size, row in packed]
      # A pass may stop within a window, and its first rows hold the longest documents.
      random.Random(stop).shuffle(rows)
      yield stop, rows

  def _documents(self, start: int) -> Iterator[tuple[int, list[list[int]]]]:
    """Token ids of successive documents, cut, as many as fill a window; the first of the next."""
    cap = min(self.max_document_tokens or self.row_tokens, self.row_tokens)
    texts = self.corpus.read(start)
    stop = start
    window: list[list[int]] = []
    num_tokens = 0
    while some := list(itertools.islice(texts, _TEXTS_PER_CALL)):
      for ids in self.tokenizer(some, truncation=False, padding=False)['input_ids']:
        stop += 1
        if ids:
          window.append(ids[:cap])
          num_tokens += len(window[-1])
        if num_tokens >= _ROWS_PER_WINDOW * self.row_tokens:
          yield stop, window
          window, num_tokens = [], 0
    if window:
      yield stop, window


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


class _Taken:
  """Counts the rows that batches have taken.

  Attributes:
    counts: of each length, from the first window with others on.
    end: the place behind the last batch.
  """

  def __init__(self, start: Place, num_shapes: int):
    self.counts = list(start.rows) or [0] * num_shapes
    self.end = start._replace(rest=0)
    self._windows: deque[tuple[int, list[int]]] = deque()

  def open(self, stop: int, counts: list[int]) -> None:
    """Adds a window with so many rows of each length; the next one begins with document `stop`."""
    self._windows.append((stop, counts))

  def add(self, number: int, count: int) -> Place:
    """The place behind a batch with so many rows of one length."""
    self.counts[number] += count
    document = self.end.document
    while self._windows and all(n >= m for n, m in zip(self.counts, self._windows[0][1])):
      document, counts = self._windows.popleft()
      self.counts = [n - m for n, m in zip(self.counts, counts)]
    self.end = Place(document, tuple(self.counts))
    return self.end


def _rest(
  waiting: list[list[_Row]], shapes: tuple[tuple[int, int], ...]
) -> Iterator[tuple[list[_Row], tuple[int, int]]]:
  """Batches of what is left at the end: rows that fill no batch are joined to longer ones."""
  numbers = [number for number, rows in enumerate(waiting) if rows]
  joined: list[_Row] = []
  for number, longer in zip(numbers, [*numbers[1:], None]):
    (count, size), rows = shapes[number], waiting[number] + joined
    filled = len(rows) if longer is None else len(rows) // count * count
    yield from ((rows[i : min(i + count, filled)], shapes[number]) for i in range(0, filled, count))
    step = 1 if longer is None else shapes[longer][1] // size
    joined = [sum(rows[i : i + step], []) for i in range(filled, len(rows), step)]


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
