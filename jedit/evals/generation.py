"""Metrics of texts that a model generates about an edited subject, as ROME and MEMIT measure them.

A record's generation prompts are continued once each, sampling from the 5 most probable tokens,
until prompt and continuation have 100 tokens together; the end-of-text token does not stop a text.
Where the longest prompt of a record has 100 tokens already, none of its prompts is continued. The
published codes fix no seed; here a text depends on the seed, the record and the prompt alone.

  fluency                 mean over the texts of their n-gram entropy (`texts.fluency`), x 100; the
                          prompt is part of the text, as in ROME, MEMIT and PMET
  fluency_without_prompt  the same of the continuations alone
  consistency             cosine, x 100, of the TF-IDF vectors of the joined texts and of the joined
                          snippets about entities that have the new object (`texts.cosine`)
  essence                 perplexity of snippets among these that are about the edited subject,
                          joined and cut to 100 tokens: exp of the sum of N - 1 negative log
                          probabilities divided by N tokens, as published; lower is better
  free_generation_acc     100 where greedy decoding after the edited prompt gives the new object and
                          then ends: the end-of-text token, a line break or the end of a sentence
                          follows, so that the model chose where to stop ("The mirage of model
                          editing", arXiv:2502.11177); teacher forcing overstates this

What cannot be measured is nan, is left out of the means and counted: texts of which none has three
words, texts or snippets without a known word, essence without snippets about the subject.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jedit.evals import scoring
from jedit.evals.references import References
from jedit.evals.texts import Words, clean_up, cosine, has_nltk, mean_fluency
from jedit.models.encoding import Encoded, Row, encode_many
from jedit.models.generate import generate
from jedit.types import Record, UserError

if TYPE_CHECKING:
  from jedit.models.language_model import LanguageModel

_TOP_K = 5
_ESSENCE_TOKENS = 100
_PROMPTS = 2**10  # prompts of a record that have random draws of their own
_ANSWER_TOKENS = 8  # beyond the object: space for the end that the model chooses
_SENTENCE_ENDS = ('.', '!', '?', '\n')


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
  """What is generated and what it is compared with.

  Attributes:
    interval: texts are generated for records whose case_id is a multiple of it; the papers' scripts
      use 10 at paper scale.
    num_tokens: length of a text with its prompt.
    seed: of the sampling.
    references: for consistency and essence, which are left out without.
  """

  interval: int = 1
  num_tokens: int = 100
  seed: int = 0
  references: References | None = None

  def __post_init__(self) -> None:
    if self.interval < 1 or self.num_tokens < 1:
      raise UserError(
        f'Generation has interval {self.interval} and num_tokens {self.num_tokens}; give at '
        'least 1.'
      )

  def chooses(self, record: Record) -> bool:
    """Whether texts are generated for a record."""
    return record.case_id % self.interval == 0

  def notes(self) -> tuple[str, ...]:
    """Sentences about how the texts are made and which metrics are left out."""
    found = [
      f'Generated texts: records with a case_id that is a multiple of {self.interval}, '
      f'{self.num_tokens} tokens with the prompt, top {_TOP_K} sampling, seed {self.seed}.'
    ]
    if not has_nltk():
      found.append("Fluency is left out: nltk is not installed; pip install 'jedit[metrics]'.")
    elif Words().sentence_split == 'english':
      found.append("Fluency: words by nltk with its English sentence tables, as the papers'.")
    else:
      found.append(
        'Fluency: words by nltk with the untrained sentence split, because its English tables '
        '(punkt_tab) were not found; values can differ from the papers in the second decimal '
        'before x 100.'
      )
    if self.references is None:
      found.append('Consistency and essence are left out: no attribute snippets were given.')
    return tuple(found)


def measure(
  lm: 'LanguageModel', records: Sequence[Record], generation: Generation
) -> dict[str, np.ndarray]:
  """Generates texts for the chosen records and measures them.

  Args:
    lm: the model.
    records: R records, chosen or not.
    generation: what is generated.

  Returns:
    By metric name, one value per record; nan where nothing is measured.
  """
  chosen = [r for r, record in enumerate(records) if generation.chooses(record)]
  asked = [records[r] for r in chosen]
  found: dict[str, list[float]] = {}
  texts, continuations = _write(lm, asked, generation)
  if has_nltk():
    words = Words()
    found['fluency'] = [100 * mean_fluency(each, words) for each in texts]
    found['fluency_without_prompt'] = [100 * mean_fluency(each, words) for each in continuations]
  if generation.references is not None:
    references = generation.references
    snippets = [references.of(record) for record in asked]
    found['consistency'] = [
      100 * cosine(references.tfidf.weights(' '.join(each)), weights)
      for each, (weights, _) in zip(texts, snippets, strict=True)
    ]
    found['essence'] = perplexities(lm, [essence for _, essence in snippets])
  found['free_generation_acc'] = _free_generation(lm, asked)
  values = {}
  for name, chosen_values in found.items():
    values[name] = np.full(len(records), np.nan)
    values[name][chosen] = chosen_values
  return values


def _write(
  lm: 'LanguageModel', records: Sequence[Record], generation: Generation
) -> tuple[list[list[str]], list[list[str]]]:
  """Each record's texts with their prompts, and the continuations alone; both cleaned up."""
  prompts = [(r, p, text) for r, each in enumerate(records)
             for p, text in enumerate(each.generation_prompts)]  # fmt: skip
  rows = _tokens(lm, [text for _, _, text in prompts])
  longest = [0] * len(records)
  for (r, _, _), row in zip(prompts, rows, strict=True):
    longest[r] = max(longest[r], len(row))
  going = [i for i, (r, _, _) in enumerate(prompts) if longest[r] < generation.num_tokens]
  new: list[list[int]] = [[] for _ in rows]
  made = generate(
    lm.model,
    [rows[i] for i in going],
    max_new_tokens=generation.num_tokens,
    max_length=generation.num_tokens,
    top_k=min(_TOP_K, lm.config.vocab_size),
    seed=generation.seed,
    row_ids=[records[prompts[i][0]].case_id * _PROMPTS + prompts[i][1] for i in going],
  )
  for i, ids in zip(going, made, strict=True):
    new[i] = list(ids)
  texts: list[list[str]] = [[] for _ in records]
  continuations: list[list[str]] = [[] for _ in records]
  for (r, _, _), row, ids in zip(prompts, rows, new, strict=True):
    # Decoded with special tokens, which stay in the published texts.
    prompt, text = lm.tokenizer.decode(row), lm.tokenizer.decode([*row, *ids])
    texts[r].append(clean_up(text))
    continuations[r].append(clean_up(text[len(prompt) :]))
  return texts, continuations


