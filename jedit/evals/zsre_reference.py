"""Token accuracy by the procedure of the published zsRE code, to compare with its numbers.

For every answer token i (MEMIT, PMET) the input is the prompt followed by the *decoded* tokens
before i, and the top token is compared with the first token of the re-encoded token i. This equals
one teacher-forced pass on token ids if decoding and encoding is the identity. It is not for a token
with part of a character, which becomes a replacement character and changes all later inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jedit.evals import scoring
from jedit.models.encoding import Encoded, Row, encode_many

if TYPE_CHECKING:
  from jedit.models.language_model import LanguageModel


def token_accuracy(lm: LanguageModel, rows: Sequence[Row]) -> np.ndarray:
  """Top-1 mask of the answer tokens, is_top_NxT; False after the end of an answer.

  Args:
    lm: the model.
    rows: N prompts with an answer each.
  """
  tokenizer = lm.tokenizer
  encoded = encode_many(tokenizer, rows, lm.config.position_limit)
  asked: list[Encoded] = []
  places = []
  for n, row in enumerate(encoded):
    prompt = row.text[: len(row.text) - len(_answer(rows[n]))]
    for i, token in enumerate(row.target_ids):
      text = prompt + tokenizer.decode(row.target_ids[:i])
      read = tokenizer(text)['input_ids']
      wanted = tokenizer(tokenizer.decode([token]), add_special_tokens=False)['input_ids']
      if wanted:  # a token without text is never top-1
        asked.append(Encoded(text, (*read, wanted[0]), None, len(read) - 1, len(read)))
        places.append((n, i))
  is_top_NxT = np.zeros((len(rows), max(len(row.target_ids) for row in encoded)), bool)
  if asked:
    scores = scoring.score(lm.model, asked)
    is_top_NxT[tuple(np.array(places).T)] = scores.is_top_NxT[:, 0]
  return is_top_NxT


def _answer(row: Row) -> str:
  """The answer as it appears in the text."""
  assert row.target is not None, 'rows have answers'
  return row.target if row.target.startswith(' ') else ' ' + row.target
