"""Edit requests and records from the public data files, in their original schemas.

CounterFact and Multi-CounterFact share one schema; zsRE is the slice that MEND evaluates on; the
flat schema of EasyEdit is the usual form of edits by the ten thousand (`jedit.data.facts`).
KnowEdit, RippleEdits and MQuAKE test what an edit entails (`jedit.data.ripples`).
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from absl import logging

from jedit.data import facts, ripples
from jedit.data.entry import Entry
from jedit.io import schema
from jedit.types import Record, Request, UserError

Kind = Literal[
  'counterfact',
  'multi_counterfact',
  'zsre',
  'easyedit',
  'known',
  'knowedit',
  'ripple_edits',
  'mquake',
]


def load_records(path: str | os.PathLike[str], kind: Kind | None = None) -> list[Record]:
  """Reads every record of a file.

  zsRE: the subject becomes the hole of `src`; in a question that names it twice the last occurrence
  does (as a whole word where there is one), and earlier ones stay as text. The target is
  `answers[0]`, the true answer is unknown, the neighbourhood prompt is `loc` and a question mark
  with `loc_ans` as its answer, and `case_id` is the position in the file. EasyEdit: the hole is
  found in the same way. Known facts (ROME's known_1000.json, for probes): the hole as before; the
  target is the attribute, which the model predicts already. KnowEdit and RippleEdits: likewise,
  without a true answer, because their metrics need none; the subject of RippleEdits, whose files
  give its identifier alone, is read off the wording of the relation. MQuAKE: an instance becomes
  one record for each of its edits.

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
  if kind is not None and kind not in _SCHEMAS:
    raise UserError(f'There is no kind of records {kind!r}; choose one of {", ".join(_SCHEMAS)}.')
  chosen = _SCHEMAS[kind or _detect(file, raw[0])]
  if kind is not None:
    _check_kind(file, kind, raw[0])
  records: list[Record] = []
  for n, each in enumerate(raw):
    entry = Entry.of(file, n, each)
    records += schema.check(chosen, each, entry.label).to_records(entry)
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

  `unique_subjects` keeps the first record about each subject. Instances of several records stay
  whole: one that would exceed `num` is left out, and so is one that loses a record.

  Raises:
    UserError: if there are fewer than `num`, or `num` is below 1.
  """
  instances = _instances(records)
  if seed is not None:
    drawn = np.random.default_rng(seed).permutation(len(instances))
    instances = [instances[i] for i in drawn]
  if unique_subjects:
    seen: set[str] = set()
    kept = []
    for instance in instances:
      subjects = {record.request.subject for record in instance}
      if not subjects & seen:
        kept.append(instance)
        seen |= subjects
    instances = kept
  order = [record for instance in instances for record in instance]
  num = len(order) if num is None else num
  if not 1 <= num <= len(order):
    about = ' about different subjects' if unique_subjects else ''
    raise UserError(f'{num} records{about} are wanted and {len(order)} exist; select fewer.')
  chosen = order[:num]
  if len(order) > num and order[num].instance is not None:
    chosen = [record for record in chosen if record.instance != order[num].instance]
  if not chosen:
    raise UserError(
      f'{num} records are wanted and the first instance has more edits; select more records.'
    )
  return chosen


def cuts_instances(records: Sequence[Record], size: int) -> bool:
  """True if batches of `size` records cut an instance of several edits."""
  ids = [record.instance for record in records]
  ends = range(size, len(records), size)
  return any(ids[end] is not None and ids[end - 1] == ids[end] for end in ends)


def _instances(records: Sequence[Record]) -> list[list[Record]]:
  """Records of one instance together; each other record by itself."""
  keys = [
    (n, None) if each.instance is None else (-1, each.instance) for n, each in enumerate(records)
  ]
  groups = itertools.groupby(zip(keys, records, strict=True), key=lambda pair: pair[0])
  return [[record for _, record in group] for _, group in groups]


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


_SCHEMAS: Mapping[Kind, Any] = {
  'counterfact': facts.CounterFact,
  'multi_counterfact': facts.CounterFact,
  'zsre': facts.ZsRE,
  'easyedit': facts.EasyEdit,
  'known': facts.Known,
  'knowedit': ripples.KnowEdit,
  'ripple_edits': ripples.RippleEdits,
  'mquake': ripples.MQuAKE,
}
# Fields by which the kind of a file is known, the first that fits, and its name for people.
_MARKS: Sequence[tuple[Kind, str, Sequence[str]]] = (
  ('mquake', 'MQuAKE', ('questions', 'new_answer')),
  ('counterfact', 'CounterFact', ('requested_rewrite',)),
  ('zsre', 'zsRE', ('src', 'loc_ans')),
  ('ripple_edits', 'RippleEdits', ('edit', 'example_type')),
  ('easyedit', 'EasyEdit', ('locality_prompt', 'locality_ground_truth')),
  ('knowedit', 'KnowEdit', ('locality', 'portability', 'concept')),
  ('easyedit', 'EasyEdit', ('target_new',)),
  ('known', 'known facts', ('known_id',)),
)


def _mark(first: Any) -> tuple[Kind, str, str] | None:
  """Kind of a record, its name, and the field that shows it; None for an unknown one."""
  names = first if isinstance(first, Mapping) else {}
  for kind, title, fields in _MARKS:
    for field in fields:
      if field in names:
        return kind, title, field
  return None


def _detect(file: pathlib.Path, first: Any) -> Kind:
  """The schema that the fields of the first record belong to."""
  found = _mark(first)
  if found is None:
    first_marks = {title: fields[0] for _, title, fields in reversed(_MARKS)}
    titles = sorted(first_marks, key=lambda title: title != 'CounterFact')
    known = ' nor '.join(f'{first_marks[title]!r} ({title})' for title in titles)
    raise UserError(f'{file}: record 0 has neither {known}; give a file in one of these schemas.')
  return found[0]


def _check_kind(file: pathlib.Path, kind: Kind, first: Any) -> None:
  """Refuses a file of another benchmark than asked for."""
  found = _mark(first)
  if found is not None and _SCHEMAS[found[0]] is not _SCHEMAS[kind]:
    raise UserError(
      f'{file} looks like {found[1]} (record 0 has the field {found[2]!r}), not like {kind}; set '
      f'data.kind={found[0]}, or leave it empty.'
    )


def _same(target: str, other: str | None) -> bool:
  return other is not None and target.strip() == other.strip()


def _cases(group: Sequence[Request]) -> str:
  """' (records 3, 9, ...)' where the requests come from records."""
  cases = [str(request.case_id) for request in group if request.case_id is not None]
  return f' (records {", ".join(cases[:5])}{", ..." if len(cases) > 5 else ""})' if cases else ''
