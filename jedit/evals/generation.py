"""Generated texts about edited subjects, by the procedure of ROME and MEMIT.

Each generation prompt of a record is continued once, by top-5 sampling, until prompt and
continuation have 100 tokens together; the end-of-text token does not stop a text. If the longest
prompt of a record has 100 tokens already, none of its prompts is continued. The published codes fix
no seed; here a text depends only on the seed, the record and the prompt.

Greedy decoding after the edited prompt gives the new object if its text follows and then ends: the
next token is the end-of-text token, a line break or the end of a sentence, so that the model itself
stops ("The mirage of model editing", arXiv:2502.11177). Teacher forcing overstates this.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jedit.evals import scoring
from jedit.evals.metrics import GeneratedTexts
from jedit.evals.references import References
from jedit.evals.texts import Words, clean_up, has_nltk
from jedit.models.encoding import Encoded, Row, encode_many
from jedit.models.generate import generate
from jedit.types import Record, UserError

if TYPE_CHECKING:
  from jedit.models.language_model import LanguageModel

_TOP_K = 5
_ESSENCE_TOKENS = 100
_PROMPTS = 2**10  # prompts of a record with independent random draws
_ANSWER_TOKENS = 8  # beyond the object: room for the model's own end
_SENTENCE_ENDS = ('.', '!', '?', '\n')


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
  """Options of generated texts and their metrics.

  Attributes:
    interval: generate texts for records whose case_id is a multiple of it; the papers use 10.
    num_tokens: length of a text with its prompt.
    seed: of the sampling.
    references: attribute snippets for consistency and essence, which are omitted without them.
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
    """True if texts are generated for a record."""
    return record.case_id % self.interval == 0

  def notes(self) -> tuple[str, ...]:
    """Sentences about the procedure and omitted metrics."""
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


def generate_texts(
  lm: 'LanguageModel', records: Sequence[Record], generation: Generation
) -> list[GeneratedTexts | None]:
  """Generates texts about the chosen records.

  Args:
    lm: the model.
    records: R records, chosen or not.
    generation: the options.

  Returns:
    One item per record; None for a record that is not chosen.
  """
  chosen = [r for r, record in enumerate(records) if generation.chooses(record)]
  covered = [records[r] for r in chosen]
  texts, continuations = _write(lm, covered, generation)
  words = Words() if has_nltk() else None
  gives_object = _gives_object(lm, covered)
  references = generation.references
  tfidf = None if references is None else references.tfidf
  snippets = [({}, '') if references is None else references.of(record) for record in covered]
  perplexity = perplexities(lm, [essence for _, essence in snippets])
  found: list[GeneratedTexts | None] = [None] * len(records)
  for i, r in enumerate(chosen):
    found[r] = GeneratedTexts(
      texts[i], continuations[i], gives_object[i], words, tfidf, snippets[i][0], perplexity[i]
    )
  return found


def _write(
  lm: 'LanguageModel', records: Sequence[Record], generation: Generation
) -> tuple[list[list[str]], list[list[str]]]:
  """Each record's texts with their prompts, and the continuations alone; both cleaned."""
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
    # Decode with special tokens, which the published texts keep.
    prompt, text = lm.tokenizer.decode(row), lm.tokenizer.decode([*row, *ids])
    texts[r].append(clean_up(text))
    continuations[r].append(clean_up(text[len(prompt) :]))
  return texts, continuations


def perplexities(lm: 'LanguageModel', texts: Sequence[str]) -> list[float]:
  """exp(-Σ ln p(token) / N) of each text, cut to N <= 100 tokens with BOS.

  The sum has N - 1 terms, since the first token is given; as in the published code, the divisor is
  N. The usual perplexity divides by N - 1 and is slightly higher.

  Returns:
    One value per text; nan for a text of fewer than two tokens.
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


def _gives_object(lm: 'LanguageModel', records: Sequence[Record]) -> list[bool]:
  """True where greedy decoding after the edited prompt gives the new object and ends."""
  if not records:
    return []
  rows = [Row(r.request.prompt, r.request.subject, r.request.target_new) for r in records]
  encoded = encode_many(lm.tokenizer, rows, lm.config.position_limit)
  stop = () if lm.tokenizer.eos_token_id is None else (lm.tokenizer.eos_token_id,)
  prompts = [list(row.ids[: row.target_start]) for row in encoded]
  made = generate(
    lm.model,
    prompts,
    max_new_tokens=max(len(row.target_ids) for row in encoded) + _ANSWER_TOKENS,
    stop_ids=stop,
  )
  found = []
  for record, prompt, ids in zip(records, prompts, made, strict=True):
    has_ended = bool(ids) and ids[-1] in stop
    answer = list(ids[:-1] if has_ended else ids)
    before = lm.tokenizer.decode(prompt)
    text = lm.tokenizer.decode([*prompt, *answer])[len(before) :].lstrip()
    target = record.request.target_new.strip()
    rest = text[len(target) :].lstrip(' ')
    ends = rest.startswith(_SENTENCE_ENDS) if rest else has_ended
    found.append(text.startswith(target) and ends)
  return found


def _tokens(lm: 'LanguageModel', texts: Sequence[str]) -> list[list[int]]:
  """Token ids of texts, with BOS if the tokenizer adds one."""
  if not texts:
    return []
  encoding: Any = lm.tokenizer(list(texts))
  return [list(ids) for ids in encoding['input_ids']]
