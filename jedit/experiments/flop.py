"""Floating-point operations that editing needs, independent of the implementation.

Counted are products with weight matrices, two operations per weight and token, over tokens that
exist (no padding), every row by itself. Left out are attention's own products (below 1% at these
lengths and widths), norms and activations. Formulas are linear in the tokens, so those of a mean
row, times the number of rows, are those of all rows. With L blocks of `block` operations per token
and `head` = 2 D V per prediction:

  targets, δ behind the two halves of block l, E evaluations of which the last takes no step:
    once    block · (row tokens · (l + 1) + tokens before the window · (L - l - 2))
            + 4 D² · tokens before the window                       (keys, values of the last block)
    steps   (2E - 1) · (block · window tokens · (L - l - 1) + head · predictions)

    A window runs from the δ position, the subject's last token, to the last token that predicts. A
    step is a forward pass and a backward pass of the same size, because only activations get
    gradients; blocks at or below δ need neither. The KL row ends at its subject's last token: a
    window of one token.

  keys of layers l₁ to l₂, and residuals at l₂:
    carried up   block · key row tokens · l₂ + 2 D F per key row    (the last layer's key itself)
    look-ahead   block · bare row tokens · Σ (l₂ - l + 1)           (over the edited layers l)

    Key rows end at the subject's last token; the bare row is one of them.

  solve, float64, per layer and for all B edits: F³ / 3 (Cholesky, once for all batches) + 2 B F²
    (solves) + 2 B F D (update)

  evaluation, per prompt with objects of n tokens each:
    block · (prompt tokens + Σ (n - 1)) · L + head · (1 + Σ (n - 1))

  second moments up to layer l₂, per token: block · (l₂ + 1) + 2 F² per edited layer
"""

import math
from collections.abc import Sequence

import jax

from jedit.models import ModelConfig
from jedit.models.sharding import param_shapes


def block_flop(config: ModelConfig) -> int:
  """One token through the matrices of one block; a GPT-J's are 2 (4 D² + 2 D F)."""
  leaves = jax.tree.leaves(param_shapes(config)['block_0'])
  return 2 * sum(math.prod(leaf.shape) for leaf in leaves if len(leaf.shape) == 2)


def head_flop(config: ModelConfig) -> int:
  """One prediction."""
  return 2 * config.width * config.vocab_size


def target_flop(
  config: ModelConfig,
  layer: int,
  num_evaluations: int,
  row_tokens: float,
  start: float,
  predictions: float,
) -> float:
  """The target of one edit on one of its rows.

  Args:
    config: sizes of the model.
    layer: block whose attention and MLP outputs take δ.
    num_evaluations: of the loss.
    row_tokens: tokens that are model input.
    start: tokens before the window.
    predictions: predicted tokens.
  """
  above = config.num_layers - layer - 1
  once = block_flop(config) * (row_tokens * (layer + 1) + start * max(above - 1, 0))
  if above:
    once += 4 * config.width**2 * start
  step = block_flop(config) * (row_tokens - start) * above + head_flop(config) * predictions
  return once + (2 * num_evaluations - 1) * step


def key_flop(
  config: ModelConfig,
  layers: Sequence[int],
  key_tokens: float,
  num_rows: float,
  bare_tokens: float,
) -> float:
  """Keys of all layers and residuals at the last one, for one edit.

  Args:
    config: sizes of the model.
    layers: ascending layer numbers.
    key_tokens: tokens of all key rows together.
    num_rows: key rows.
    bare_tokens: tokens of the bare row.
  """
  last = layers[-1]
  look_ahead = sum(last - layer + 1 for layer in layers)
  carried = block_flop(config) * key_tokens * last
  keys = 2 * config.width * config.ffn_width * num_rows
  return carried + keys + block_flop(config) * bare_tokens * look_ahead


def solve_flop(sizes: Sequence[int], width: int, num_edits: int) -> float:
  """Least-squares solves of kernels with these F, float64."""
  return sum(2 * num_edits * size**2 + size**3 / 3 + 2 * num_edits * size * width for size in sizes)


def prompt_flop(config: ModelConfig, num_tokens: float, num_more: float) -> float:
  """A prompt and the objects behind it, with so many tokens beyond each object's first."""
  blocks = block_flop(config) * (num_tokens + num_more) * config.num_layers
  return blocks + head_flop(config) * (1 + num_more)


def second_moment_flop(config: ModelConfig, layers: Sequence[int], sizes: Sequence[int]) -> float:
  """One token: the blocks up to the highest layer, and the products of all kernels' keys."""
  return (max(layers) + 1) * block_flop(config) + sum(2 * size**2 for size in sizes)
