"""Texts of training steps, and one step of either method."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jedit.hypernetworks import malmen, mend
from jedit.hypernetworks.net import Params
from jedit.hypernetworks.rows import Losses
from jedit.hypernetworks.settings import MEND, Plan, Settings
from jedit.hypernetworks.statistics import Statistics
from jedit.hypernetworks.texts import (
  HiddenStates,
  Texts,
  can_pack,
  denominators,
  group_size,
  ids_of,
  make_texts,
  num_reads,
  texts_at_once,
)
from jedit.models.encoding import Encoded, Row, encode_many
from jedit.models.language_model import LanguageModel
from jedit.parallel.shapes import bucket, round_up
from jedit.types import Record, UserError


@dataclasses.dataclass(frozen=True)
class StepTexts:
  """Texts of a step in chunks of whole groups; MEND has one chunk.

  Attributes:
    inner: the edits.
    outer: a paraphrase of each, with its target.
    locality: unrelated prompts with their answers.
    num_groups: updates of MEND, mini-batches of MALMEN, in all chunks together.
  """

  inner: tuple[Texts, ...]
  outer: tuple[Texts, ...]
  locality: tuple[Texts, ...]
  num_groups: int


class Examples:
  """Records as numbered texts: edits, their paraphrases, and unrelated prompts.

  Args:
    lm: the model that the texts are tokenised for.
    records: each with at least one paraphrase and one neighborhood prompt with its answer.
    settings: of the method.
    seed: of the order in which the paraphrases and prompts of a record are used, one per epoch.

  Raises:
    UserError: names the record and the field that it lacks.
  """

  def __init__(
    self, lm: LanguageModel, records: Sequence[Record], settings: Settings, seed: int = 0
  ):
    kinds: list[list[list[Row]]] = [[], [], []]  # edits, paraphrases, unrelated prompts by record
    for record, draw in zip(records, np.random.default_rng([seed, 2]).spawn(len(records))):
      request = record.request
      answer = record.neighborhood_target or request.target_true
      lacking = [
        name for name in ('paraphrase_prompts', 'neighborhood_prompts') if not getattr(record, name)
      ]
      lacking += [] if answer else ['neighborhood_target']
      if lacking:
        raise UserError(
          f'Record {record.case_id} has no {lacking[0]}, and an editor is trained on paraphrases '
          'and on unrelated prompts with their answers; add it or leave the record out.'
        )
      paraphrases = [Row(text, target=request.target_new) for text in record.paraphrase_prompts]
      unrelated = [Row(text, target=answer) for text in record.neighborhood_prompts]
      kinds[0].append([Row(request.prompt, request.subject, request.target_new)])
      kinds[1].append([paraphrases[n] for n in draw.permutation(len(paraphrases))])
      kinds[2].append([unrelated[n] for n in draw.permutation(len(unrelated))])
    # The texts of a step in the first epoch have numbers in a row: they run together, once.
    rows: list[Row] = []
    self._numbers: list[list[list[int]]] = []
    for kind in kinds:
      numbers: list[list[int]] = [[] for _ in records]
      for variant in range(max(map(len, kind))):
        for record_number, variants in enumerate(kind):
          if variant < len(variants):
            numbers[record_number].append(len(rows))
            rows.append(variants[variant])
      self._numbers.append(numbers)
    self.texts: list[Encoded] = encode_many(lm.tokenizer, rows, lm.config.position_limit)
    first = self._numbers[2][0][0]  # of the unrelated prompts
    self._reads = ['answer'] * first + [settings.locality_tokens] * (len(rows) - first)
    self._settings, self._model = settings, lm.model
    tokens = list(map(ids_of, self.texts, self._reads))
    self._lengths = [len(row) for row in tokens]
    self._hidden = HiddenStates(lm.model, settings.edited_layers[0], tokens)
    self._most = []  # padded tokens and predictions of each kind
    for kind_numbers in self._numbers:
      every = [number for variants in kind_numbers for number in variants]
      targets = max(len(self.texts[number].target_ids) for number in every)
      longest = max(self._lengths[number] for number in every)
      self._most.append((round_up(longest, 8), bucket(targets, smallest=1)))
    counts = [len(self.texts[number].target_ids) for [number] in self._numbers[0]]
    self.tokens_per_edit = float(np.mean(counts))

  def numbers(self, records: Sequence[int], epoch: int = 0) -> list[list[int]]:
    """Numbers of the edits of some records, and of the paraphrases and prompts of an epoch."""
    return [[kind[r][epoch % len(kind[r])] for r in records] for kind in self._numbers]

  def texts_of(self, numbers: Sequence[Sequence[int]], num_groups: int | None = None) -> StepTexts:
    """Arrays of numbered texts, in chunks that fit the devices.

    Args:
      numbers: of edits, paraphrases and unrelated prompts, group after group.
      num_groups: None for groups of the method's size, of which the last may hold fewer.
    """
    settings = self._settings
    self._check_rows(numbers[0])
    count = num_groups or -(-len(numbers[0]) // group_size(settings))
    per_chunk = count
    if settings.name != MEND:
      length = max(self._lengths[number] for part in numbers for number in part)
      at_once = texts_at_once(self._model, settings.edited_layers[0], length)
      per_chunk = min(count, max(1, at_once // group_size(settings)))
    parts = [tuple(self._chunks(kind, count, per_chunk)) for kind in enumerate(numbers)]
    return StepTexts(parts[0], parts[1], parts[2], round_up(count, per_chunk))

  def forget(self) -> None:
    """Drops the hidden states that are kept, for timing."""
    self._hidden.forget()

  def _check_rows(self, numbers: Sequence[int]) -> None:
    """Refuses a mini-batch of a single row, for which the released variance is undefined."""
    settings, size = self._settings, group_size(self._settings)
    if settings.statistics != 'released' or settings.cached_tokens != 'answer':
      return
    for start in range(0, len(numbers), size):
      texts = [self.texts[number] for number in numbers[start : start + size]]
      if sum(len(text.target_ids) for text in texts) < 2:
        raise UserError(
          f'The mini-batch of {texts[0].text!r} has a single row, whose variance the released code '
          "divides by 0; increase mini_batch_size, or choose statistics='exact'."
        )

  def _chunks(self, kind: tuple[int, Sequence[int]], count: int, per_chunk: int) -> list[Texts]:
    """Texts of one numbered kind, `per_chunk` of the `count` groups at a time, in one shape."""
    which, numbers = kind
    reads, size = self._reads[numbers[0]], -(-len(numbers) // count)
    texts = [self.texts[number] for number in numbers]
    each = [num_reads(text, reads) for text in texts]
    divided = denominators(each, size)
    # MEND's texts stay with their updates, and where every token is cached, so do MALMEN's edits.
    packs = self._settings.name != MEND and can_pack(self._model)
    packs &= which > 0 or self._settings.cached_tokens == 'answer'
    # Shapes are compiled: one for all steps of MEND, whose kinds share a program, else few.
    longest = max(self._lengths[number] for number in numbers)
    most_tokens, most_reads = self._most[which]
    is_fixed = packs or self._settings.name == MEND
    num_tokens = most_tokens if is_fixed else round_up(longest, 8)
    found = []
    for first in range(0, len(numbers), size * per_chunk):
      part = slice(first, first + size * per_chunk)
      found.append(
        make_texts(
          self._hidden,
          numbers[part],
          texts[part],
          divided[part],
          reads=reads,
          num_tokens=num_tokens,
          num_reads=num_tokens if reads == 'all' else most_reads,
          num_texts=size * per_chunk,
          packs=packs,
        )
      )
    return found


def run_step(
  model: Any,
  params: Params,
  statistics: Mapping[str, Statistics],
  texts: StepTexts,
  settings: Settings,
  plan: Plan,
  trains: bool = True,
) -> tuple[Any, dict[str, Statistics], Losses]:
  """Gradient, statistics and losses of a step of the method; see `mend.step`, `malmen.step`."""
  if settings.name == MEND:
    [inner], [outer], [locality] = texts.inner, texts.outer, texts.locality
    return mend.step(
      model,
      params,
      statistics,
      inner,
      outer,
      locality,
      settings=settings,
      plan=plan,
      num_groups=texts.num_groups,
      trains=trains,
    )
  return malmen.step(
    model,
    params,
    statistics,
    texts.inner,
    texts.outer,
    texts.locality,
    settings,
    plan,
    texts.num_groups,
    trains,
  )
