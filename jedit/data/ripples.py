"""Schemas of benchmarks that test what an edit entails: KnowEdit, RippleEdits and MQuAKE.

KnowEdit (arXiv:2401.01286; zjunlp/KnowEdit on the hub), RippleEdits (arXiv:2307.12976) and MQuAKE
(arXiv:2305.14795), as their repositories publish them.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import pydantic

from jedit.data.entry import Entry, Label
from jedit.data.facts import Rewrite
from jedit.io import schema
from jedit.io.schema import Text
from jedit.types import Criterion, Query, Record


def _listed(given: Any) -> Any:
  """A text as a list of one."""
  return [given] if isinstance(given, str) else given


def _nested(given: Any) -> Any:
  """Names of one answer as those of a list of answers: KnowEdit leaves levels out."""
  listed = _listed(given)
  is_flat = isinstance(listed, list) and all(isinstance(each, str) for each in listed)
  return [listed] if is_flat else listed


_Texts = Annotated[list[str], pydantic.BeforeValidator(_listed)]
_Answers = Annotated[list[_Texts], pydantic.BeforeValidator(_nested)]

# Wording of RippleEdits' relations around a subject.
_FRAMES = tuple(
  re.compile(pattern)
  for pattern in (
    r'(?P<subject>.+) (?:follows|is followed by)',
    r'The number of children (?P<subject>.+) has is',
    r'The name of the award (?P<subject>.+) won is',
    r'The name of the position held by (?P<subject>.+) is',
    r'The name of the (?:currency|anthem .+ performed) in (?P<subject>.+) is',
    r'The name of the .+? which (?P<subject>.+) '
    r'(?:is (?:associated with|a member of|part of|the capital of)|plays in) is',
    r'The (?:names? of the )?[a-z]+(?: of (?:birth|burial|citizenship|death|government|state|work)'
    r'| [a-z]+)? of (?P<subject>.+) (?:is|are)',
  )
)
_STATEMENT = re.compile(r'(?P<prompt>.+ (?:is followed by|is|are|follows)) (?P<target>.+?)\.?')


class KnowEditPrompt(schema.Fields):
  """A prompt of KnowEdit, or wordings of one."""

  prompt: _Texts
  ground_truth: _Answers

  def to_criteria(self, name: str) -> Iterator[Criterion]:
    named = (tuple(name for name in names if name.strip()) for names in self.ground_truth)
    answers = tuple(names for names in named if names)
    for prompt in self.prompt:
      if answers and prompt.strip():
        yield Criterion(name, (Query(prompt, answers),))


class Portability(schema.Fields):
  subject_aliasing: list[KnowEditPrompt] = pydantic.Field([], alias='Subject_Aliasing')
  one_hop: list[KnowEditPrompt] = pydantic.Field([], alias='One_Hop')
  reasoning: list[KnowEditPrompt] = pydantic.Field([], alias='Reasoning')
  logical_generalization: list[KnowEditPrompt] = pydantic.Field([], alias='Logical_Generalization')


class Locality(schema.Fields):
  relation_specificity: list[KnowEditPrompt] = pydantic.Field([], alias='Relation_Specificity')
  forgetfulness: list[KnowEditPrompt] = pydantic.Field([], alias='Forgetfulness')
  distraction: list[KnowEditPrompt] = pydantic.Field([], alias='Distracting')


class KnowEdit(schema.Fields):
  """wiki_recent, wiki_counterfact, ZsRE and, with names of its own, WikiBio.

  Answers known before the edit are left out: KnowEdit measures the new ones alone.
  """

  subject: Text = pydantic.Field(validation_alias=pydantic.AliasChoices('subject', 'concept'))
  prompt: Text = pydantic.Field(validation_alias=pydantic.AliasChoices('prompt', 'text'))
  target_new: Text = pydantic.Field(validation_alias=pydantic.AliasChoices('target_new', 'labels'))
  rephrase: _Texts = pydantic.Field(
    [], validation_alias=pydantic.AliasChoices('rephrase_prompt', 'rephrase')
  )
  portability: Portability = Portability()
  locality: Locality = Locality()

  def to_records(self, entry: Entry) -> Iterator[Record]:
    prompt = entry.template('prompt', self.prompt, self.subject)
    parts = {**vars(self.portability), **vars(self.locality)}
    criteria = (
      criterion
      for name, prompts in parts.items()
      for each in prompts
      for criterion in each.to_criteria(name)
    )
    yield Record(
      case_id=entry.index,
      request=entry.request(prompt, self.subject, self.target_new, None, entry.index),
      paraphrase_prompts=tuple(text for text in self.rephrase if text.strip()),
      criteria=tuple(criteria),
    )


class RippleAnswer(schema.Fields):
  value: str
  aliases: list[str] = []


class RippleQuery(schema.Fields):
  prompt: Text
  answers: list[RippleAnswer]

  def to_query(self) -> Query | None:
    """The query; None without names of more than a letter, which is found in any text."""
    groups = [
      tuple(name for name in (each.value, *each.aliases) if len(name) > 1 or name.isdigit())
      for each in self.answers
    ]
    return Query(self.prompt, tuple(groups)) if groups and all(groups) else None


def _queries(given: Sequence[RippleQuery]) -> tuple[Query, ...]:
  return tuple(query for each in given if (query := each.to_query()) is not None)


class RippleTest(schema.Fields):
  test_queries: list[RippleQuery]
  test_condition: Literal['OR', 'AND'] = 'OR'
  condition_queries: list[RippleQuery] = []

  def to_criteria(self, name: str) -> Iterator[Criterion]:
    queries = _queries(self.test_queries)
    if queries:
      conditions = _queries(self.condition_queries)
      yield Criterion(name, queries, self.test_condition == 'AND', conditions)


class RippleFact(schema.Fields):
  """A fact as a sentence; `subject` is not in the published files and spares the search for it."""

  prompt: Text
  subject: Text | None = None
  relation: Label = None
  target_id: Label = None


_Tests = list[RippleTest]


class RippleEdits(schema.Fields):
  edit: RippleFact
  ripple_logical_generalization: _Tests = pydantic.Field([], alias='Logical_Generalization')
  ripple_compositionality_1: _Tests = pydantic.Field([], alias='Compositionality_I')
  ripple_compositionality_2: _Tests = pydantic.Field([], alias='Compositionality_II')
  ripple_subject_aliasing: _Tests = pydantic.Field([], alias='Subject_Aliasing')
  ripple_preservation: _Tests = pydantic.Field([], alias='Forgetfulness')
  ripple_relation_specificity: _Tests = pydantic.Field(
    [],
    validation_alias=pydantic.AliasChoices('Relation_Specificity', 'Relation_Specifity'),
  )

  def to_records(self, entry: Entry) -> Iterator[Record]:
    fact = self.edit
    statement = _STATEMENT.fullmatch(fact.prompt)
    if statement is None:
      raise entry.error(
        f'states no fact in edit.prompt {fact.prompt!r}', "write '... is' with the new object"
      )
    prompt, target = statement['prompt'], statement['target']
    subject = fact.subject or _subject(prompt)
    if subject is None:
      raise entry.error(
        f'has edit.prompt {fact.prompt!r}, of an unknown form',
        "add the field 'subject' to 'edit'",
      )
    template = entry.template('edit.prompt', prompt, subject)
    tests = (
      criterion
      for name, given in vars(self).items()
      if name != 'edit'
      for each in given
      for criterion in each.to_criteria(name)
    )
    yield Record(
      case_id=entry.index,
      request=entry.request(template, subject, target, None, entry.index),
      relation_id=fact.relation,
      target_id=fact.target_id,
      criteria=(Criterion('ripple_edit', (Query(prompt, ((target,),)),)), *tests),
    )


def _subject(prompt: str) -> str | None:
  """The subject of a prompt of RippleEdits; its files name it by its Wikidata identifier alone."""
  found = (frame.fullmatch(prompt) for frame in _FRAMES)
  return next((match['subject'] for match in found if match), None)


class MQuAKE(schema.Fields):
  """An instance of one to four edits and the questions that need all of them.

  Each edit becomes a record, with 10 times the instance's case_id and its place as case_id.
  """

  case_id: Annotated[int, pydantic.Field(ge=0, lt=2**59)]
  requested_rewrite: Annotated[list[Rewrite], pydantic.Field(min_length=1, max_length=10)]
  questions: Annotated[list[Text], pydantic.Field(min_length=1)]
  new_answer: Text
  new_answer_alias: list[str] = []

  def to_records(self, entry: Entry) -> Iterator[Record]:
    names = tuple(name for name in (self.new_answer, *self.new_answer_alias) if name.strip())
    multi_hop = Criterion('multi_hop', tuple(Query(text, (names,)) for text in self.questions))
    for place, edit in enumerate(self.requested_rewrite):
      case_id = 10 * self.case_id + place
      new, true = edit.target_new, edit.target_true
      yield Record(
        case_id=case_id,
        request=entry.request(edit.prompt, edit.subject, new.text, true.text, case_id),
        relation_id=edit.relation_id,
        target_id=new.id,
        target_true_id=true.id,
        criteria=(multi_hop,) if place == len(self.requested_rewrite) - 1 else (),
        instance=self.case_id,
      )
