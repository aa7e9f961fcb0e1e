"""A made-up world: subjects, facts, training text and records.

Everything follows from a seed, so only the seed and the sizes are stored with a trained model.

Names have two or three words from small pools that many subjects share: only the last token of a
name identifies the subject. Every subject has one object per relation. The training text omits some
phrasings of every relation for each subject. Half of the subjects are never edited; neighborhood
and attribute prompts are about those alone.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from jedit.testbeds import words
from jedit.types import Record, Request, UserError

_NUM_PARAPHRASES = 2
_NUM_NEIGHBORS = 10
_SUBJECTS_PER_HEAD = 4  # subjects with the same first two words, for three-word names


@dataclasses.dataclass(frozen=True)
class Sentence:
  """A piece of text with the spans to weight in training.

  Attributes:
    text: the words, without a leading space.
    subject: characters [start, end) of the subject, if any.
    answer: characters [start, end) of the object, without its leading space.
  """

  text: str
  subject: tuple[int, int] | None = None
  answer: tuple[int, int] | None = None

  def preceded_by(self, opener: str) -> 'Sentence':
    """The sentence after an opening phrase."""
    head = self.text if self.subject and self.subject[0] == 0 else _lower_first(self.text)
    return Sentence(f'{opener} {head}', *(_shift(s, len(opener) + 1) for s in self._spans))

  def cut(self, num_words: int) -> 'Sentence':
    """The first words and a full stop, like sampled prefix contexts; without answer."""
    return Sentence(' '.join(self.text.rstrip('.').split()[:num_words]) + '.')

  @property
  def _spans(self) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    return self.subject, self.answer


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt for one fact.

  Attributes:
    template: phrasing with one `{}` for the subject; ends before the answer. A text without `{}`
      has an unknown subject.
    subject: fills the `{}`.
    answer: follows the prompt.
    relation: identifier of the relation.
    trained: the training text has this subject in this phrasing.
    edited: a record edits this subject.
  """

  template: str
  subject: str
  answer: str
  relation: str
  trained: bool = True
  edited: bool = False

  @property
  def text(self) -> str:
    """The prompt with its subject."""
    return self.template.replace('{}', self.subject)

  def sentence(self) -> Sentence:
    """The statement: prompt, answer and a full stop."""
    prompt = self.text
    start = self.template.find('{}')
    return Sentence(
      f'{prompt} {self.answer}.',
      subject=(start, start + len(self.subject)) if start >= 0 else None,
      answer=(len(prompt) + 1, len(prompt) + 1 + len(self.answer)),
    )


