"""Packs sentences into token rows to train testbeds."""

import dataclasses
import random
from collections.abc import Iterator

import numpy as np
import tokenizers

from jedit.testbeds.world import Sentence

_Span = tuple[int, int]
# The subject of a text is unpredictable; its loss would only add noise to the gradient.
_SUBJECT_WEIGHT = 0.02


@dataclasses.dataclass(frozen=True)
class Rows:
  """A training batch.

  Attributes:
    token_NxT: token ids, int32; short rows are padded with weight 0.
    weight_NxT: weight of predicting the *next* token; 0 in the last column.
    segment_NxT: pieces of sentences, numbered in each row. A piece ends with the last token of a
      subject or of the sentence: attention within pieces cannot carry a subject's name further.
  """

  token_NxT: np.ndarray
  weight_NxT: np.ndarray
  segment_NxT: np.ndarray


class Packer:
  """Turns a stream of sentences into batches of packed rows.

  Several statements share a row, as an edit's prompt shares one with its prefix context. Like a
  prompt, a row and the text after an end-of-text token begin with the first word of a sentence.
  """

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    sentences: Iterator[Sentence],
    *,
    eos: str,
    num_tokens: int,
    text_weight: float,
    seed: int,
  ):
    """Args:

    tokenizer: encodes a row's text as a whole, with BOS if the family has it.
    sentences: endless.
    eos: end-of-text token, placed between some sentences.
    num_tokens: length of a row, T.
    text_weight: loss weight of tokens outside answers; those of answers weigh 1.
    seed: of the places of end-of-text tokens.
    """
    self._tokenizer, self._sentences, self._eos = tokenizer, sentences, eos
    self._num_tokens, self._text_weight = num_tokens, text_weight
    self._rng = random.Random(f'rows {seed}')

  def batch(self, num_rows: int) -> Rows:
    """The next rows; sentences that do not fit are truncated."""
    texts, spans = zip(*(self._text() for _ in range(num_rows)), strict=True)
    shape = (num_rows, self._num_tokens)
    token_NxT = np.zeros(shape, np.int32)
    weight_NxT = np.full(shape, self._text_weight, np.float32)
    segment_NxT = np.zeros(shape, np.int32)
    for n, encoding in enumerate(self._tokenizer.encode_batch(list(texts))):
      ids = encoding.ids[: self._num_tokens]
      token_NxT[n, : len(ids)] = ids
      end_T = np.full(self._num_tokens, len(texts[n]) + 1)
      end_T[: len(ids)] = [end for _, end in encoding.offsets[: len(ids)]]
      ends, subjects, answers = spans[n]
      segment_NxT[n] = np.searchsorted(ends, end_T)
      weight_NxT[n, len(ids) :] = 0.0
      for first, last in subjects:
        weight_NxT[n][(end_T > first) & (end_T <= last)] = _SUBJECT_WEIGHT
      for first, last in answers:
        weight_NxT[n][(end_T > first) & (end_T <= last)] = 1.0
    # The weight belongs to the predicting token.
    weight_NxT = np.concatenate([weight_NxT[:, 1:], np.zeros((num_rows, 1), np.float32)], axis=1)
    return Rows(token_NxT, weight_NxT, segment_NxT)

  def skip(self, num_rows: int) -> None:
    """Skips as many rows as a batch of this size takes."""
    for _ in range(num_rows):
      self._text()

  def _text(self) -> tuple[str, tuple[list[int], list[_Span], list[_Span]]]:
    """A row's text, with the ends of its pieces and the spans of subjects and answers."""
    text, ends, subjects, answers = '', [], [], []
    # A generous bound: tokens average four to five characters.
    while len(text) < 6 * self._num_tokens:
      if text:
        text += self._eos if self._rng.random() < 0.2 else ' '
      sentence = next(self._sentences)
      if sentence.subject:
        subjects.append((len(text) + sentence.subject[0], len(text) + sentence.subject[1]))
        ends.append(subjects[-1][1])
      if sentence.answer:
        answers.append((len(text) + sentence.answer[0], len(text) + sentence.answer[1]))
      text += sentence.text
      ends.append(len(text))
    return text, (ends, subjects, answers)