def perplexities(lm: 'LanguageModel', texts: Sequence[str]) -> list[float]:
  """exp(-Σ ln p(token) / N) of each text, cut to N <= 100 tokens with BOS.

  The sum has N - 1 terms, for the first token is given; the published code divides it by N, and so
  do we. The usual perplexity divides by N - 1 and is a little higher.

  Returns:
    One value per text; nan for a text of less than two tokens.
  """
  values = [math.nan] * len(texts)
  rows = [ids[:_ESSENCE_TOKENS] for ids in _tokens(lm, texts)]
  scored = [i for i, ids in enumerate(rows) if len(ids) > 1]
  if scored:
    encoded = [Encoded(texts[i], tuple(rows[i]), None, 0, 1) for i in scored]
    nll_N = scoring.score(lm.model, encoded).nll_N
    for i, nll in zip(scored, nll_N, strict=True):
      values[i] = math.exp(nll * (len(rows[i]) - 1) / len(rows[i]))
  return values


def _free_generation(lm: 'LanguageModel', records: Sequence[Record]) -> list[float]:
  """100 or 0 for each record; see the head of the module."""
  if not records:
    return []
  asked = [Row(r.request.prompt, r.request.subject, r.request.target_new) for r in records]
  encoded = encode_many(lm.tokenizer, asked, lm.config.position_limit)
  stop = () if lm.tokenizer.eos_token_id is None else (lm.tokenizer.eos_token_id,)
  prompts = [list(row.ids[: row.target_start]) for row in encoded]
  made = generate(
    lm.model,
    prompts,
    max_new_tokens=max(len(row.target_ids) for row in encoded) + _ANSWER_TOKENS,
    stop_ids=stop,
  )
  values = []
  for record, prompt, ids in zip(records, prompts, made, strict=True):
    has_ended = bool(ids) and ids[-1] in stop
    answer = list(ids[:-1] if has_ended else ids)
    before = lm.tokenizer.decode(prompt)
    said = lm.tokenizer.decode([*prompt, *answer])[len(before) :].lstrip()
    target = record.request.target_new.strip()
    rest = said[len(target) :].lstrip(' ')
    ends = rest.startswith(_SENTENCE_ENDS) if rest else has_ended
    values.append(100.0 * (said.startswith(target) and ends))
  return values


def _tokens(lm: 'LanguageModel', texts: Sequence[str]) -> list[list[int]]:
  """Token ids of texts, with BOS where the tokenizer adds one."""
  if not texts:
    return []
  encoding: Any = lm.tokenizer(list(texts))
  return [list(ids) for ids in encoding['input_ids']]
