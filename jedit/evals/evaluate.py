"""Evaluation of a model on the prompts of its records, before and after an edit."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jedit.evals import criteria, metrics, zsre_reference
from jedit.evals.chunks import Chunk, ChunkResult, EvalOptions, Store
from jedit.evals.generation import Generation, generate_texts
from jedit.evals.metrics import PartScores, UneditedScores, Values
from jedit.evals.prompts import FIELDS, Prompts, prompt_values
from jedit.evals.scoring import Scores, default_tokens, plan_batches, score_plan
from jedit.evals.table import Table
from jedit.io.out_of_memory import halve_once
from jedit.io.progress import Progress
from jedit.models import ModelConfig
from jedit.models.encoding import Row, encode_many
from jedit.parallel.memory import check_fits
from jedit.types import Record, UserError

if TYPE_CHECKING:
  from jedit.models.language_model import LanguageModel
  from jedit.models.patch import Patch

_CHUNK = 256  # records per chunk: bounds the memory and the work lost to a kill


@dataclasses.dataclass(frozen=True)
class _ChunkRows:
  """Texts to score, indexed by record and part.

  Attributes:
    rows: all texts, first those of the parts, then the unedited prompts.
    parts: per record, by part, the rows of the wanted object and of the other one, if any.
    unedited: rows of the unedited prompts.
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
  demonstrations: str = '',
  store: str | os.PathLike[str] | None = None,
) -> Table:
  """Measures an edit: efficacy, paraphrase, neighborhood, their score and every other metric.

  Teacher forcing scores both objects after every prompt of every record. Definitions are in
  `jedit.evals.metrics`, for generated texts in `jedit.evals.generation`.

  Args:
    lm: the edited model.
    records: all with two objects (CounterFact) or all with one (zsRE).
    before: the model before the edit, measured on the same texts.
    unedited: prompts about subjects that were not edited, each with its known answer, for
      `unedited_acc` and `unedited_kept`.
    generation: options of generated texts, whose metrics take most of the time; None for none.
    reencode: token accuracies of single-object records by the published procedure of
      `jedit.evals.zsre_reference`; False takes one teacher-forced pass on token ids.
    tokens_per_batch: tokens per forward pass, which bounds the memory; None chooses by device.
    demonstrations: questions with answers ('Q: ... A: ...', one a line), put before the questions
      of MQuAKE.
    store: JSON lines file of finished chunks; after a kill the same call resumes from it, with
      identical results.

  Raises:
    UserError: for no records, records of both kinds, a text that cannot be scored, or a
      probability that is not a number.
  """
  options = EvalOptions(generation, reencode, tokens_per_batch, demonstrations)
  return _measure(lm, [(slice(None), ())], records, before, unedited, options, store)


def evaluate_apart(
  parts: Sequence[tuple[slice, Sequence[Patch]]],
  records: Sequence[Record],
  before: LanguageModel,
  *,
  unedited: Sequence[tuple[str, str]] = (),
  generation: Generation | None = None,
  reencode: bool = False,
  tokens_per_batch: int | None = None,
  demonstrations: str = '',
  store: str | os.PathLike[str] | None = None,
) -> Table:
  """Measures separate edits of one model, each on its own records, as one table.

  One edited model exists at a time: built from its patches, measured and dropped.

  Args:
    parts: slices of the records with their patches to `before`; together all records, in order.
    records: as in `evaluate`.
    before: the model before the edits.
    unedited: as in `evaluate`; each edited model is measured on its share, in order.
    generation, reencode, tokens_per_batch, demonstrations, store: as in `evaluate`.

  Returns:
    The table, as if one model had been measured on all records.

  Raises:
    UserError: as `evaluate`.
  """
  options = EvalOptions(generation, reencode, tokens_per_batch, demonstrations)
  return _measure(before, parts, records, before, unedited, options, store)


