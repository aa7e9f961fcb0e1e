"""Criteria of KnowEdit, RippleEdits and MQuAKE: what an edit entails, what it has to leave alone.

A criterion is measured in one of four ways:

  tokens  share of the answer's tokens that are top-1 under teacher forcing
          (KnowEdit, arXiv:2401.01286, portability)
  kept    share of the top-1 tokens under teacher forcing that the edit left as they were
          (KnowEdit, locality)
  text    greedy text holds every answer, by one of its names; a test counts if the unedited model
          passes its conditions and the edited one gives the new object after the edited prompt
          (RippleEdits, arXiv:2307.12976, section 5 and released code)
  answer  greedy answer to a question is the wanted one, by one of its names
          (MQuAKE, arXiv:2305.14795, section 3; released code)

The value of a record is the mean over its tests of a criterion, in percent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jedit.evals import metrics
from jedit.evals.metrics import CRITERIA, LOCALITY, PORTABILITY, RIPPLE, CriterionScores, Values
from jedit.evals.scoring import plan_batches, score_plan
from jedit.models.encoding import Row, encode_many
from jedit.models.generate import generate
from jedit.types import Criterion, Query, Record

if TYPE_CHECKING:
  from jedit.models.language_model import LanguageModel

NEW_TOKENS = 20  # of a greedy text
_TOKENS, _KEPT, _TEXT, _ANSWER = 'tokens', 'kept', 'text', 'answer'
_EDIT = 'ripple_edit'
_WAYS: Mapping[str, str] = {
  **dict.fromkeys(PORTABILITY, _TOKENS),
  **dict.fromkeys(LOCALITY, _KEPT),
  **dict.fromkeys((_EDIT, *RIPPLE), _TEXT),
  'multi_hop': _ANSWER,
}

# Of a query: a share, top-1 token ids, or whether it passes; by record and criterion, first of the
# queries, then of the conditions.
Outcome = float | list[int] | bool
Outcomes = Sequence[Sequence[tuple[Sequence[Outcome], Sequence[Outcome]]]]


def ways(records: Sequence[Record]) -> set[str]:
  """The ways in which the criteria of records are measured."""
  return {_WAYS[each.name] for record in records for each in record.criteria}


def count(records: Sequence[Record]) -> int:
  """Queries and conditions of records."""
  tests = [each for record in records for each in record.criteria]
  return sum(len(each.queries) + len(each.conditions) for each in tests)


def rows(records: Sequence[Record], demonstrations: str = '') -> tuple[list[Row], list[str]]:
  """Texts to score and prompts to continue, of all criteria."""
  forced: list[Row] = []
  prompts: dict[str, None] = {}
  for record in records:
    for each in record.criteria:
      if _WAYS[each.name] in (_TOKENS, _KEPT):
        forced += [_forced(query) for query in each.queries]
      else:
        asked = (*each.queries, *each.conditions)
        prompts |= {_prompt(each, query, demonstrations): None for query in asked}
  return forced, list(prompts)


def measure(
  lm: LanguageModel,
  records: Sequence[Record],
  demonstrations: str = '',
  tokens_per_batch: int | None = None,
) -> Outcomes:
  """Outcomes of every query and condition of the records.

  Args:
    lm: the model.
    records: with criteria or without.
    demonstrations: questions with answers, put before the questions of MQuAKE.
    tokens_per_batch: as in `jedit.evaluate`.
  """
  forced, prompts = rows(records, demonstrations)
  scored = iter(_score(lm, forced, tokens_per_batch))
  texts = dict(zip(prompts, _continue(lm, prompts), strict=True))

  def outcome(criterion: Criterion, query: Query) -> Outcome:
    way = _WAYS[criterion.name]
    if way in (_TOKENS, _KEPT):
      share, top = next(scored)
      return share if way == _TOKENS else top
    text = texts[_prompt(criterion, query, demonstrations)]
    if way == _ANSWER:
      return _answer(text) in {name.strip().rstrip('.') for name in query.answers[0]}
    return all(any(name in text for name in names) for names in query.answers)

  return [
    [
      ([outcome(each, q) for q in each.queries], [outcome(each, q) for q in each.conditions])
      for each in record.criteria
    ]
    for record in records
  ]


def values(
  records: Sequence[Record], before: Outcomes | None, after: Outcomes
) -> dict[str, Values]:
  """Values of the metrics of criteria, by state.

  Args:
    records: R records.
    before: outcomes of the model before the edit; without them nothing is known to be kept, and
      the conditions of tests are not looked at.
    after: outcomes of the edited model.
  """

  def of(found: Outcomes, is_edited: bool) -> Values:
    evidence = []
    for r, record in enumerate(records):
      old = None if before is None else before[r]
      scores = _record_scores(record, found[r], old, is_edited)
      evidence.append({CRITERIA: scores} if record.criteria else {})
    return metrics.all_values(evidence)

  states = {'after': of(after, True)}
  return states if before is None else {'before': of(before, False), **states}


def notes(records: Sequence[Record], has_before: bool, demonstrations: str) -> Iterator[str]:
  """Sentences about the procedure."""
  measured = ways(records)
  if _TEXT in measured and has_before:
    yield (
      f'RippleEdits: greedy texts of {NEW_TOKENS} tokens; tests count where the unedited model '
      'passes their conditions and the edit took effect.'
    )
  elif _TEXT in measured:
    yield (
      f'RippleEdits: greedy texts of {NEW_TOKENS} tokens; the conditions of tests were not '
      'checked, for lack of the unedited model.'
    )
  if _ANSWER in measured and not demonstrations:
    yield (
      'MQuAKE: questions without demonstrations, which the published numbers have '
      '(evaluation.demonstrations names a file).'
    )


def _record_scores(
  record: Record, found: Sequence[Any], before: Sequence[Any] | None, is_edited: bool
) -> CriterionScores:
  passed: dict[str, list[float]] = {}
  took = True
  for n, (criterion, (outcomes, _)) in enumerate(zip(record.criteria, found, strict=True)):
    way, name = _WAYS[criterion.name], criterion.name
    if way == _KEPT and not (is_edited and before is not None):
      continue
    shares = passed.setdefault(name, [])
    if way == _KEPT:
      assert before is not None, 'checked above'
      pairs = zip(outcomes, before[n][0], strict=True)
      shares += [float(np.mean(np.equal(new, old))) for new, old in pairs]
    elif way == _TOKENS:
      shares += [float(share) for share in outcomes]
    elif before is None or all(before[n][1]):
      shares.append(float(all(outcomes) if criterion.needs_all else any(outcomes)))
    if name == _EDIT and is_edited:
      took = bool(shares[-1])
  if not took:  # published means are over the edits that took effect
    passed = {name: [] if name in RIPPLE else each for name, each in passed.items()}
  return CriterionScores(passed)


def _forced(query: Query) -> Row:
  return Row(query.prompt, target=query.answers[0][0])


def _prompt(criterion: Criterion, query: Query, demonstrations: str) -> str:
  if _WAYS[criterion.name] == _TEXT:
    return query.prompt
  return f'{demonstrations.rstrip()}\nQ: {query.prompt} A:'.lstrip()


def _answer(text: str) -> str:
  """The answer at the beginning of a text: the rest of its line, up to a next question."""
  lines = text.strip().split('\n')
  return lines[0].split('Q:')[0].strip().rstrip('.')


def _score(
  lm: LanguageModel, forced: Sequence[Row], tokens_per_batch: int | None
) -> list[tuple[float, list[int]]]:
  """Share of top-1 answer tokens and the top-1 tokens, by row."""
  if not forced:
    return []
  encoded = encode_many(lm.tokenizer, forced, lm.config.position_limit)
  plan = plan_batches(encoded, tokens_per_batch=tokens_per_batch)
  scores = score_plan(lm.model, plan)
  tops = [
    top[:length].tolist() for top, length in zip(scores.top_NxT, scores.length_N, strict=True)
  ]
  return list(zip(scores.token_acc_N.tolist(), tops, strict=True))


def _continue(lm: LanguageModel, prompts: Sequence[str]) -> list[str]:
  """Greedy continuations without their prompts."""
  if not prompts:
    return []
  ids = [list(each) for each in lm.tokenizer(list(prompts))['input_ids']]
  end = lm.tokenizer.eos_token_id
  made = generate(lm.model, ids, max_new_tokens=NEW_TOKENS, stop_ids=() if end is None else (end,))
  return [lm.tokenizer.decode(new, skip_special_tokens=True) for new in made]
