"""Edit requests and records from the public data files, in their original schemas.

CounterFact and Multi-CounterFact share one schema; zsRE is the slice that MEND evaluates on; the
flat schema of EasyEdit is the usual form of edits by the ten thousand.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from absl import logging

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
  try:
    raw = json.loads(file.read_text('utf-8'))
  except OSError as error:
    raise UserError(f'{file} cannot be read ({error.strerror}); give a JSON file.') from error
  except ValueError as error:
    raise UserError(f'{file} is not JSON ({error}); give a JSON list of records.') from error
  if not isinstance(raw, list) or not raw:
    raise UserError(f'{file} holds no list of records; give a JSON list with one or more.')
  if kind is None:
    kind = _detect(file, raw[0])
  if kind not in _READERS:
    raise UserError(f'There is no kind of records {kind!r}; choose one of {", ".join(_READERS)}.')
  records = [_READERS[kind](_Fields(file, n, entry)) for n, entry in enumerate(raw)]
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


class _Fields:
  """Typed access to one raw record; errors name file, record and field."""

  def __init__(self, file: pathlib.Path, index: int, raw: Any):
    self.index = index
    self._raw = raw
    self._label = f'{file}: record {index}'
    if not isinstance(raw, dict):
      raise UserError(f'{self._label} is no JSON object; give one with the fields of the schema.')
    if type(raw.get('case_id')) is int:  # not True or False
      self._label += f' (case_id {raw["case_id"]})'

  def _value(self, name: str) -> Any:
    value = self._raw
    for key in name.split('.'):
      if not isinstance(value, dict) or key not in value:
        raise UserError(f"{self._label} lacks the field '{name}'; add it or leave the record out.")
      value = value[key]
    return value

  def text(self, name: str) -> str:
    value = self._value(name)
    if not isinstance(value, str) or not value.strip():
      raise self.error(f"has {value!r} in the field '{name}'", 'give a non-empty string')
    return value

  def label(self, name: str) -> str | None:
    """An optional identifier."""
    try:
      value = self._value(name)
    except UserError:
      return None
    return None if value is None else str(value)

  def integer(self, name: str) -> int:
    value = self._value(name)
    if not isinstance(value, int) or isinstance(value, bool):
      raise self.error(f"has {value!r} in the field '{name}'", 'give an integer')
    return value

  def texts(self, name: str) -> tuple[str, ...]:
    value = self._value(name)
    if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
      raise self.error(f"has no list of strings in the field '{name}'", 'give one')
    return tuple(value)

  def error(self, what: str, remedy: str) -> UserError:
    return UserError(f'{self._label} {what}; {remedy}.')

  def template(self, name: str, subject: str) -> str:
    """The text of a field with the last occurrence of the subject turned into the hole."""
    text = self.text(name)
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


def _read_counterfact(fields: _Fields) -> Record:
  rewrite = 'requested_rewrite.'
  case_id = fields.integer('case_id')
  return Record(
    case_id=case_id,
    request=fields.request(
      fields.text(rewrite + 'prompt'),
      fields.text(rewrite + 'subject'),
      fields.text(rewrite + 'target_new.str'),
      fields.text(rewrite + 'target_true.str'),
      case_id,
    ),
    paraphrase_prompts=fields.texts('paraphrase_prompts'),
    neighborhood_prompts=fields.texts('neighborhood_prompts'),
    attribute_prompts=fields.texts('attribute_prompts'),
    generation_prompts=fields.texts('generation_prompts'),
    relation_id=fields.label(rewrite + 'relation_id'),
    target_id=fields.label(rewrite + 'target_new.id'),
    target_true_id=fields.label(rewrite + 'target_true.id'),
  )


def _read_zsre(fields: _Fields) -> Record:
  subject = fields.text('subject')
  answers = fields.texts('answers')
  if not answers:
    raise fields.error("has an empty list in the field 'answers'", 'give at least one answer')
  return Record(
    case_id=fields.index,
    request=fields.request(
      fields.template('src', subject), subject, answers[0], None, fields.index
    ),
    paraphrase_prompts=(fields.text('rephrase'),),
    neighborhood_prompts=(fields.text('loc') + '?',),
    neighborhood_target=fields.text('loc_ans'),
  )


def _read_easyedit(fields: _Fields) -> Record:
  case_id = fields.integer('case_id')
  subject = fields.text('subject')
  target_true = fields.text('ground_truth')
  answer = fields.text('locality_ground_truth')
  return Record(
    case_id=case_id,
    request=fields.request(
      fields.template('prompt', subject),
      subject,
      fields.text('target_new'),
      target_true,
      case_id,
    ),
    paraphrase_prompts=(fields.text('rephrase_prompt'),),
    neighborhood_prompts=(fields.text('locality_prompt'),),
    neighborhood_target=None if answer == target_true else answer,
  )


def _read_known(fields: _Fields) -> Record:
  subject = fields.text('subject')
  known_id = fields.integer('known_id')
  return Record(
    case_id=known_id,
    request=fields.request(
      fields.template('prompt', subject), subject, fields.text('attribute'), None, known_id
    ),
    relation_id=fields.label('relation_id'),
  )


_READERS: dict[str, Callable[[_Fields], Record]] = {
  'counterfact': _read_counterfact,
  'multi_counterfact': _read_counterfact,
  'zsre': _read_zsre,
  'easyedit': _read_easyedit,
  'known': _read_known,
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
