"""Stand-ins for the texts of a run: rows with lengths of their own and no words.

Shapes depend on lengths alone. Lengths come from the records and the tokenizer where both are here,
otherwise from a sample of CounterFact in GPT-2's tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jedit.editing.prompts import BARE, EditRows, encode_edits
from jedit.models.encoding import Encoded
from jedit.types import Record, Request

# Every 25th of 1,600 prompts in order of their windows: tokens before the subject, of the subject,
# behind it and of the object; and 32 quantiles of the lengths of all prompts that are scored.
_EDITS = """
0211 4211 0311 4311 3411 4411 4511 5611 0221 0321 0321 0321 0321 0421 0421 0421 3421 0521 0721 0131
0231 0231 0231 0331 0331 0331 0331 1331 0431 0431 0431 0431 0431 0431 0531 0531 0531 0631 0631 0731
0931 0241 0341 0341 0441 0441 0441 0541 0541 0641 0841 0251 0251 1251 0351 0351 0451 0451 0551 0551
0751 0361 0561 0961
"""
_PROMPTS = (
  *(4, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 7, 8, 8, 8, 8, 8, 9, 9, 9, 9, 10, 10, 10, 11, 12, 13, 14),
  *(16, 19, 21, 26),
)
_PROMPTS_PER_RECORD, _OBJECTS = 13, 2


class Lengths(NamedTuple):
  """Tokens of the parts of a prompt: before its subject, of it, behind it, and of the object.

  `alone` is the subject at the beginning of a text.
  """

  before: int
  subject: int
  after: int
  target: int
  alone: int

  @property
  def window(self) -> int:
    """Tokens from the subject's last one to the last that predicts."""
    return self.after + self.target


def edit_lengths(
  num_edits: int, records: Sequence[Record] | None = None, tokenizer: Any = None
) -> list[Lengths]:
  """Lengths of the prompts of all edits.

  Args:
    num_edits: number of edits.
    records: theirs; None takes CounterFact's lengths.
    tokenizer: of the model; likewise.
  """
  if records and tokenizer is not None:
    rows = encode_edits(tokenizer, [record.request for record in records], BARE)
    known = [_lengths_of(edit) for edit in rows]
  else:
    parts = (map(int, digits) for digits in _EDITS.split())
    known = [Lengths(before, size, after, target, size) for before, size, after, target in parts]
  return [known[number % len(known)] for number in range(num_edits)]


def _lengths_of(edit: EditRows) -> Lengths:
  text = edit.bare
  assert text.subject_first is not None and text.subject_last is not None
  assert edit.kl.subject_last is not None
  return Lengths(
    text.subject_first,
    text.subject_last + 1 - text.subject_first,
    text.prompt_last - text.subject_last,
    len(edit.target_ids),
    edit.kl.subject_last + 1,
  )


def edit_rows(lengths: Sequence[Lengths], prefixes: Sequence[int]) -> list[EditRows]:
  """Rows of edits with these lengths behind prefixes of these lengths, the first one empty."""
  return [_edit_row(number, each, prefixes) for number, each in enumerate(lengths)]


def _edit_row(number: int, lengths: Lengths, prefixes: Sequence[int]) -> EditRows:
  before, subject, after, target, alone = lengths
  # Rows share the tokens of their prefix and no others.
  prompt, other = (number + 1,) * (before + subject + after), (number + 1,) * target

  def text(context: int, object_ids: tuple[int, ...]) -> Encoded:
    start = prefixes[context]
    return Encoded(
      text='',
      ids=(-1 - context,) * start + prompt + object_ids,
      subject_last=start + before + subject - 1,
      prompt_last=start + len(prompt) - 1,
      target_start=start + len(prompt),
      subject_first=start + before,
    )

  contexts = range(len(prefixes))
  kl = Encoded('', prompt[:1] * (alone + 2), alone - 1, alone + 1, alone + 2, 0)
  return EditRows(
    Request('{}', str(number), 'object'),
    tuple(text(context, other) for context in contexts),
    tuple(text(context, ()) for context in contexts),
    kl,
  )


def scored_rows(num_records: int) -> list[Encoded]:
  """The prompts of so many records of CounterFact with both objects."""
  rng = np.random.default_rng(0)
  lengths = rng.choice(_PROMPTS, num_records * _PROMPTS_PER_RECORD).tolist()
  return [
    Encoded('', (number + 1,) * length + (answer,), None, length - 1, length)
    for number, length in enumerate(lengths)
    for answer in range(_OBJECTS)
  ]
