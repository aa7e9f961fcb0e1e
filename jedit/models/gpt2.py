"""GPT-2: learned positions, attention and MLP one after the other, kernels stored [in, out]."""

import functools
from collections.abc import Mapping
from typing import Any

from jedit.models.config import Family, ModelConfig, require
from jedit.models.layers import MLP, SHARDING, LayerNorm, TwoNormBlock
from jedit.types import UserError

# Unsupported variants of the network: the config field, and its value in every known model.
_USUAL = {
  'scale_attn_weights': True,
  'scale_attn_by_inverse_layer_idx': False,
  'add_cross_attention': False,
}


def read_config(hf: Mapping[str, Any], dtype: str) -> ModelConfig:
  """ModelConfig of a Hugging Face GPT-2 config."""
  vocab, layers, width, heads = require(hf, 'vocab_size', 'n_layer', 'n_embd', 'n_head')
  for field, usual in _USUAL.items():
    if hf.get(field, usual) != usual:
      raise UserError(f'The model has {field}={hf[field]}; GPT-2 is supported with {usual}.')
  return ModelConfig(
    family='gpt2',
    vocab_size=vocab,
    num_layers=layers,
    width=width,
    num_heads=heads,
    num_kv_heads=heads,
    head_dim=width // heads,
    ffn_width=hf.get('n_inner') or 4 * width,
    max_positions=hf.get('n_positions', 1024),
    norm_eps=hf.get('layer_norm_epsilon', 1e-5),
    rope=None,
    activation=hf.get('activation_function', 'gelu_new'),
    tie_head=bool(hf.get('tie_word_embeddings', True)),
    fused_qkv='by_part',
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    dtype=dtype,
  )


FAMILY = Family(
  model_type='gpt2',
  read_config=read_config,
  block=functools.partial(TwoNormBlock, norm=LayerNorm, mlp=MLP),
  final_norm=LayerNorm,
  names=(
    ('transformer.wte.weight', 'embed/embedding', 'plain'),
    ('transformer.wpe.weight', 'embed/positions', 'plain'),
    ('transformer.h.{}.ln_1.weight', 'block_{}/attn_norm/scale', 'plain'),
    ('transformer.h.{}.ln_1.bias', 'block_{}/attn_norm/bias', 'plain'),
    ('transformer.h.{}.attn.c_attn.weight', 'block_{}/attn/qkv/kernel', 'plain'),
    ('transformer.h.{}.attn.c_attn.bias', 'block_{}/attn/qkv/bias', 'plain'),
    ('transformer.h.{}.attn.c_proj.weight', 'block_{}/attn/out/kernel', 'plain'),
    ('transformer.h.{}.attn.c_proj.bias', 'block_{}/attn/out/bias', 'plain'),
    ('transformer.h.{}.ln_2.weight', 'block_{}/mlp_norm/scale', 'plain'),
    ('transformer.h.{}.ln_2.bias', 'block_{}/mlp_norm/bias', 'plain'),
    ('transformer.h.{}.mlp.c_fc.weight', 'block_{}/mlp/up/kernel', 'plain'),
    ('transformer.h.{}.mlp.c_fc.bias', 'block_{}/mlp/up/bias', 'plain'),
    ('transformer.h.{}.mlp.c_proj.weight', 'block_{}/mlp/down/kernel', 'plain'),
    ('transformer.h.{}.mlp.c_proj.bias', 'block_{}/mlp/down/bias', 'plain'),
    ('transformer.ln_f.weight', 'final_norm/scale', 'plain'),
    ('transformer.ln_f.bias', 'final_norm/bias', 'plain'),
    ('lm_head.weight', 'head/kernel', 'kernel'),
  ),
  ignored=(r'(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)',),
  sharding=SHARDING,
  renames=(('transformer.', ''),),  # the original checkpoints hold the model without its head
)
