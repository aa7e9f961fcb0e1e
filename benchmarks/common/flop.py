"""Floating-point operations that editing needs, independent of the implementation.

Counted are products with weight matrices, two operations per weight and token, over tokens that
exist (no padding), every row by itself. Left out are attention's own products (below 1% at these
lengths and widths), norms and activations. With block = 2 (4 D² + 2 D F) and head = 2 D V:

  targets, δ behind the two halves of block l, E evaluations of which the last takes no step:
    once    block · (row tokens · (l + 1) + tokens before the subject's last · (L - l - 2))
            + 4 D² · tokens before the subject's last               (keys, values of the last block)
    steps   (2E - 1) · (block · window tokens · (L - l - 1) + head · predictions)

    A window runs from the subject's last token to the last one that predicts. A step is a forward
    pass and a backward pass of the same size, because only activations get gradients; blocks at
    or below δ need neither. The KL row ends at its subject's last token: a window of one token.

  keys of layers l₁ to l₂, P contexts, and residuals at l₂:
    carried up   block · key row tokens · l₂ + P · 2 D F             (the last layer's key itself)
    look-ahead   block · bare row tokens · Σ (l₂ - l + 1)            (over the edited layers l)

    Key rows end at the subject's last token; the bare row is one of them.

  solve, float64, per layer and for all B edits: F³ / 3 (Cholesky, once for all batches) + 2 B F²
    (solves) + 2 B F D (update)

  evaluation, per prompt with objects of n tokens each:
    block · (prompt tokens + Σ (n - 1)) · L + head · (1 + Σ (n - 1))

  generation, per text of T tokens with its prompt: block · (T - 1) · L + head · new tokens

  second moments up to layer l₂, per token: block · (l₂ + 1) + 2 F² per edited layer
"""

from collections.abc import Sequence

import transformers

from jedit.editing.prompts import EditRows
from jedit.models import ModelConfig
from jedit.models.encoding import Row, encode_many
from jedit.types import Record

GENERATED_TOKENS = 100  # of a text, with its prompt


def block_flop(config: ModelConfig) -> int:
  """One token through the matrices of one GPT-J block."""
  return 2 * (4 * config.width**2 + 2 * config.width * config.ffn_width)


def head_flop(config: ModelConfig) -> int:
  """One prediction."""
  return 2 * config.width * config.vocab_size


def target_flop(
  config: ModelConfig, rows: Sequence[EditRows], layer: int, num_evaluations: int
) -> int:
  """The targets of all edits.

  Args:
    config: sizes of the model.
    rows: texts of the edits.
    layer: block whose attention and MLP outputs take δ.
    num_evaluations: of the loss, per edit.
  """
  above = config.num_layers - layer - 1
  total = 0
  for edit in rows:
    texts = [
      (len(text.ids) - 1, text.subject_last, len(text.target_ids)) for text in edit.with_target
    ]
    texts.append((edit.kl.subject_last + 1, edit.kl.subject_last, 1))
    for num_tokens, start, num_predictions in texts:
      once = block_flop(config) * (num_tokens * (layer + 1) + start * max(above - 1, 0))
      if above:
        once += 4 * config.width**2 * start
      step = block_flop(config) * (num_tokens - start) * above
      step += head_flop(config) * num_predictions
      total += once + (2 * num_evaluations - 1) * step
  return total


def key_flop(config: ModelConfig, rows: Sequence[EditRows], layers: Sequence[int]) -> int:
  """Keys of all layers and residuals at the last one, for all edits.

  Args:
    config: sizes of the model.
    rows: texts of the edits.
    layers: ascending layer numbers.
  """
  last = layers[-1]
  look_ahead = sum(last - layer + 1 for layer in layers)
  total = 0
  for edit in rows:
    key_tokens = sum(text.subject_last + 1 for text in edit.without_target)
    total += block_flop(config) * key_tokens * last
    total += 2 * config.width * config.ffn_width * len(edit.without_target)
    total += block_flop(config) * (edit.bare.subject_last + 1) * look_ahead
  return total


def solve_flop(config: ModelConfig, num_edits: int, num_layers: int) -> int:
  """Least-squares solves of `num_layers` layers, float64."""
  width, ffn = config.width, config.ffn_width
  return num_layers * (2 * num_edits * ffn**2 + ffn**3 // 3 + 2 * num_edits * ffn * width)


def evaluation_flop(
  config: ModelConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
  records: Sequence[Record],
) -> int:
  """Every prompt of the records once, and both objects behind it."""
  total = 0
  for record in records:
    request = record.request
    prompts = [request.text, *record.paraphrase_prompts, *record.neighborhood_prompts]
    targets = [request.target_new, *([request.target_true] if request.target_true else [])]
    rows = [[Row(prompt, target=target) for target in targets] for prompt in prompts]
    for group in rows:
      encoded = encode_many(tokenizer, group)
      more = sum(len(row.target_ids) - 1 for row in encoded)
      tokens = (encoded[0].target_start + more) * config.num_layers
      total += block_flop(config) * tokens + head_flop(config) * (1 + more)
  return total


def generation_flop(
  config: ModelConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
  records: Sequence[Record],
) -> int:
  """Every generation prompt continued to `GENERATED_TOKENS`."""
  total = 0
  for record in records:
    for prompt in record.generation_prompts:
      new = max(GENERATED_TOKENS - len(tokenizer(prompt)['input_ids']), 0)
      if new:
        total += block_flop(config) * (GENERATED_TOKENS - 1) * config.num_layers
        total += head_flop(config) * new
  return total


def second_moment_flop(config: ModelConfig, layers: Sequence[int]) -> int:
  """One token: the blocks up to the highest layer, and the products of all layers' keys."""
  blocks = (layers[-1] + 1) * block_flop(config)
  return blocks + len(layers) * 2 * config.ffn_width**2
