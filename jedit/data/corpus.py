"""Texts to packed token batches for statistics.

Documents are cut to a length cap and packed into rows without gaps; a token attends within its
own document at positions counted from the document's start, so packing changes nothing.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import transformers

from jedit.types import UserError


@dataclasses.dataclass(frozen=True)
class PackedBatch:
  """Rows of packed documents.

  Attributes:
    token_NxT: token ids, 0 where a row is not full.
    segment_NxT: number of the document in its row from 1; 0 marks padding.
    position_NxT: position of each token in its document.
    num_tokens: tokens that are not padding.
  """

  token_NxT: np.ndarray
  segment_NxT: np.ndarray
  position_NxT: np.ndarray
  num_tokens: int


def read_corpus(path: str | os.PathLike[str]) -> list[str]:
  """Documents of a plain text file, one per line, or of all `*.txt` files of a directory.

  Raises:
    UserError: if there is no such file, or no text in it.
  """
  path = pathlib.Path(path)
  files = sorted(path.glob('*.txt')) if path.is_dir() else [path]
  documents: list[str] = []
  for file in files:
    try:
      text = file.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(
        f'The corpus {file} cannot be read ({error}); give a UTF-8 text file.'
      ) from error
    documents += [line.strip() for line in text.splitlines() if line.strip()]
  if not documents:
    raise UserError(f'There is no text in the corpus {path}; give a file or directory with text.')
  return documents


def pack(
  tokenizer: transformers.PreTrainedTokenizerBase,
  documents: Sequence[str],
  *,
  row_tokens: int,
  batch_tokens: int,
  max_document_tokens: int | None = None,
) -> list[PackedBatch]:
  """Tokenises documents and packs them in order, first into rows, then rows into batches.

  Args:
    tokenizer: special tokens that it adds to a text (BOS) are part of the document.
    documents: the texts.
    row_tokens: T, tokens of a row; at most the model's positions.
    batch_tokens: N·T of a batch; all batches have the same shape.
    max_document_tokens: longer documents are cut; None cuts at a row's length.

  Raises:
    UserError: if there is no text.
  """
  cap = min(max_document_tokens or row_tokens, row_tokens)
  ids = (
    tokenizer(list(documents), truncation=False, padding=False)['input_ids'] if documents else []
  )
  rows: list[list[list[int]]] = []
  room = 0
  for document in ids:
    document = document[:cap]
    if not document:
      continue
    if len(document) > room:
      rows.append([])
      room = row_tokens
    rows[-1].append(document)
    room -= len(document)
  if not rows:
    raise UserError('There is no text in the corpus; give documents that have tokens.')
  num_rows = max(1, min(batch_tokens // row_tokens, len(rows)))
  return [
    _batch(rows[first : first + num_rows], num_rows, row_tokens)
    for first in range(0, len(rows), num_rows)
  ]


def _batch(rows: list[list[list[int]]], num_rows: int, row_tokens: int) -> PackedBatch:
  token, segment, position = (np.zeros((num_rows, row_tokens), np.int32) for _ in range(3))
  for n, documents in enumerate(rows):
    at = 0
    for number, ids in enumerate(documents, start=1):
      end = at + len(ids)
      token[n, at:end] = ids
      segment[n, at:end] = number
      position[n, at:end] = np.arange(len(ids))
      at = end
  return PackedBatch(token, segment, position, int((segment > 0).sum()))