@dataclasses.dataclass(frozen=True)
class World:
  """Facts of a made-up world, determined by the arguments.

  Attributes:
    seed: of names, facts, phrasings and records.
    num_subjects: number of people.
    num_edited: people with a record, that is an edit; the others are never edited.
    num_untrained: phrasings per relation omitted from the training text for each subject.
    name_words: words in a name, 2 or 3.
    own_last_names: give everybody a unique last name; otherwise many share one, and only the whole
      name identifies a person.
  """

  seed: int = 0
  num_subjects: int = 600
  num_edited: int = 300
  num_untrained: int = 2
  name_words: int = 2
  own_last_names: bool = False
  subjects: tuple[str, ...] = dataclasses.field(init=False, repr=False)
  _prompts: dict[tuple[int, int], tuple[Prompt, ...]] = dataclasses.field(
    init=False, repr=False, compare=False
  )

  def __post_init__(self) -> None:
    names = _names(self.seed, self.num_subjects, self.name_words, self.own_last_names)
    object.__setattr__(self, 'subjects', names)
    rng = random.Random(f'facts {self.seed}')
    prompts = {}
    for s, subject in enumerate(self.subjects):
      for r, relation in enumerate(words.RELATIONS):
        answer = rng.choice(relation.objects)
        left_out = rng.sample(range(len(relation.phrasings)), self.num_untrained)
        prompts[s, r] = tuple(
          Prompt(phrasing, subject, answer, relation.name, p not in left_out, s < self.num_edited)
          for p, phrasing in enumerate(relation.phrasings)
        )
    object.__setattr__(self, '_prompts', prompts)

  def prompts(self) -> list[Prompt]:
    """Every prompt for every fact, trained or not, to measure accuracy."""
    return [prompt for group in self._prompts.values() for prompt in group]

  def sentences(self, seed: int, num_few: int = 0) -> Iterator[Sentence]:
    """Endless training text: all facts in random order, repeatedly, each in a trained phrasing.

    Statements are mixed with small talk and open texts; some have an opener, some are cut short
    like sampled prefix contexts.

    Args:
      seed: of the draw.
      num_few: facts in each of two first stages, about a sixteenth and a quarter of the subjects. A
        model learns to read names faster from a few frequent ones.
    """
    rng = random.Random(f'text {self.seed} {seed}')
    facts = list(self._prompts)
    few = [[fact for fact in facts if fact[0] % n == 0] for n in (16, 4)]
    stages = [rng.choices(part, k=num_few) for part in few]
    for part in itertools.chain(stages, itertools.repeat(facts)):
      for fact in rng.sample(part, len(part)):
        sentence = self._statement(*fact, rng)
        if rng.random() < 0.2:
          sentence = sentence.preceded_by(rng.choice(words.OPENERS))
        yield sentence
        if rng.random() < 0.25:
          yield from self._aside(rng)

  def corpus(self, num_documents: int, seed: int = 1) -> list[str]:
    """Plain text like the training text, for second moments and for the tokenizer."""
    sentences = self.sentences(seed)
    return [' '.join(next(sentences).text for _ in range(6)) for _ in range(num_documents)]

  def records(self) -> list[dict[str, Any]]:
    """One CounterFact record per edited subject."""
    rng = random.Random(f'records {self.seed}')
    return [self._record(s, rng) for s in range(self.num_edited)]

  def training_records(self, count: int, seed: int = 0) -> list[Record]:
    """Edits to train an editor on: facts of people that no record edits, with other objects.

    A record has two paraphrases, one of them after a sentence of small talk as in `records`, and
    the prompt of another person that no record edits, whose answer must stay.

    Args:
      count: number of records; facts come again with other objects and phrasings.
      seed: of the draw.
    """
    rng = random.Random(f'training {self.seed} {seed}')
    unedited = range(self.num_edited, self.num_subjects)
    facts = [(s, r) for s in unedited for r in range(len(words.RELATIONS))]
    order = itertools.chain.from_iterable(rng.sample(facts, len(facts)) for _ in itertools.count())
    return [self._training_record(n, *next(order), rng) for n in range(count)]

  def _training_record(self, number: int, s: int, r: int, rng: random.Random) -> Record:
    relation = words.RELATIONS[r]
    rewrite, *others = rng.sample(self._prompts[s, r], 1 + _NUM_PARAPHRASES)
    true = rewrite.answer
    new = rng.choice([o for o in relation.objects if o != true])
    neighbor = rng.choice([n for n in range(self.num_edited, self.num_subjects) if n != s])
    unrelated = rng.choice(self._prompts[neighbor, r])
    talk = f'{rng.choice(words.SMALL_TALK)}. '
    return Record(
      case_id=number,
      request=Request(rewrite.template, self.subjects[s], new, true, case_id=number),
      paraphrase_prompts=(others[0].text, talk + others[1].text),
      neighborhood_prompts=(rng.choice(('', talk)) + unrelated.text,),
      neighborhood_target=unrelated.answer,
      relation_id=relation.name,
    )

  def _aside(self, rng: random.Random) -> list[Sentence]:
    """Sentences between the facts: small talk, open texts and statements cut short."""
    kind = rng.random()
    if kind < 0.4:
      return [Sentence(rng.choice(words.SMALL_TALK) + '.')]
    s, r = rng.choice(list(self._prompts))
    statement = self._statement(s, r, rng)
    if kind < 0.6:
      # The fact follows an open text of its relation, so that generated texts include it.
      open_text = rng.choice(words.RELATIONS[r].open_texts)
      ending = rng.choice(open_text.endings)
      prompt = Prompt(open_text.prompt, self.subjects[s], ending, words.RELATIONS[r].name)
      return [dataclasses.replace(prompt.sentence(), answer=None), statement]
    if rng.random() < 0.7:
      statement = statement.preceded_by(rng.choice(words.OPENERS))
    return [statement.cut(rng.randint(4, 9))]

  def _statement(self, s: int, r: int, rng: random.Random) -> Sentence:
    return rng.choice([p for p in self._prompts[s, r] if p.trained]).sentence()

  def _record(self, s: int, rng: random.Random) -> dict[str, Any]:
    r = s % len(words.RELATIONS)
    relation = words.RELATIONS[r]
    prompts = self._prompts[s, r]
    true = prompts[0].answer
    if not self._holders(r, true):
      raise UserError(
        f'Only edited subjects have {true!r} as {relation.name}; increase num_subjects or decrease '
        'num_edited.'
      )
    new = rng.choice([o for o in relation.objects if o != true and len(self._holders(r, o)) > 0])
    rewrite, trained = rng.sample([p for p in prompts if p.trained], _NUM_PARAPHRASES)
    untrained = rng.choice([p for p in prompts if not p.trained])

    def after_small_talk(prompt: Prompt) -> str:
      return f'{rng.choice(words.SMALL_TALK)}. {prompt.text}'

    def about(holders: Sequence[int]) -> list[str]:
      drawn = rng.sample(list(holders), min(_NUM_NEIGHBORS, len(holders)))
      drawn += rng.choices(list(holders), k=_NUM_NEIGHBORS - len(drawn))
      return [rng.choice(self._prompts[holder, r]).text for holder in drawn]

    return dict(
      case_id=s,
      pararel_idx=s,
      requested_rewrite=dict(
        prompt=rewrite.template,
        relation_id=relation.name,
        target_new=dict(str=new, id=_object_id(relation, new)),
        target_true=dict(str=true, id=_object_id(relation, true)),
        subject=self.subjects[s],
      ),
      paraphrase_prompts=[after_small_talk(trained), after_small_talk(untrained)],
      neighborhood_prompts=about(self._holders(r, true)),
      attribute_prompts=about(self._holders(r, new)),
      generation_prompts=[
        rng.choice(relation.open_texts).prompt.replace('{}', self.subjects[s]) for _ in range(10)
      ],
    )

  def _holders(self, r: int, answer: str) -> list[int]:
    """Unedited subjects with this answer."""
    unedited = range(self.num_edited, self.num_subjects)
    return [s for s in unedited if self._prompts[s, r][0].answer == answer]


