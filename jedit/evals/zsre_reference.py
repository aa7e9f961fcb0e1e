"""Token accuracy as the published zsRE code computes it, for comparisons with its numbers.

For every answer token i (MEMIT, PMET) the model reads the prompt followed by the *decoded* tokens
before i, and its top token is compared with the first token of the decoded token i, encoded again.
This equals one teacher-forced pass on token ids unless decoding and encoding is not the identity: a
token that holds part of a character becomes a replacement character, and from there on all later
tokens of the answer see another text.
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
  """Which answer tokens are on top.

  Args:
    lm: the model.
    rows: N prompts with an answer each.

  Returns:
    is_top_NxT, False after the end of an answer.
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
      if wanted:  # nothing is on top of a token without text
        asked.append(Encoded(text, (*read, wanted[0]), None, len(read) - 1, len(read)))
        places.append((n, i))
  is_top_NxT = np.zeros((len(rows), max(len(row.target_ids) for row in encoded)), bool)
  if asked:
    scores = scoring.score(lm.model, asked)
    is_top_NxT[tuple(np.array(places).T)] = scores.is_top_NxT[:, 0]
  return is_top_NxT


def _answer(row: Row) -> str:
  """The answer as it stands in the text."""
  assert row.target is not None, 'it is asked for'
  return row.target if row.target.startswith(' ') else ' ' + row.target
