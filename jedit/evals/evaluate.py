"""Scores an edited model on the prompts of its records, beside the model it came from."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jedit.evals import metrics, zsre_reference
from jedit.evals.chunks import Found, How, Job, Store
from jedit.evals.generation import Generation
from jedit.evals.generation import measure as measure_texts
from jedit.evals.scoring import Scores, plan_batches, score_plan
from jedit.evals.table import Table, Values
from jedit.io.progress import Progress
from jedit.models.encoding import Row, encode_many
from jedit.types import Record, UserError

if TYPE_CHECKING:
  from jedit.models.language_model import LanguageModel

_CHUNK = 256  # records measured at a time, which bounds the memory; a kill repeats one chunk


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
  generation: Generation | None = None,
  reencode: bool = False,
  tokens_per_batch: int | None = None,
  store: str | os.PathLike[str] | None = None,
) -> Table:
  """Measures what an edit did: efficacy, paraphrase, neighbourhood and the score made of them.

  Every prompt of every record is scored by teacher forcing after both objects; the definitions
  stand in `jedit.evals.metrics`, those of generated texts in `jedit.evals.generation`.

  Args:
    lm: the edited model.
    records: what to measure; either all compare two objects (CounterFact) or none does (zsRE).
    before: the model before the edit, measured on the same texts.
    unedited: prompts about subjects that were not edited, each with its known answer: they tell
      how much of what the model knew was left (`unedited_acc`, `unedited_kept`).
    generation: also generates texts and measures them; None does not, which is much faster.
    reencode: token accuracies of records with a single object by the published procedure, see
      `jedit.evals.zsre_reference`; False takes one teacher-forced pass on token ids.
    tokens_per_batch: tokens that go through the model together, which bounds the memory; None
      chooses by device.
    store: a JSON lines file for finished parts; the same call goes on from there after a kill and
      ends with the same numbers.

  Returns:
    The table.

  Raises:
    UserError: without records, with records of both kinds, or with a text that cannot be scored.
  """
  parts = [(slice(0, len(records)), lm)]
  how = How(generation, reencode, tokens_per_batch)
  return _measure(parts, records, before, unedited, how, store)


def evaluate_apart(
  parts: Sequence[tuple[slice, LanguageModel]],
  records: Sequence[Record],
  before: LanguageModel,
  *,
  unedited: Sequence[tuple[str, str]] = (),
  generation: Generation | None = None,
  reencode: bool = False,
  store: str | os.PathLike[str] | None = None,
) -> Table:
  """Measures edits that are models of their own, each on its own records, as one table.

  Args:
    parts: which records each edited model is about; together all records, in order.
    records: what to measure.
    before: the model before the edits.
    unedited: as of `evaluate`; each model is asked its share of them, in order.
    generation, reencode, store: as of `evaluate`.

  Returns:
    The table, as if one model had answered for all records.

  Raises:
    UserError: as `evaluate`.
  """
  return _measure(parts, records, before, unedited, How(generation, reencode), store)


def _measure(
  parts: Sequence[tuple[slice, LanguageModel]],
  records: Sequence[Record],
  before: LanguageModel | None,
  unedited: Sequence[tuple[str, str]],
  how: How,
  store: str | os.PathLike[str] | None,
) -> Table:
  """Runs all jobs that are not stored, and puts what they found together."""
  _check(records)
  jobs = list(_jobs(parts, before, len(records), len(unedited)))
  sizes = [_num_rows(records[job.records]) + _length(job.unedited) for job in jobs]
  stored = Store(store)
  found: dict[str, list[Found]] = {'before': [], 'after': []}
  shapes: tuple[tuple[int, int, int], ...] = ()
  with stored, Progress('evaluate', total=sum(sizes), unit='prompts') as progress:
    for job, size in zip(jobs, sizes, strict=True):
      key = stored.key(job, records[job.records], unedited[job.unedited], how)
      result = stored.get(key)
      if result is None:
        done = progress.done
        result = _run(job, records, unedited, how, shapes, progress)
        stored.put(key, job, result)
        progress.update(done + size - progress.done)
      else:
        progress.update(size)
      shapes = tuple(sorted({*shapes, *result.shapes}))
      found[job.state].append(result)
  values = {state: _joined([each.values for each in results]) for state, results in found.items()}
  accs = {
    state: np.concatenate([each.unedited_acc for each in results])
    for state, results in found.items()
    if results and unedited
  }
  unedited_values: dict[str, Values] = {state: {'unedited_acc': acc} for state, acc in accs.items()}
  if len(accs) == 2:
    kept_N = metrics.kept(accs['before'] == 100, accs['after'] == 100)
    unedited_values['after']['unedited_kept'] = kept_N
  generation = how.generation
  return Table(
    case_ids=tuple(record.case_id for record in records),
    after=values['after'],
    before=values['before'] if before is not None else None,
    unedited_after=unedited_values.get('after', {}),
    unedited_before=unedited_values.get('before', {}),
    is_generated_R=None if generation is None else np.array(list(map(generation.chooses, records))),
    notes=how_measured(records, generation, how.reencode),
  )


def check_texts(lm: LanguageModel, records: Sequence[Record]) -> None:
  """Raises UserError for records that `evaluate` refuses, before anything is run."""
  _check(records)
  limit = lm.config.position_limit
  if limit is not None:
    encode_many(lm.tokenizer, _ask(records, ()).rows, limit)


def how_measured(
  records: Sequence[Record], generation: Generation | None = None, reencode: bool = False
) -> tuple[str, ...]:
  """Sentences about how `evaluate` makes its numbers and which metrics it leaves out."""
  found = []
  if not _compares(records):
    way = 'tokens before are decoded and encoded again' if reencode else 'one pass on token ids'
    found.append(f'Token accuracy by teacher forcing, {way}; the score is that of the accuracies.')
  if generation is not None:
    found += generation.notes()
    if not any(r.generation_prompts for r in records if generation.chooses(r)):
      found.append('Fluency and consistency have no value: no record has generation prompts.')
  return tuple(found)


def _jobs(
  parts: Sequence[tuple[slice, LanguageModel]],
  before: LanguageModel | None,
  num_records: int,
  num_unedited: int,
) -> Iterator[Job]:
  """Chunks of every part; each part is asked its share of the other questions first."""
  asked = [('before', [(slice(0, num_records), before)])] if before is not None else []
  for state, models in [*asked, ('after', list(parts))]:
    bounds = np.linspace(0, num_unedited, len(models) + 1).astype(int).tolist()
    for (part, lm), share in zip(models, zip(bounds[:-1], bounds[1:], strict=True), strict=True):
      start, stop, _ = part.indices(num_records)
      questions = slice(*share)
      for first in range(start, stop, _CHUNK):
        yield Job(state, lm, slice(first, min(first + _CHUNK, stop)), questions)  # type: ignore[arg-type]
        questions = slice(share[1], share[1])


def _run(
  job: Job,
  records: Sequence[Record],
  unedited: Sequence[tuple[str, str]],
  how: How,
  shapes: Sequence[tuple[int, int, int]],
  progress: Progress,
) -> Found:
  """Asks one model one chunk."""
  chunk = records[job.records]
  questions = _ask(chunk, unedited[job.unedited])
  config, params, tokenizer = job.lm.config, job.lm.params, job.lm.tokenizer
  plan = plan_batches(
    encode_many(tokenizer, questions.rows, config.position_limit),
    config.vocab_size,
    tokens_per_batch=how.tokens_per_batch,
    shapes=shapes,
  )
  scores = score_plan(config, params, plan, on_batch=progress.update)
  if how.reencode and not _compares(chunk):
    again = zsre_reference.token_accuracy(job.lm, questions.rows)
    scores = dataclasses.replace(scores, is_top_NxT=again)
  values = _values(scores, questions)
  if how.generation is not None:
    values |= measure_texts(job.lm, chunk, how.generation)
  return Found(values, 100 * scores.exact_N[questions.unedited], plan.shapes)


def _joined(values: Sequence[Values]) -> Values:
  names = dict.fromkeys(name for each in values for name in each)
  return {name: np.concatenate([each[name] for each in values]) for name in names}


def _length(part: slice) -> int:
  return part.stop - part.start


def _compares(records: Sequence[Record]) -> bool:
  """Whether the records compare two objects."""
  return records[0].request.target_true is not None


def _check(records: Sequence[Record]) -> None:
  if not records:
    raise UserError('There are no records to evaluate; give at least one.')
  compares = _compares(records)
  for record in records:
    if (record.request.target_true is not None) != compares:
      raise UserError(
        f'Record {record.case_id} has {"no" if compares else "a"} true answer, unlike record '
        f'{records[0].case_id}; evaluate records with and without one apart.'
      )


def _num_rows(records: Sequence[Record]) -> int:
  prompts = sum(len(p) for record in records for p, _, _ in _prompts(record).values())
  return prompts * (2 if _compares(records) else 1)


def _ask(records: Sequence[Record], unedited: Sequence[tuple[str, str]]) -> _Questions:
  """Writes down every text that the metrics need."""
  compares = _compares(records)
  rows: list[Row] = []
  parts = []

  def add(new: list[Row]) -> np.ndarray:
    rows.extend(new)
    return np.arange(len(rows) - len(new), len(rows))

  for record in records:
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
