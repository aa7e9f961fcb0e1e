"""GPT-NeoX: parallel attention and MLP with a norm each; one map to query, key and value."""

import functools
from collections.abc import Mapping
from typing import Any

from jedit.models.config import Family, ModelConfig, read_rope, require
from jedit.models.layers import MLP, SHARDING, LayerNorm, TwoNormBlock


def read_config(hf: Mapping[str, Any], dtype: str) -> ModelConfig:
  """ModelConfig of a Hugging Face GPT-NeoX config."""
  vocab, layers, width, heads, ffn = require(
    hf, 'vocab_size', 'num_hidden_layers', 'hidden_size', 'num_attention_heads', 'intermediate_size'
  )
  positions = hf.get('max_position_embeddings', 2048)
  head_dim = width // heads
  rotated = (hf.get('rope_parameters') or {}).get(
    'partial_rotary_factor', hf.get('rotary_pct', 0.25)
  )
  old = {'rope_theta': hf.get('rotary_emb_base', 10000.0)}
  bias = bool(hf.get('attention_bias', True))
  return ModelConfig(
    family='gpt_neox',
    vocab_size=vocab,
    num_layers=layers,
    width=width,
    num_heads=heads,
    num_kv_heads=heads,
    head_dim=head_dim,
    ffn_width=ffn,
    max_positions=positions,
    norm_eps=hf.get('layer_norm_eps', 1e-5),
    rope=read_rope(
      {**old, **hf}, int(head_dim * rotated), interleaved=False, max_positions=positions
    ),
    activation=hf.get('hidden_act', 'gelu'),
    tie_head=bool(hf.get('tie_word_embeddings', False)),
    fused_qkv='by_head',
    qkv_bias=bias,
    out_bias=bias,
    mlp_bias=True,
    parallel=bool(hf.get('use_parallel_residual', True)),
    dtype=dtype,
  )


FAMILY = Family(
  model_type='gpt_neox',
  read_config=read_config,
  block=functools.partial(TwoNormBlock, norm=LayerNorm, mlp=MLP),
  final_norm=LayerNorm,
  names=(
    ('gpt_neox.embed_in.weight', 'embed/embedding', 'plain'),
    ('gpt_neox.layers.{}.input_layernorm.weight', 'block_{}/attn_norm/scale', 'plain'),
    ('gpt_neox.layers.{}.input_layernorm.bias', 'block_{}/attn_norm/bias', 'plain'),
    ('gpt_neox.layers.{}.post_attention_layernorm.weight', 'block_{}/mlp_norm/scale', 'plain'),
    ('gpt_neox.layers.{}.post_attention_layernorm.bias', 'block_{}/mlp_norm/bias', 'plain'),
    ('gpt_neox.layers.{}.attention.query_key_value.weight', 'block_{}/attn/qkv/kernel', 'kernel'),
    ('gpt_neox.layers.{}.attention.query_key_value.bias', 'block_{}/attn/qkv/bias', 'plain'),
    ('gpt_neox.layers.{}.attention.dense.weight', 'block_{}/attn/out/kernel', 'kernel'),
    ('gpt_neox.layers.{}.attention.dense.bias', 'block_{}/attn/out/bias', 'plain'),
    ('gpt_neox.layers.{}.mlp.dense_h_to_4h.weight', 'block_{}/mlp/up/kernel', 'kernel'),
    ('gpt_neox.layers.{}.mlp.dense_h_to_4h.bias', 'block_{}/mlp/up/bias', 'plain'),
    ('gpt_neox.layers.{}.mlp.dense_4h_to_h.weight', 'block_{}/mlp/down/kernel', 'kernel'),
    ('gpt_neox.layers.{}.mlp.dense_4h_to_h.bias', 'block_{}/mlp/down/bias', 'plain'),
    ('gpt_neox.final_layer_norm.weight', 'final_norm/scale', 'plain'),
    ('gpt_neox.final_layer_norm.bias', 'final_norm/bias', 'plain'),
    ('embed_out.weight', 'head/kernel', 'kernel'),
  ),
  ignored=(
    r'gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias)',
    r'gpt_neox\.layers\.\d+\.attention\.rotary_emb\.inv_freq',
  ),
  sharding=SHARDING,
  renames=(('embed_out.', 'lm_head.'),),
)
