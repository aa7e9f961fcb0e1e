"""Prefix contexts: short texts that the model itself writes, put before the prompts of an edit."""

from jedit.data.edit_rows import Contexts
from jedit.language_model import LanguageModel
from jedit.models.generate import generate

STARTS = ('The', 'Therefore', 'Because', 'I', 'You')
NUM_TOKENS = 10
_TOP_K = 5


def sample_contexts(lm: LanguageModel, seed: int) -> Contexts:
  """The MEMIT family's contexts: the bare prompt, and five sampled texts of ten tokens.

  Each text begins with one of `STARTS`, is ten tokens long with it (BOS not counted), drawn from
  the five most probable tokens at every step, and is closed by a full stop. The published codes
  draw them unseeded, so that no two of their runs see the same weights.

  Args:
    lm: the model that writes.
    seed: of the draw.

  Returns:
    `(('{}',), (five templates,))`.
  """
  rows = [list(ids) for ids in lm.tokenizer(list(STARTS))['input_ids']]
  (alone,) = lm.tokenizer([STARTS[0]], add_special_tokens=False)['input_ids']
  num_special = len(rows[0]) - len(alone)
  new = generate(
    lm.config,
    lm.params,
    rows,
    max_new_tokens=NUM_TOKENS,
    max_length=NUM_TOKENS + num_special,
    top_k=_TOP_K,
    seed=seed,
  )
  texts = [
    lm.tokenizer.decode(row + list(ids), skip_special_tokens=True)
    for row, ids in zip(rows, new, strict=True)
  ]
  return (('{}',), tuple(' '.join(text.split()) + '. {}' for text in texts))
