"""Needed floating-point operations of a workload: `jedit.experiments.flop` over its tokenised rows.

Generation, per text of T tokens with its prompt: block · (T - 1) · L + head · new tokens.
"""

from collections.abc import Sequence

import transformers

from jedit.editing.prompts import EditRows
from jedit.experiments import flop
from jedit.experiments.flop import block_flop, head_flop
from jedit.models import ModelConfig
from jedit.models.encoding import Row, encode_many
from jedit.types import Record

GENERATED_TOKENS = 100  # of a text, with its prompt


def target_flop(
  config: ModelConfig, rows: Sequence[EditRows], layer: int, num_evaluations: int
) -> float:
  """The targets of all edits, with δ at `layer`."""
  total = 0.0
  for edit in rows:
    texts = [
      (len(text.ids) - 1, text.subject_last, len(text.target_ids)) for text in edit.with_target
    ]
    texts.append((edit.kl.subject_last + 1, edit.kl.subject_last, 1))
    total += sum(flop.target_flop(config, layer, num_evaluations, *text) for text in texts)
  return total


def key_flop(config: ModelConfig, rows: Sequence[EditRows], layers: Sequence[int]) -> float:
  """Keys of all layers, ascending, and residuals at the last one, for all edits."""
  total = 0.0
  for edit in rows:
    key_tokens = sum(text.subject_last + 1 for text in edit.without_target)
    bare_tokens = edit.bare.subject_last + 1
    total += flop.key_flop(config, layers, key_tokens, len(edit.without_target), bare_tokens)
  return total


def solve_flop(config: ModelConfig, num_edits: int, num_layers: int) -> float:
  """Least-squares solves of `num_layers` layers, float64."""
  return flop.solve_flop([config.ffn_width] * num_layers, config.width, num_edits)


def evaluation_flop(
  config: ModelConfig,
  tokenizer: transformers.PreTrainedTokenizerBase,
  records: Sequence[Record],
) -> float:
  """Every prompt of the records once, and both objects behind it."""
  total = 0.0
  for record in records:
    request = record.request
    prompts = [request.text, *record.paraphrase_prompts, *record.neighborhood_prompts]
    targets = [request.target_new, *([request.target_true] if request.target_true else [])]
    rows = [[Row(prompt, target=target) for target in targets] for prompt in prompts]
    for group in rows:
      encoded = encode_many(tokenizer, group)
      more = sum(len(row.target_ids) - 1 for row in encoded)
      total += flop.prompt_flop(config, encoded[0].target_start, more)
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


def second_moment_flop(config: ModelConfig, layers: Sequence[int]) -> float:
  """One token: the blocks up to the highest layer, and the products of all layers' keys."""
  return flop.second_moment_flop(config, layers, [config.ffn_width] * len(layers))
