"""Texts of a few records before and after an edit, for human readers."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jedit.io import html
from jedit.types import Record, Request

if TYPE_CHECKING:
  from jedit.models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Sample:
  """Continuations of one prompt by two models, prompt included. `before` may be missing."""

  case_id: int
  prompt: str
  before: str | None
  after: str


class Samples(tuple[Sample, ...]):
  """Samples that print one below the other, and in notebooks with the changed words marked."""

  def __repr__(self) -> str:
    lines = []
    for each in self:
      lines += [f'Record {each.case_id}', *([f'  before  {each.before}'] if each.before else [])]
      lines.append(f'  after   {each.after}')
    return '\n'.join(lines)

  def _repr_html_(self) -> str:
    rows = []
    for each in self:
      after = each.after.removeprefix(each.prompt)
      old, new = html.marked((each.before or '').removeprefix(each.prompt), after)
      rows.append([each.prompt, *([] if each.before is None else [old]), new if old else after])
    head = ['prompt', *(['before'] * any(each.before is not None for each in self)), 'after']
    return html.block(html.rows(head, rows, 'text'))


def sample_texts(
  lm: LanguageModel,
  records: Sequence[Record | Request],
  before: LanguageModel | None = None,
  *,
  count: int = 3,
  max_new_tokens: int = 30,
  seed: int = 0,
) -> Samples:
  """Greedy texts about a few edited subjects, before and after the edit.

  Args:
    lm: the edited model.
    records: edited records or requests; a record gives its own prompt and the first one of every
      other kind.
    before: the model before the edit.
    count: number of records, at most all of them.
    max_new_tokens: length of the continuation, in tokens.
    seed: of the choice of records.

  Returns:
    Samples of the chosen records, in file order.
  """
  chosen = sorted(random.Random(seed).sample(range(len(records)), min(count, len(records))))
  picked = [pair for number in chosen for pair in _prompts(records[number], number)]
  prompts = [prompt for _, prompt in picked]

  def generate(model: LanguageModel) -> list[str]:
    return model.generate(prompts, max_new_tokens=max_new_tokens, seed=seed)

  after = generate(lm)
  earlier: Sequence[str | None] = [None] * len(picked) if before is None else generate(before)
  return Samples(
    Sample(case_id, prompt, old, new)
    for (case_id, prompt), old, new in zip(picked, earlier, after, strict=True)
  )


def _prompts(given: Record | Request, number: int) -> list[tuple[int, str]]:
  """Prompts with the id of their record; a request without one has its place."""
  if isinstance(given, Request):
    return [(number if given.case_id is None else given.case_id, given.text)]
  others = given.paraphrase_prompts, given.neighborhood_prompts, given.generation_prompts
  prompts = [given.request.text, *(prompt for each in others for prompt in each[:1])]
  return [(given.case_id, prompt) for prompt in prompts]