def _measure(
  lm: LanguageModel,
  parts: Sequence[tuple[slice, Sequence[Patch]]],
  records: Sequence[Record],
  before: LanguageModel | None,
  unedited: Sequence[tuple[str, str]],
  options: EvalOptions,
  store: str | os.PathLike[str] | None,
) -> Table:
  """`_measure_all`, if necessary with smaller batches."""
  _check(records)
  size = options.tokens_per_batch or default_tokens()

  def run(tokens: int) -> Table:
    chosen = options if tokens == size else dataclasses.replace(options, tokens_per_batch=tokens)
    return _measure_all(lm, parts, records, before, unedited, chosen, store)

  field = 'evaluation.tokens_per_batch'
  return halve_once(run, size, stage='evaluate', field=field, most=size)


def _measure_all(
  lm: LanguageModel,
  parts: Sequence[tuple[slice, Sequence[Patch]]],
  records: Sequence[Record],
  before: LanguageModel | None,
  unedited: Sequence[tuple[str, str]],
  options: EvalOptions,
  store: str | os.PathLike[str] | None,
) -> Table:
  """Runs all chunks missing from the store and joins the results."""
  sizes = len(records), len(unedited)
  by_part = [] if before is None else [*_chunks('before', before, [(slice(None), ())], *sizes)]
  by_part += _chunks('after', lm, parts, *sizes)
  total = sum(_num_rows(records, chunk) for chunks in by_part for chunk in chunks)
  results: dict[str, list[ChunkResult]] = {'before': [], 'after': []}
  shapes: tuple[tuple[int, int], ...] = ()
  stored = Store(store)
  with stored, Progress('evaluate', total=total, unit='prompts') as progress:
    for chunks in by_part:
      edited = None  # drops the model of the previous part
      for chunk in chunks:
        done = progress.done
        key = stored.key(chunk, records[chunk.records], unedited[chunk.unedited], options)
        result = stored.get(key)
        if result is None:
          edited = edited or _apply(chunk)
          result = _run(edited, chunk, records, unedited, options, shapes, progress)
          stored.put(key, chunk, result)
        progress.update(done + _num_rows(records, chunk) - progress.done)
        shapes = tuple(sorted({*shapes, *result.shapes}))
        results[chunk.state].append(result)
  values = {state: _joined(found) for state, found in results.items()}
  if any(record.criteria for record in records):
    outcomes = {s: [o for each in found for o in each.criteria] for s, found in results.items()}
    earlier = None if before is None else outcomes['before']
    for state, more in criteria.values(records, earlier, outcomes['after']).items():
      values[state] |= more
  unedited_values = _unedited_values(results) if unedited else {}
  generation = options.generation
  return Table(
    case_ids=tuple(record.case_id for record in records),
    after=values['after'],
    before=None if before is None else values['before'],
    unedited_after=unedited_values.get('after', {}),
    unedited_before=unedited_values.get('before', {}),
    is_generated_R=None if generation is None else np.array(list(map(generation.chooses, records))),
    notes=_notes(records, options, before is not None),
    prompts=_by_prompt(records, results),
  )


def _by_prompt(records: Sequence[Record], results: Mapping[str, Sequence[ChunkResult]]) -> Prompts:
  """The prompts of all records with their scores in both states."""
  places = [
    (number, part, _filled(row), *((other, wanted) if part == 'neighborhood' else (wanted, other)))
    for number, record in enumerate(records)
    for part, (rows, wanted, other) in _prompts(record).items()
    for row in rows
  ]
  record_P, part_P, text_P, new_P, true_P = zip(*places, strict=True)
  states = {
    state: {name: np.concatenate([each.prompts[name] for each in found]) for name in FIELDS}
    for state, found in results.items()
    if found
  }
  return Prompts(np.array(record_P), part_P, text_P, new_P, true_P, **states)


