"""Schemas of single facts: CounterFact, zsRE, EasyEdit's flat form, and ROME's known facts."""

from collections.abc import Iterator
from typing import Annotated

import pydantic

from jedit.data.entry import Entry, Id, Label
from jedit.io import schema
from jedit.io.schema import Text
from jedit.types import Criterion, Query, Record


class Object(schema.Fields):
  """An object of CounterFact."""

  text: Text = pydantic.Field(alias='str')
  id: Label = None


class Rewrite(schema.Fields):
  prompt: Text
  subject: Text
  target_new: Object
  target_true: Object
  relation_id: Label = None


class CounterFact(schema.Fields):
  case_id: Id
  requested_rewrite: Rewrite
  paraphrase_prompts: list[Text]
  neighborhood_prompts: list[Text]
  attribute_prompts: list[Text]
  generation_prompts: list[Text]

  def to_records(self, entry: Entry) -> Iterator[Record]:
    edit, case_id = self.requested_rewrite, self.case_id
    new, true = edit.target_new, edit.target_true
    yield Record(
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


class ZsRE(schema.Fields):
  subject: Text
  src: Text
  answers: Annotated[list[Text], pydantic.Field(min_length=1)]
  rephrase: Text
  loc: Text
  loc_ans: Text

  def to_records(self, entry: Entry) -> Iterator[Record]:
    prompt = entry.template('src', self.src, self.subject)
    yield Record(
      case_id=entry.index,
      request=entry.request(prompt, self.subject, self.answers[0], None, entry.index),
      paraphrase_prompts=(self.rephrase,),
      neighborhood_prompts=(self.loc + '?',),
      neighborhood_target=self.loc_ans,
    )


class OneHop(schema.Fields):
  """A question about what follows from the edit."""

  question: Text = pydantic.Field(alias='New Question')
  answer: Text = pydantic.Field(alias='New Answer')


class EasyEdit(schema.Fields):
  """EasyEdit's flat form; with `portability` in the files of Yao et al. (arXiv:2305.13172)."""

  case_id: Id
  subject: Text
  prompt: Text
  target_new: Text
  ground_truth: Text
  rephrase_prompt: Text
  locality_prompt: Text
  locality_ground_truth: Text
  portability: OneHop | None = None

  def to_records(self, entry: Entry) -> Iterator[Record]:
    prompt = entry.template('prompt', self.prompt, self.subject)
    answer, true = self.locality_ground_truth, self.ground_truth
    yield Record(
      case_id=self.case_id,
      request=entry.request(prompt, self.subject, self.target_new, true, self.case_id),
      paraphrase_prompts=(self.rephrase_prompt,),
      neighborhood_prompts=(self.locality_prompt,),
      neighborhood_target=None if answer == true else answer,
      criteria=() if self.portability is None else self._criteria(self.portability),
    )

  def _criteria(self, one_hop: OneHop) -> tuple[Criterion, ...]:
    """The question of one hop, and the unrelated prompt behind the edited fact."""
    distracted = f'{self.prompt} {self.target_new} {self.locality_prompt}'
    return (
      Criterion('one_hop', (Query(one_hop.question, ((one_hop.answer,),)),)),
      Criterion('distraction', (Query(distracted, ((self.locality_ground_truth,),)),)),
    )


class Known(schema.Fields):
  known_id: Id
  subject: Text
  prompt: Text
  attribute: Text
  relation_id: Label = None

  def to_records(self, entry: Entry) -> Iterator[Record]:
    prompt = entry.template('prompt', self.prompt, self.subject)
    yield Record(
      case_id=self.known_id,
      request=entry.request(prompt, self.subject, self.attribute, None, self.known_id),
      relation_id=self.relation_id,
    )
