"""Texts of a few records before and after an edit, for human readers."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jedit.types import Record

if TYPE_CHECKING:
  from jedit.models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Sample:
  """Continuations of one prompt by two models, prompt included. `before` may be missing."""

  case_id: int
  prompt: str
  before: str | None
  after: str


def sample_texts(
  lm: LanguageModel,
  records: Sequence[Record],
  before: LanguageModel | None = None,
  *,
  count: int = 3,
  max_new_tokens: int = 30,
  seed: int = 0,
) -> tuple[Sample, ...]:
  """Greedy texts about a few edited subjects, before and after the edit.

  Args:
    lm: the edited model.
    records: edited records; each gives its own prompt and the first one of every other kind.
    before: the model before the edit.
    count: number of records, at most all of them.
    max_new_tokens: length of the continuation, in tokens.
    seed: of the choice of records.

  Returns:
    Samples of the chosen records, in file order.
  """
  chosen = sorted(random.Random(seed).sample(range(len(records)), min(count, len(records))))
  picked = [
    (records[i].case_id, prompt)
    for i in chosen
    for prompt in (
      records[i].request.text,
      *records[i].paraphrase_prompts[:1],
      *records[i].neighborhood_prompts[:1],
      *records[i].generation_prompts[:1],
    )
  ]
  prompts = [prompt for _, prompt in picked]

  def generate(model: LanguageModel) -> list[str]:
    return model.generate(prompts, max_new_tokens=max_new_tokens, seed=seed)

  after = generate(lm)
  earlier: Sequence[str | None] = [None] * len(picked) if before is None else generate(before)
  return tuple(
    Sample(case_id, prompt, old, new)
    for (case_id, prompt), old, new in zip(picked, earlier, after, strict=True)
  )
