"""Prefix contexts: short texts sampled from the model, placed before the prompts of an edit."""

from collections.abc import Iterable, Sequence

from jedit.editing.method import Method
from jedit.editing.prompts import BARE, Contexts, check_contexts
from jedit.models.generate import generate
from jedit.models.language_model import LanguageModel
from jedit.types import UserError

PREFIXES = ('memit', 'rome')  # kinds of samples
STARTS = ('The', 'Therefore', 'Because', 'I', 'You')
NUM_TOKENS = 10
ROME_LENGTHS = (5,) * 10 + (10,) * 10
_TOP_K = 5


def contexts_of(
  lm: LanguageModel, method: Method, seed: int, given: Iterable[Iterable[str]] | None = None
) -> Contexts:
  """Contexts of an edit: those given, a sample of the method's kind, or only the bare prompt.

  Raises:
    UserError: for unusable contexts, or if none can be sampled.
  """
  if given is not None:
    return check_contexts(given)
  kind = prefixes_of(method)
  if kind is None:
    return BARE
  return sample_rome_contexts(lm, seed) if kind == 'rome' else sample_contexts(lm, seed)


def prefixes_of(method: Method) -> str | None:
  """Kind of sampled contexts of a method, from `PREFIXES`; None if it uses none."""
  return getattr(method, 'prefixes', None)


def sample_contexts(lm: LanguageModel, seed: int) -> Contexts:
  """The MEMIT family's contexts: the bare prompt, and five sampled texts of ten tokens.

  Each text begins with one of `STARTS`, has ten tokens including it (BOS not counted), by top-5
  sampling, and ends with a full stop. The published codes sample without a seed, so no two of their
  runs share contexts.

  Args:
    lm: the model to sample from.
    seed: of the draw.

  Returns:
    `(('{}',), (five templates,))`.
  """
  rows = [list(ids) for ids in lm.tokenizer(list(STARTS))['input_ids']]
  (alone,) = lm.tokenizer([STARTS[0]], add_special_tokens=False)['input_ids']
  num_special = len(rows[0]) - len(alone)
  return (('{}',), _written(lm, rows, NUM_TOKENS + num_special, seed))


def sample_rome_contexts(lm: LanguageModel, seed: int) -> Contexts:
  """ROME's contexts: the bare prompt, ten sampled texts of five tokens and ten of ten.

  As `sample_contexts`, but every text begins with the BOS or EOS token, which counts but is not
  part of the template.

  Returns:
    `(('{}',), (twenty templates,))`.

  Raises:
    UserError: for a tokenizer without such a token.
  """
  tokenizer = lm.tokenizer
  start = list(tokenizer('')['input_ids'])[:1] or [tokenizer.eos_token_id]
  if start == [None]:
    raise UserError(
      "The tokenizer has no BOS or EOS token, with which ROME's contexts begin; "
      "give contexts, or choose prefixes='memit'."
    )
  templates: tuple[str, ...] = ()
  for length in dict.fromkeys(ROME_LENGTHS):
    rows = [start] * ROME_LENGTHS.count(length)
    templates += _written(lm, rows, length, seed, first=len(templates))
  return (('{}',), templates)


def _written(
  lm: LanguageModel, rows: Sequence[Sequence[int]], length: int, seed: int, first: int = 0
) -> tuple[str, ...]:
  """Continuations of the rows by the model, as templates.

  Args:
    lm, seed: as in `sample_contexts`.
    rows: beginnings of the texts.
    length: of the texts, special tokens and beginnings included.
    first: number of the first text; equal beginnings with other numbers continue differently.
  """
  new = generate(
    lm.model,
    rows,
    max_new_tokens=length,
    max_length=length,
    top_k=_TOP_K,
    seed=seed,
    row_ids=range(first, first + len(rows)),
  )
  texts = [
    lm.tokenizer.decode([*row, *ids], skip_special_tokens=True)
    for row, ids in zip(rows, new, strict=True)
  ]
  return tuple(' '.join(text.split()) + '. {}' for text in texts)
