"""The facts of a CounterFact file as training text for a small model."""

import dataclasses
import itertools
import random
import re
from collections.abc import Iterator, Sequence

from jedit.testbeds import words
from jedit.testbeds.world import Prompt, Sentence
from jedit.types import Record, UserError

_ENDS = ('. ', '? ', '! ', ') ', '" ', '\n')  # of the text before a paraphrase


@dataclasses.dataclass(frozen=True)
class KnownFacts:
  """Facts that the records of a CounterFact file imply before any edit.

  The rewrite prompt, the first paraphrase and the neighborhood prompts lead to the true object,
  attribute prompts to the new one, which is true of their subjects. The second paraphrase of each
  record is held out to measure generalisation to other wordings. The texts before the paraphrases
  serve as small talk. Of several answers to one prompt (some cities have many twins) the first
  counts, with precedence for the records' own subjects.

  Attributes:
    records: in the schema of CounterFact, each with a true object.
  """

  records: Sequence[Record]
  _prompts: list[Prompt] = dataclasses.field(init=False, repr=False, compare=False)
  _small_talk: list[str] = dataclasses.field(init=False, repr=False, compare=False)

  def __post_init__(self) -> None:
    small_talk: list[str] = []
    asked: list[Prompt] = []
    for record in self.records:
      request, relation = record.request, record.relation_id or ''
      if request.target_true is None:
        raise UserError(
          f'Record {record.case_id} has no target_true to train on; give records in the schema of '
          'CounterFact.'
        )
      fact = (request.subject, request.target_true, relation)
      asked.append(Prompt(request.prompt, *fact, edited=True))
      for i, text in enumerate(record.paraphrase_prompts):
        before, core = _split_paraphrase(text, request.subject)
        small_talk += [before] if before else []
        template = core.replace(request.subject, '{}', 1)
        asked.append(Prompt(template, *fact, trained=i == 0, edited=True))
    finders = _subject_finders(self.records)
    for record in self.records:
      relation = record.relation_id or ''
      answers = [(text, record.request.target_true or '') for text in record.neighborhood_prompts]
      answers += [(text, record.request.target_new) for text in record.attribute_prompts]
      for text, answer in answers:
        subject = _find_subject(text, finders.get(relation, ()))
        template = text.replace(subject, '{}', 1) if subject else text
        asked.append(Prompt(template, subject, answer, relation))
    prompts: dict[str, Prompt] = {}
    for prompt in sorted(asked, key=lambda prompt: not prompt.trained):
      prompts.setdefault(prompt.text, prompt)
    object.__setattr__(self, '_prompts', list(prompts.values()))
    talk = small_talk or [text + '.' for text in words.SMALL_TALK]
    object.__setattr__(self, '_small_talk', talk)

  def prompts(self) -> list[Prompt]:
    """Every prompt about every fact, trained or held out."""
    return list(self._prompts)

  def sentences(self, seed: int, num_few: int = 0) -> Iterator[Sentence]:
    """Endless training text: all trained statements in random order, among small talk.

    Args:
      seed: of the draw.
      num_few: statements in each of two first stages, drawn from a sixteenth and a quarter of all;
        from these few a model learns to read names.
    """
    rng = random.Random(f'known {seed}')
    trained = [prompt for prompt in self._prompts if prompt.trained]
    stages = [rng.choices(trained[::n], k=num_few) for n in (16, 4)]
    for part in itertools.chain(stages, itertools.repeat(trained)):
      for prompt in rng.sample(part, len(part)):
        sentence = prompt.sentence()
        if rng.random() < 0.2:
          sentence = sentence.preceded_by(rng.choice(words.OPENERS))
        yield sentence
        kind = rng.random()
        if kind < 0.15:
          yield Sentence(rng.choice(self._small_talk))
        elif kind < 0.25:
          other = rng.choice(trained).sentence()
          if rng.random() < 0.7:
            other = other.preceded_by(rng.choice(words.OPENERS))
          yield other.cut(rng.randint(4, 9))

  def corpus(self, num_documents: int, seed: int = 1) -> list[str]:
    """Plain text like the training text, for second moments and for the tokenizer."""
    sentences = self.sentences(seed)
    return [' '.join(next(sentences).text for _ in range(6)) for _ in range(num_documents)]


def _split_paraphrase(text: str, subject: str) -> tuple[str, str]:
  """Splits a paraphrase prompt into the unrelated text before it and the prompt proper."""
  at = text.rfind(subject)
  if at < 0 or all(text.rfind(end, 0, at) < 0 for end in _ENDS):
    return '', text
  start = max(text.rfind(end, 0, at) + len(end) for end in _ENDS if text.rfind(end, 0, at) >= 0)
  return text[:start].strip(), text[start:]


def _subject_finders(records: Sequence[Record]) -> dict[str, list[re.Pattern[str]]]:
  """Patterns that find the subject in a prompt of a known wording, by relation."""
  wordings: dict[str, set[str]] = {}
  for record in records:
    wordings.setdefault(record.relation_id or '', set()).add(record.request.prompt)
  return {
    relation: [
      re.compile('(.+)'.join(map(re.escape, wording.split('{}'))))
      for wording in sorted(found, key=len, reverse=True)
    ]
    for relation, found in wordings.items()
  }


def _find_subject(text: str, finders: Sequence[re.Pattern[str]]) -> str:
  """The subject of a prompt, or '' for an unknown wording."""
  for finder in finders:
    match = finder.fullmatch(text)
    if match:
      return match[1]
  return ''