def check_texts(
  tokenizer: Any,
  config: ModelConfig,
  records: Sequence[Record],
  unedited: Sequence[tuple[str, str]] = (),
  demonstrations: str = '',
) -> int:
  """Checks records and prompts before any work, as `evaluate` does.

  Returns:
    Tokens of the longest text.

  Raises:
    UserError: for what `evaluate` refuses, texts whose attention does not fit into memory, and a
      tokenizer with tokens that the model lacks.
  """
  _check(records)
  forced, prompts = criteria.rows(records, demonstrations)
  texts = [*_chunk_rows(records, unedited).rows, *forced]
  rows = encode_many(tokenizer, texts, config.position_limit)
  continued = (
    max((len(ids) for ids in tokenizer(prompts)['input_ids']), default=0) if prompts else 0
  )
  config.check_length(continued + criteria.NEW_TOKENS if prompts else 0)
  longest = max(len(row.ids) for row in rows)
  check_fits(f'A text of {longest} tokens', 4 * config.num_heads * longest**2, 'shorten it')
  top = max(max(row.ids) for row in rows)
  if top >= config.vocab_size:
    raise UserError(
      f'The tokenizer gives token {top} and the model has {config.vocab_size}; give the tokenizer '
      'of this model.'
    )
  return longest


def _notes(records: Sequence[Record], options: EvalOptions, has_before: bool) -> tuple[str, ...]:
  """Sentences about the procedure and omitted metrics."""
  found, generation = [], options.generation
  if not _compares(records):
    way = (
      'tokens before are decoded and encoded again' if options.reencode else 'one pass on token ids'
    )
    found.append(f'Token accuracy by teacher forcing, {way}; the score is that of the accuracies.')
  if generation is not None:
    found += generation.notes()
    if not any(r.generation_prompts for r in records if generation.chooses(r)):
      found.append('Fluency and consistency have no value: no record has generation prompts.')
  return (*found, *criteria.notes(records, has_before, options.demonstrations))


def _chunks(
  state: str,
  lm: LanguageModel,
  parts: Sequence[tuple[slice, Sequence[Patch]]],
  num_records: int,
  num_unedited: int,
) -> Iterator[list[Chunk]]:
  """Chunks of each part; the first chunk holds the part's share of the unedited prompts."""
  bounds = np.linspace(0, num_unedited, len(parts) + 1).astype(int).tolist()
  for (part, patches), *share in zip(parts, bounds[:-1], bounds[1:], strict=True):
    start, stop, _ = part.indices(num_records)
    chunks = []
    for first in range(start, stop, _CHUNK):
      chosen = slice(first, min(first + _CHUNK, stop))
      chunks.append(Chunk(state, lm, patches, chosen, slice(*share)))
      share = [share[1], share[1]]
    yield chunks


def _apply(chunk: Chunk) -> LanguageModel:
  """The model of a chunk."""
  lm = chunk.lm
  for patch in chunk.patches:
    lm = lm.apply(patch)
  return lm


def _run(
  lm: LanguageModel,
  chunk: Chunk,
  records: Sequence[Record],
  unedited: Sequence[tuple[str, str]],
  options: EvalOptions,
  shapes: Sequence[tuple[int, int]],
  progress: Progress,
) -> ChunkResult:
  """Measures one chunk."""
  chosen = records[chunk.records]
  texts = _chunk_rows(chosen, unedited[chunk.unedited])
  encoded = encode_many(lm.tokenizer, texts.rows, lm.config.position_limit)
  plan = plan_batches(
    encoded,
    tokens_per_batch=options.tokens_per_batch,
    shapes=shapes,
  )
  scores = score_plan(lm.model, plan, on_batch=progress.update)
  bad = np.flatnonzero(np.isnan(scores.nll_N))
  if len(bad):
    raise UserError(
      f'The probabilities of {len(bad)} texts {chunk.state} the edit are not numbers, the first '
      f'that of {encoded[bad[0]].text!r}; edit with a lower learning rate, or load the model in '
      'float32.'
    )
  if options.reencode and not _compares(chosen):
    again = zsre_reference.token_accuracy(lm, texts.rows)
    scores = dataclasses.replace(scores, is_top_NxT=again)
  evidence: list[dict[str, Any]] = [
    {part: _part_scores(scores, *rows) for part, rows in parts.items()} for parts in texts.parts
  ]
  if options.generation is not None:
    generated = generate_texts(lm, chosen, options.generation)
    for each, of_record in zip(evidence, generated, strict=True):
      each |= {} if of_record is None else {metrics.TEXTS: of_record}
  outcomes = criteria.measure(lm, chosen, options.demonstrations, options.tokens_per_batch)
  values, by_prompt = metrics.all_values(evidence), prompt_values(evidence)
  return ChunkResult(values, by_prompt, scores.exact_N[texts.unedited], plan.shapes, outcomes)


