"""Scores an edited model on the prompts of its records, beside the model it came from."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jedit.data.prompts import Row, encode_many
from jedit.evals import metrics
from jedit.evals.scoring import Plan, Scores, plan_batches, score_plan
from jedit.log import Progress, quiet
from jedit.types import Record, UserError

if TYPE_CHECKING:
  from jedit.language_model import LanguageModel

Values = dict[str, np.ndarray]
Summary = dict[str, dict[str, float | int | None]]


@dataclasses.dataclass(frozen=True)
class Table:
  """What was measured: per-record values, their summary, and both as a text to read.

  Attributes:
    case_ids: the records, in the order of the values.
    after: by metric name, one value per record of the evaluated model, in percent; nan where
      undefined.
    before: the same of the model it came from; None where none was given.
    unedited_after: by metric name, one value per prompt about a subject that was not edited; empty
      without such prompts. `unedited_acc`: 100 where every token of the known answer is on top,
      so that greedy decoding gives it. `unedited_kept`: the same over the prompts that the model
      answered right before, nan for the others.
    unedited_before: the same of the model it came from (without `unedited_kept`).
  """

  case_ids: tuple[int, ...]
  after: Values
  before: Values | None = None
  unedited_after: Values = dataclasses.field(default_factory=dict)
  unedited_before: Values = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def metrics(self) -> dict[str, Summary]:
    """By metric name: `before` (where measured) and `after`, each with `mean`, `ci95` and `n`."""
    after = metrics.summarize(self.after) | _summarize_each(self.unedited_after)
    before: Summary = {}
    if self.before is not None:
      before = metrics.summarize(self.before) | _summarize_each(self.unedited_before)
    return {
      name: ({'before': before[name]} if name in before else {}) | {'after': after[name]}
      for name in after
    }

  def to_summary(self) -> dict[str, Any]:
    """`{'metrics': ...}` in the form of summary.json."""
    return {'metrics': self.metrics}

  def to_records(self) -> list[dict[str, Any]]:
    """One dict per record: case_id, and `before` and `after` with every per-record value.

    Percent; None where a value is undefined.
    """
    rows = []
    for r, case_id in enumerate(self.case_ids):
      row: dict[str, Any] = {'case_id': case_id}
      for state, values in (('before', self.before), ('after', self.after)):
        if values is not None:
          row[state] = {
            name: None if np.isnan(value_R[r]) else float(value_R[r])
            for name, value_R in values.items()
          }
      rows.append(row)
    return rows

  def __str__(self) -> str:
    """The table as aligned text, `mean ± ci95` in percent."""
    states = ('before', 'after') if self.before is not None else ('after',)
    rows = [('', *states, 'n')]
    for name, by_state in self.metrics.items():
      cells = [_cell(by_state.get(state)) for state in states]
      counts = [by_state[state]['n'] for state in states if state in by_state]
      rows.append((name, *cells, ' / '.join(str(count) for count in dict.fromkeys(counts))))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
      cells = [row[0].ljust(widths[0])]
      cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
      lines.append('  '.join(cells).rstrip())
    lines.insert(1, '-' * max(len(line) for line in lines))
    notes = [f'percent, ± half width of the 95% interval; {len(self.case_ids)} records']
    notes += self._undefined()
    return '\n'.join(lines + notes)

  def _undefined(self) -> list[str]:
    notes = []
    for state, values in (('before', self.before), ('after', self.after)):
      for part in metrics.PARTS:
        count = int(np.isnan((values or {}).get(f'{part}_acc', np.zeros(0))).sum())
        if count:
          have = (
            '1 record has no value and is'
            if count == 1
            else f'{count} records have no value and are'
          )
          notes.append(f'{part} {state}: {have} left out')
    return notes


def _summarize_each(values: Values) -> Summary:
  return {name: metrics.summarize_values(value_R) for name, value_R in values.items()}


def _cell(summary: Mapping[str, float | int | None] | None) -> str:
  if summary is None or summary['mean'] is None:
    return '–'
  return f'{summary["mean"]:.1f} ±{summary["ci95"]:5.1f}'


@dataclasses.dataclass(frozen=True)
class _Questions:
  """Rows to score and which of them belong to which part of which record.

  Attributes:
    rows: every text, the parts' first, then those about subjects that were not edited.
    parts: per record, by part: the rows of the wanted object and of the other one (or nothing).
    unedited: the rows about subjects that were not edited.
  """

  rows: tuple[Row, ...]
  parts: tuple[dict[str, tuple[np.ndarray, np.ndarray | None]], ...]
  unedited: np.ndarray


def evaluate(
  lm: LanguageModel,
  records: Sequence[Record],
  before: LanguageModel | None = None,
  *,
  unedited: Sequence[tuple[str, str]] = (),
  tokens_per_batch: int | None = None,
) -> Table:
  """Measures what an edit did: efficacy, paraphrase, neighbourhood and the score made of them.

  Every prompt of every record is scored by teacher forcing after both objects; the definitions
  stand in `jedit.evals.metrics`.

  Args:
    lm: the edited model.
    records: what to measure; either all compare two objects (CounterFact) or none does (zsRE).
    before: the model before the edit, measured on the same texts.
    unedited: prompts about subjects that were not edited, each with its known answer: they tell
      how much of what the model knew is left (`unedited_acc`, `unedited_kept`).
    tokens_per_batch: tokens that go through the model together, which bounds the memory; None
      chooses by device.

  Returns:
    The table.

  Raises:
    UserError: without records, with records of both kinds, or with a text that cannot be scored.
  """
  questions = _ask(records, unedited)
  models = {'after': lm} if before is None else {'before': before, 'after': lm}
  plans: dict[int, Plan] = {}
  for model in models.values():
    if id(model.tokenizer) not in plans:
      encoded = encode_many(model.tokenizer, questions.rows)
      plans[id(model.tokenizer)] = plan_batches(
        encoded, model.config.vocab_size, tokens_per_batch=tokens_per_batch
      )
  total = sum(plans[id(model.tokenizer)].num_tokens for model in models.values())
  values, exact = {}, {}
  with Progress('evaluate', total=total, unit='tokens') as progress:
    for state, model in models.items():
      plan = plans[id(model.tokenizer)]
      scores = score_plan(model.config, model.params, plan, on_batch=progress.update)
      values[state] = _values(scores, questions)
      exact[state] = scores.exact_N[questions.unedited]
  unedited_values: dict[str, Values] = {'before': {}, 'after': {}}
  if len(questions.unedited):
    for state in models:
      unedited_values[state]['unedited_acc'] = 100 * exact[state]
    if before is not None:
      kept_N = metrics.kept(exact['before'], exact['after'])
      unedited_values['after']['unedited_kept'] = kept_N
  return Table(
    case_ids=tuple(record.case_id for record in records),
    after=values['after'],
    before=values.get('before'),
    unedited_after=unedited_values['after'],
    unedited_before=unedited_values['before'],
  )


def evaluate_apart(
  parts: Sequence[tuple[slice, LanguageModel]],
  records: Sequence[Record],
  before: LanguageModel,
  *,
  unedited: Sequence[tuple[str, str]] = (),
) -> Table:
  """Measures edits that are models of their own, each on its own records, as one table.

  Args:
    parts: which records each edited model is about; together all records, in order.
    records: what to measure.
    before: the model before the edits.
    unedited: as of `evaluate`; each model is asked its share of them, in order.

  Returns:
    The table, as if one model had answered for all records.

  Raises:
    UserError: as `evaluate`.
  """
  start = evaluate(before, records, unedited=unedited)
  bounds = np.linspace(0, len(unedited), len(parts) + 1).astype(int)
  shares = [unedited[i:j] for i, j in zip(bounds[:-1], bounds[1:], strict=True)]
  found: list[Table] = []
  with Progress('evaluate', total=len(parts), unit='batches') as progress:
    for (part, lm), share in zip(parts, shares, strict=True):
      with quiet():
        found.append(evaluate(lm, records[part], unedited=share))
      progress.update()

  def joined(values: Sequence[Values]) -> Values:
    names = dict.fromkeys(name for each in values for name in each)
    return {name: np.concatenate([e[name] for e in values if name in e]) for name in names}

  unedited_after = joined([table.unedited_after for table in found])
  if unedited:
    exact = [values['unedited_acc'] == 100 for values in (start.unedited_after, unedited_after)]
    unedited_after['unedited_kept'] = metrics.kept(*exact)
  return Table(
    case_ids=start.case_ids,
    after=joined([table.after for table in found]),
    before=start.after,
    unedited_after=unedited_after,
    unedited_before=start.unedited_after,
  )


def _ask(records: Sequence[Record], unedited: Sequence[tuple[str, str]]) -> _Questions:
  """Writes down every text that the metrics need."""
  if not records:
    raise UserError('There are no records to evaluate; give at least one.')
  compares = records[0].request.target_true is not None
  rows: list[Row] = []
  parts = []

  def add(new: list[Row]) -> np.ndarray:
    rows.extend(new)
    return np.arange(len(rows) - len(new), len(rows))

  for record in records:
    if (record.request.target_true is not None) != compares:
      raise UserError(
        f'Record {record.case_id} has {"no" if compares else "a"} true answer, unlike record '
        f'{records[0].case_id}; evaluate records with and without one apart.'
      )
    parts.append(
      {
        part: (
          add([dataclasses.replace(prompt, target=wanted) for prompt in prompts]),
          add([dataclasses.replace(prompt, target=other) for prompt in prompts])
          if compares
          else None,
        )
        for part, (prompts, wanted, other) in _prompts(record).items()
      }
    )
  known = add([Row(prompt, target=answer) for prompt, answer in unedited])
  return _Questions(tuple(rows), tuple(parts), known)


def _prompts(record: Record) -> dict[str, tuple[list[Row], str | None, str | None]]:
  """By part: the prompts, the object that the part wants and the one it is compared with."""
  request = record.request
  stays = record.neighborhood_target or request.target_true
  neighborhood = record.neighborhood_prompts if stays else ()
  return {
    'efficacy': (
      [Row(request.prompt, request.subject)],
      request.target,
      request.target_true,
    ),
    'paraphrase': (
      [Row(prompt) for prompt in record.paraphrase_prompts],
      request.target,
      request.target_true,
    ),
    'neighborhood': ([Row(prompt) for prompt in neighborhood], stays, request.target),
  }


def _values(scores: Scores, questions: _Questions) -> Values:
  """Per-record values by metric name."""
  by_record = []
  for parts in questions.parts:
    found = {}
    for part, (wanted, other) in parts.items():
      if other is None:
        found[part] = metrics.PartScores(acc_P=scores.token_acc_N[wanted])
      else:
        found[part] = metrics.PartScores(
          scores.exact_N[wanted], scores.nll_N[wanted], scores.nll_N[other]
        )
    by_record.append(metrics.record_values(found))
  names = [
    name
    for name in (*metrics.SUCCESS, *metrics.MAGNITUDE, *metrics.ACCURACY)
    if name in by_record[0]
  ]
  return {name: np.array([values[name] for values in by_record]) for name in names}


@dataclasses.dataclass(frozen=True)
class Sample:
  """How two models continue one prompt; both texts include it. `before` may be missing."""

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
  """A few texts about edited subjects, generated before and after.

  Args:
    lm: the edited model.
    records: edited records; each gives its own prompt and its first generation prompt.
    before: the model before the edit.
    count: number of records; all where there are fewer.
    max_new_tokens: length of the continuation, in tokens.
    seed: chooses the records; the texts are greedy.

  Returns:
    The samples of the chosen records, in file order.
  """
  chosen = sorted(random.Random(seed).sample(range(len(records)), min(count, len(records))))
  picked = [
    (records[i].case_id, prompt)
    for i in chosen
    for prompt in (records[i].request.text, *records[i].generation_prompts[:1])
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
