"""Edit requests and records from the public data files, in their original schemas.

CounterFact and Multi-CounterFact share one schema; zsRE is the slice that MEND evaluates on; the
flat schema of EasyEdit is the usual form of edits by the ten thousand.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from absl import logging

from jedit.io import schema
from jedit.io.schema import Text
from jedit.types import Record, Request, UserError

Kind = Literal['counterfact', 'multi_counterfact', 'zsre', 'easyedit', 'known']


def load_records(path: str | os.PathLike[str], kind: Kind | None = None) -> list[Record]:
  """Reads every record of a file.

  zsRE: the subject becomes the hole of `src`; in a question that names it twice the last occurrence
  does (as a whole word where there is one), and earlier ones stay as text. The target is
  `answers[0]`, the true answer is unknown, the neighbourhood prompt is `loc` and a question mark
  with `loc_ans` as its answer, and `case_id` is the position in the file. EasyEdit: the hole is
  found in the same way. Known facts (ROME's known_1000.json, for probes): the hole as before; the
  target is the attribute, which the model predicts already.

  Args:
    path: a JSON file.
    kind: its schema; None detects it from the fields of the first record.

  Returns:
    The records in file order. A target equal to the true answer is kept, with a warning.

  Raises:
    UserError: if the file cannot be read or a record lacks a field or has an unusable one; names
      file, record and field.
  """
  file = pathlib.Path(path)
  raw = schema.read_json(file)
  if not isinstance(raw, list) or not raw:
    raise UserError(f'{file} holds no list of records; give a JSON list with one or more.')
  if kind is None:
    kind = _detect(file, raw[0])
  if kind not in _SCHEMAS:
    raise UserError(f'There is no kind of records {kind!r}; choose one of {", ".join(_SCHEMAS)}.')
  records = []
  for n, each in enumerate(raw):
    entry = _Entry.of(file, n, each)
    records.append(schema.check(_SCHEMAS[kind], each, entry.label).to_record(entry))
  seen: dict[int, int] = {}
  for n, record in enumerate(records):
    if seen.setdefault(record.case_id, n) != n:
      raise UserError(
        f'{file}: records {seen[record.case_id]} and {n} both have case_id {record.case_id}; '
        'give each its own.'
      )
    if _same(record.request.target_new, record.request.target_true):
      logging.warning(
        '%s: record %d has target %r, which is the true answer already; the edit changes nothing.',
        file,
        record.case_id,
        record.request.target_new,
      )
  return records


def select(
  records: Sequence[Record],
  num: int | None = None,
  seed: int | None = None,
  *,
  unique_subjects: bool = False,
) -> list[Record]:
  """The first `num` records, or with a seed `num` drawn without replacement, in drawn order.

  `unique_subjects` keeps the first record about each subject.

  Raises:
    UserError: if there are fewer than `num`, or `num` is below 1.
  """
  order = list(records)
  if seed is not None:
    order = [records[i] for i in np.random.default_rng(seed).permutation(len(records))]
  if unique_subjects:
    order = list({record.request.subject: record for record in reversed(order)}.values())[::-1]
  num = len(order) if num is None else num
  if not 1 <= num <= len(order):
    about = ' about different subjects' if unique_subjects else ''
    raise UserError(f'{num} records{about} are wanted and {len(order)} exist; select fewer.')
  return order[:num]


@dataclasses.dataclass(frozen=True)
class Conflicts:
  """Requests that interfere when they are edited together.

  Attributes:
    contradictory: groups with the same filled-in prompt and different targets, of which at most one
      can hold.
    same_subject: groups about one subject (contradictory ones included), whose keys are similar.
  """

  contradictory: tuple[tuple[Request, ...], ...]
  same_subject: tuple[tuple[Request, ...], ...]

  def sentences(self) -> tuple[str, ...]:
    """One sentence for each kind of conflict, to print before editing."""
    found = []
    if self.contradictory:
      group = self.contradictory[0]
      targets = ' and '.join(sorted({repr(request.target_new) for request in group}))
      found.append(
        f'{len(self.contradictory)} prompts have several targets, the first '
        f'{group[0].text!r} {targets}{_cases(group)}; at most one of them can hold.'
      )
    if self.same_subject:
      group = max(self.same_subject, key=len)
      found.append(
        f'{len(self.same_subject)} subjects occur in several requests, most often '
        f'{group[0].subject!r} in {len(group)}{_cases(group)}; their keys are similar.'
      )
    return tuple(found)


def find_conflicts(requests: Iterable[Request]) -> Conflicts:
  """Groups contradictory requests and requests about one subject, in order of appearance."""
  by_text: dict[str, list[Request]] = {}
  by_subject: dict[str, list[Request]] = {}
  for request in requests:
    by_text.setdefault(request.text, []).append(request)
    by_subject.setdefault(request.subject, []).append(request)
  return Conflicts(
    tuple(
      tuple(group)
      for group in by_text.values()
      if len({request.target_new.strip() for request in group}) > 1
    ),
    tuple(tuple(group) for group in by_subject.values() if len(group) > 1),
  )


_Id = Annotated[int, pydantic.Field(ge=-(2**63), lt=2**63)]
# An optional identifier, as text.
_Label = Annotated[
  str | None, pydantic.BeforeValidator(lambda given: str(given) if type(given) is int else given)
]


@dataclasses.dataclass(frozen=True)
class _Entry:
  """The place of a record; errors name file and record.

  Attributes:
    index: in the file, from 0.
    label: file, index and case_id.
  """

  index: int
  label: str

  @classmethod
  def of(cls, file: pathlib.Path, index: int, raw: Any) -> '_Entry':
    case_id = raw.get('case_id') if isinstance(raw, dict) else None
    case = f' (case_id {case_id})' if type(case_id) is int else ''  # not True or False
    return cls(index, f'{file}: record {index}{case}')

  def error(self, what: str, remedy: str) -> UserError:
    return UserError(f'{self.label} {what}; {remedy}.')

  def template(self, name: str, text: str, subject: str) -> str:
    """The text of a field with the last occurrence of the subject turned into the hole."""
    # Whole words first: 'Al' must not match in 'Also'.
    words = [found.start() for found in re.finditer(rf'(?<!\w){re.escape(subject)}(?!\w)', text)]
    start = words[-1] if words else text.rfind(subject)
    if start < 0:
      raise self.error(
        f"does not name its subject {subject!r} in the field '{name}'", 'write the subject there'
      )
    return text[:start] + '{}' + text[start + len(subject) :]

  def request(
    self, prompt: str, subject: str, target: str, target_true: str | None, case_id: int
  ) -> Request:
    holes = prompt.count('{}')
    if holes != 1:
      raise self.error(
        f'has prompt {prompt!r} with {holes} places for the subject', "write exactly one '{}'"
      )
    return Request(prompt, subject, target, target_true, case_id)


class _Object(schema.Fields):
  """An object of CounterFact."""

  text: Text = pydantic.Field(alias='str')
  id: _Label = None


class _Rewrite(schema.Fields):
  prompt: Text
  subject: Text
  target_new: _Object
  target_true: _Object
  relation_id: _Label = None


class _CounterFact(schema.Fields):
  case_id: _Id
  requested_rewrite: _Rewrite
  paraphrase_prompts: list[Text]
  neighborhood_prompts: list[Text]
  attribute_prompts: list[Text]
  generation_prompts: list[Text]

  def to_record(self, entry: _Entry) -> Record:
    edit, case_id = self.requested_rewrite, self.case_id
    new, true = edit.target_new, edit.target_true
    return Record(
      case_id=case_id,
      request=entry.request(edit.prompt, edit.subject, new.text, true.text, case_id),
      paraphrase_prompts=tuple(self.paraphrase_prompts),
      neighborhood_prompts=tuple(self.neighborhood_prompts),
      attribute_prompts=tuple(self.attribute_prompts),
      generation_prompts=tuple(self.generation_prompts),
      relation_id=edit.relation_id,
      target_id=new.id,
      target_true_id=true.id,
    )


class _ZsRE(schema.Fields):
  subject: Text
  src: Text
  answers: Annotated[list[Text], pydantic.Field(min_length=1)]
  rephrase: Text
  loc: Text
  loc_ans: Text

  def to_record(self, entry: _Entry) -> Record:
    prompt = entry.template('src', self.src, self.subject)
    return Record(
      case_id=entry.index,
      request=entry.request(prompt, self.subject, self.answers[0], None, entry.index),
      paraphrase_prompts=(self.rephrase,),
      neighborhood_prompts=(self.loc + '?',),
      neighborhood_target=self.loc_ans,
    )


class _EasyEdit(schema.Fields):
  case_id: _Id
  subject: Text
  prompt: Text
  target_new: Text
  ground_truth: Text
  rephrase_prompt: Text
  locality_prompt: Text
  locality_ground_truth: Text

  def to_record(self, entry: _Entry) -> Record:
    prompt = entry.template('prompt', self.prompt, self.subject)
    answer, true = self.locality_ground_truth, self.ground_truth
    return Record(
      case_id=self.case_id,
      request=entry.request(prompt, self.subject, self.target_new, true, self.case_id),
      paraphrase_prompts=(self.rephrase_prompt,),
      neighborhood_prompts=(self.locality_prompt,),
      neighborhood_target=None if answer == true else answer,
    )


class _Known(schema.Fields):
  known_id: _Id
  subject: Text
  prompt: Text
  attribute: Text
  relation_id: _Label = None

  def to_record(self, entry: _Entry) -> Record:
    prompt = entry.template('prompt', self.prompt, self.subject)
    return Record(
      case_id=self.known_id,
      request=entry.request(prompt, self.subject, self.attribute, None, self.known_id),
      relation_id=self.relation_id,
    )


_SCHEMAS: dict[str, Any] = {
  'counterfact': _CounterFact,
  'multi_counterfact': _CounterFact,
  'zsre': _ZsRE,
  'easyedit': _EasyEdit,
  'known': _Known,
}


def _detect(file: pathlib.Path, first: Any) -> Kind:
  """The schema that the fields of the first record belong to."""
  names = first if isinstance(first, dict) else {}
  if 'requested_rewrite' in names:
    return 'counterfact'
  if 'src' in names or 'loc_ans' in names:
    return 'zsre'
  if 'target_new' in names:
    return 'easyedit'
  if 'known_id' in names:
    return 'known'
  raise UserError(
    f"{file}: record 0 has neither 'requested_rewrite' (CounterFact) nor 'src' (zsRE) nor "
    "'target_new' (EasyEdit) nor 'known_id' (known facts); give a file in one of these schemas."
  )


def _same(target: str, other: str | None) -> bool:
  return other is not None and target.strip() == other.strip()


def _cases(group: Sequence[Request]) -> str:
  """' (records 3, 9, ...)' where the requests come from records."""
  cases = [str(request.case_id) for request in group if request.case_id is not None]
  return f' (records {", ".join(cases[:5])}{", ..." if len(cases) > 5 else ""})' if cases else ''
