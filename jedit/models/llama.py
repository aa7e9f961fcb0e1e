"""LLaMA 1 to 3: RMSNorm, SwiGLU, grouped-query attention, rotary pairs (i, i + Dh/2)."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from jedit.models.config import Family, ModelConfig, read_rope, require
from jedit.models.layers import ACTIVATIONS, SHARDING, Linear, RMSNorm, TwoNormBlock
from jedit.models.sites import Sites


class MLP(nn.Module):
  """Gated MLP: down(act(gate(x)) * up(x))."""

  config: ModelConfig
  layer: int

  @nn.compact
  def __call__(self, x_NxTxD: jax.Array, sites: Sites) -> jax.Array:
    c = self.config
    gate = Linear(c.ffn_width, c.mlp_bias, name='gate')
    gate_NxTxF = gate(x_NxTxD, sites.change(self.layer, 'mlp_gate'))
    gate_NxTxF = ACTIVATIONS[c.activation](sites(self.layer, 'mlp_gate', gate_NxTxF))
    up = Linear(c.ffn_width, c.mlp_bias, name='up')
    up_NxTxF = sites(self.layer, 'mlp_up', up(x_NxTxD, sites.change(self.layer, 'mlp_up')))
    key_NxTxF = sites(self.layer, 'mlp_in', gate_NxTxF * up_NxTxF)
    down = Linear(c.width, c.mlp_bias, name='down')
    return sites(self.layer, 'mlp_out', down(key_NxTxF, sites.change(self.layer, 'mlp')))


def read_config(hf: Mapping[str, Any], dtype: str) -> ModelConfig:
  """ModelConfig of a Hugging Face LLaMA config."""
  vocab, layers, width, heads, ffn = require(
    hf, 'vocab_size', 'num_hidden_layers', 'hidden_size', 'num_attention_heads', 'intermediate_size'
  )
  positions = hf.get('max_position_embeddings', 2048)
  head_dim = hf.get('head_dim') or width // heads
  attention_bias = bool(hf.get('attention_bias', False))
  return ModelConfig(
    family='llama',
    vocab_size=vocab,
    num_layers=layers,
    width=width,
    num_heads=heads,
    num_kv_heads=hf.get('num_key_value_heads') or heads,
    head_dim=head_dim,
    ffn_width=ffn,
    max_positions=positions,
    norm_eps=hf.get('rms_norm_eps', 1e-6),
    rope=read_rope(hf, head_dim, interleaved=False, max_positions=positions),
    activation=hf.get('hidden_act', 'silu'),
    tie_head=bool(hf.get('tie_word_embeddings', False)),
    qkv_bias=attention_bias,
    out_bias=attention_bias,
    mlp_bias=bool(hf.get('mlp_bias', False)),
    dtype=dtype,
  )


FAMILY = Family(
  model_type='llama',
  read_config=read_config,
  block=functools.partial(TwoNormBlock, norm=RMSNorm, mlp=MLP),
  final_norm=RMSNorm,
  names=(
    ('model.embed_tokens.weight', 'embed/embedding', 'plain'),
    ('model.layers.{}.input_layernorm.weight', 'block_{}/attn_norm/scale', 'plain'),
    ('model.layers.{}.self_attn.q_proj.weight', 'block_{}/attn/q/kernel', 'kernel'),
    ('model.layers.{}.self_attn.q_proj.bias', 'block_{}/attn/q/bias', 'plain'),
    ('model.layers.{}.self_attn.k_proj.weight', 'block_{}/attn/k/kernel', 'kernel'),
    ('model.layers.{}.self_attn.k_proj.bias', 'block_{}/attn/k/bias', 'plain'),
    ('model.layers.{}.self_attn.v_proj.weight', 'block_{}/attn/v/kernel', 'kernel'),
    ('model.layers.{}.self_attn.v_proj.bias', 'block_{}/attn/v/bias', 'plain'),
    ('model.layers.{}.self_attn.o_proj.weight', 'block_{}/attn/out/kernel', 'kernel'),
    ('model.layers.{}.self_attn.o_proj.bias', 'block_{}/attn/out/bias', 'plain'),
    ('model.layers.{}.post_attention_layernorm.weight', 'block_{}/mlp_norm/scale', 'plain'),
    ('model.layers.{}.mlp.gate_proj.weight', 'block_{}/mlp/gate/kernel', 'kernel'),
    ('model.layers.{}.mlp.gate_proj.bias', 'block_{}/mlp/gate/bias', 'plain'),
    ('model.layers.{}.mlp.up_proj.weight', 'block_{}/mlp/up/kernel', 'kernel'),
    ('model.layers.{}.mlp.up_proj.bias', 'block_{}/mlp/up/bias', 'plain'),
    ('model.layers.{}.mlp.down_proj.weight', 'block_{}/mlp/down/kernel', 'kernel'),
    ('model.layers.{}.mlp.down_proj.bias', 'block_{}/mlp/down/bias', 'plain'),
    ('model.norm.weight', 'final_norm/scale', 'plain'),
    ('lm_head.weight', 'head/kernel', 'kernel'),
  ),
  ignored=(r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq',),
  sharding=(
    (r'block_\d+/mlp/gate/kernel', (None, 'model')),
    (r'block_\d+/mlp/gate/bias', ('model',)),
    *SHARDING,
  ),
)