def _part_scores(scores: Scores, wanted: np.ndarray, other: np.ndarray | None) -> PartScores:
  if other is None:
    return PartScores(scores.token_acc_N[wanted], scores.nll_N[wanted])
  return PartScores(scores.exact_N[wanted], scores.nll_N[wanted], scores.nll_N[other])


def _joined(results: Sequence[ChunkResult]) -> Values:
  """Values of all records; nan in chunks without the metric."""
  names = [name for name in metrics.METRICS if any(name in each.values for each in results)]
  missing = [np.full_like(next(iter(each.values.values())), np.nan) for each in results]
  return {
    name: np.concatenate(
      [each.values.get(name, nan_R) for each, nan_R in zip(results, missing, strict=True)]
    )
    for name in names
  }


def _unedited_values(results: dict[str, list[ChunkResult]]) -> dict[str, Values]:
  """Values of the unedited prompts, by state."""
  exact = {
    state: np.concatenate([each.unedited_exact_N for each in found])
    for state, found in results.items()
    if found
  }
  scores = {'after': UneditedScores(exact['after'], exact.get('before'))}
  if 'before' in exact:
    scores['before'] = UneditedScores(exact['before'])
  return {state: metrics.record_values({metrics.UNEDITED: each}) for state, each in scores.items()}


def _compares(records: Sequence[Record]) -> bool:
  """True if the records have two objects each."""
  return records[0].request.target_true is not None


def _check(records: Sequence[Record]) -> None:
  if not records:
    raise UserError('The evaluation has no records; give at least one.')
  compares = _compares(records)
  for record in records:
    if (record.request.target_true is not None) != compares:
      raise UserError(
        f'Record {record.case_id} has {"no" if compares else "a"} true answer, unlike record '
        f'{records[0].case_id}; evaluate records with and without one separately.'
      )


def _num_rows(records: Sequence[Record], chunk: Chunk) -> int:
  """Texts that a chunk scores."""
  chosen = records[chunk.records]
  prompts = sum(len(p) for record in chosen for p, _, _ in _prompts(record).values())
  prompts *= 2 if _compares(records) else 1
  return prompts + chunk.unedited.stop - chunk.unedited.start + criteria.count(chosen)


def _chunk_rows(records: Sequence[Record], unedited: Sequence[tuple[str, str]]) -> _ChunkRows:
  """All texts that the metrics need."""
  compares = _compares(records)
  rows: list[Row] = []
  parts = []

  def add(prompts: Sequence[Row], target: str | None) -> np.ndarray:
    rows.extend(dataclasses.replace(prompt, target=target) for prompt in prompts)
    return np.arange(len(rows) - len(prompts), len(rows))

  for record in records:
    parts.append(
      {
        part: (add(prompts, wanted), add(prompts, other) if compares else None)
        for part, (prompts, wanted, other) in _prompts(record).items()
      }
    )
  rows += [Row(prompt, target=answer) for prompt, answer in unedited]
  return _ChunkRows(tuple(rows), tuple(parts), np.arange(len(rows) - len(unedited), len(rows)))


def _filled(prompt: Row) -> str:
  return prompt.prompt if prompt.subject is None else prompt.prompt.replace('{}', prompt.subject)


def _prompts(record: Record) -> dict[str, tuple[list[Row], str | None, str | None]]:
  """By part: the prompts, the wanted object and the one compared with it."""
  request = record.request
  stays = record.neighborhood_target or request.target_true
  neighborhood = record.neighborhood_prompts if stays else ()
  return {
    'efficacy': (
      [Row(request.prompt, request.subject)],
      request.target_new,
      request.target_true,
    ),
    'paraphrase': (
      [Row(prompt) for prompt in record.paraphrase_prompts],
      request.target_new,
      request.target_true,
    ),
    'neighborhood': ([Row(prompt) for prompt in neighborhood], stays, request.target_new),
  }