def _names(seed: int, num_subjects: int, num_words: int, own_last_names: bool) -> tuple[str, ...]:
  """Distinct names; several subjects share everything before the last word."""
  rng = random.Random(f'names {seed}')
  heads = list(words.FIRST_NAMES)
  if num_words == 3:
    heads = [f'{first} {middle}' for first in heads for middle in words.MIDDLE_NAMES]
    rng.shuffle(heads)
    heads = heads[: max(1, -(-num_subjects // _SUBJECTS_PER_HEAD))]
  own = [start + end for start in words.NAME_STARTS for end in words.NAME_ENDS]
  most = len(own) if own_last_names else len(heads) * len(words.LAST_NAMES)
  if num_subjects > most:
    raise UserError(f'The world has names for {most} subjects, not {num_subjects}; ask for fewer.')
  if own_last_names:
    rng.shuffle(own)
    last_of = {head: own[number :: len(heads)] for number, head in enumerate(heads)}
  else:
    last_of = {head: rng.sample(words.LAST_NAMES, len(words.LAST_NAMES)) for head in heads}
  names = [
    f'{head} {last_of[head].pop()}'
    for head in itertools.islice(itertools.cycle(heads), num_subjects)
  ]
  rng.shuffle(names)
  return tuple(names)


def _object_id(relation: words.Relation, answer: str) -> str:
  """Identifier of an object, unique in the world."""
  return f'{relation.name}/{relation.objects.index(answer)}'


def _shift(span: tuple[int, int] | None, by: int) -> tuple[int, int] | None:
  return None if span is None else (span[0] + by, span[1] + by)


def _lower_first(text: str) -> str:
  return text[:1].lower() + text[1:]
