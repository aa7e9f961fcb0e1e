"""GPT-J: parallel attention and MLP on one norm, interleaved rotary pairs, biased head."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from jedit.models.config import Family, ModelConfig, Rope, require
from jedit.models.layers import MLP, SHARDING, Attention, LayerNorm
from jedit.models.sites import Sites
from jedit.models.view import View


class Block(nn.Module):
  """x + attention(norm(x)) + mlp(norm(x)), with one norm for both."""

  config: ModelConfig
  layer: int

  @nn.compact
  def __call__(self, x_NxTxD: jax.Array, view: View, sites: Sites) -> jax.Array:
    normed = LayerNorm(self.config.norm_eps, name='norm')(x_NxTxD)
    attn_normed = sites(self.layer, 'attn_normed', normed)
    mlp_normed = sites(self.layer, 'mlp_normed', normed)
    attn = Attention(self.config, self.layer, name='attn')(attn_normed, view, sites)
    mlp = MLP(self.config, self.layer, name='mlp')(mlp_normed, sites)
    return sites(self.layer, 'block_out', attn + mlp + x_NxTxD)


def read_config(hf: Mapping[str, Any], dtype: str) -> ModelConfig:
  """ModelConfig of a Hugging Face GPT-J config."""
  vocab, layers, width, heads = require(hf, 'vocab_size', 'n_layer', 'n_embd', 'n_head')
  positions = hf.get('n_positions', 2048)
  head_dim = width // heads
  return ModelConfig(
    family='gptj',
    vocab_size=vocab,
    num_layers=layers,
    width=width,
    num_heads=heads,
    num_kv_heads=heads,
    head_dim=head_dim,
    ffn_width=hf.get('n_inner') or 4 * width,
    max_positions=positions,
    norm_eps=hf.get('layer_norm_epsilon', 1e-5),
    rope=Rope(dim=hf.get('rotary_dim') or head_dim, interleaved=True, original_positions=positions),
    activation=hf.get('activation_function', 'gelu_new'),
    tie_head=bool(hf.get('tie_word_embeddings', False)),
    head_bias=True,
    mlp_bias=True,
    dtype=dtype,
  )


FAMILY = Family(
  model_type='gptj',
  read_config=read_config,
  block=Block,
  final_norm=LayerNorm,
  names=(
    ('transformer.wte.weight', 'embed/embedding', 'plain'),
    ('transformer.h.{}.ln_1.weight', 'block_{}/norm/scale', 'plain'),
    ('transformer.h.{}.ln_1.bias', 'block_{}/norm/bias', 'plain'),
    ('transformer.h.{}.attn.q_proj.weight', 'block_{}/attn/q/kernel', 'kernel'),
    ('transformer.h.{}.attn.k_proj.weight', 'block_{}/attn/k/kernel', 'kernel'),
    ('transformer.h.{}.attn.v_proj.weight', 'block_{}/attn/v/kernel', 'kernel'),
    ('transformer.h.{}.attn.out_proj.weight', 'block_{}/attn/out/kernel', 'kernel'),
    ('transformer.h.{}.mlp.fc_in.weight', 'block_{}/mlp/up/kernel', 'kernel'),
    ('transformer.h.{}.mlp.fc_in.bias', 'block_{}/mlp/up/bias', 'plain'),
    ('transformer.h.{}.mlp.fc_out.weight', 'block_{}/mlp/down/kernel', 'kernel'),
    ('transformer.h.{}.mlp.fc_out.bias', 'block_{}/mlp/down/bias', 'plain'),
    ('transformer.ln_f.weight', 'final_norm/scale', 'plain'),
    ('transformer.ln_f.bias', 'final_norm/bias', 'plain'),
    ('lm_head.weight', 'head/kernel', 'kernel'),
    ('lm_head.bias', 'head/bias', 'plain'),
    ('lm_head.bias', 'head_bias', 'plain'),  # for a head tied to the embedding
  ),
  ignored=(
    r'transformer\.h\.\d+\.attn\.(bias|masked_bias)',
    r'transformer\.h\.\d+\.attn\.embed_positions',
  ),
  sharding=SHARDING,
)
