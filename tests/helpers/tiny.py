"""Small random models: Hugging Face configs, parameters, tokens."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.models import FAMILIES, ModelConfig, init_params

VOCAB = 61

GPTJ = {
  'model_type': 'gptj',
  'architectures': ['GPTJForCausalLM'],
  'vocab_size': VOCAB,
  'n_layer': 2,
  'n_embd': 32,
  'n_head': 4,
  'n_inner': 48,
  'n_positions': 64,
  'rotary_dim': 4,
  'activation_function': 'gelu_new',
  'tie_word_embeddings': False,
  'attn_pdrop': 0.0,
  'embd_pdrop': 0.0,
  'resid_pdrop': 0.0,
  'bos_token_id': 0,
  'eos_token_id': 0,
  'dtype': 'float32',
}
LLAMA = {
  'model_type': 'llama',
  'architectures': ['LlamaForCausalLM'],
  'vocab_size': VOCAB,
  'num_hidden_layers': 2,
  'hidden_size': 32,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'intermediate_size': 44,
  'max_position_embeddings': 64,
  'rms_norm_eps': 1e-5,
  'tie_word_embeddings': False,
  'bos_token_id': 0,
  'eos_token_id': 1,
  'dtype': 'float32',
}
HF_CONFIGS = {'gptj': GPTJ, 'llama': LLAMA}


def hf_config(family: str, **fields: Any) -> dict[str, Any]:
  """config.json of a small model, with some fields changed."""
  return {**HF_CONFIGS[family], **fields}


def random_params(config: ModelConfig, seed: int = 0) -> Any:
  """Parameters in which no bias is zero and no gain is one."""
  rng = np.random.default_rng(seed)

  def draw(leaf):
    centre = 1.0 if leaf.ndim == 1 else 0.0
    return jnp.asarray(centre + rng.normal(0, 0.2, leaf.shape), jnp.float32)

  return jax.tree.map(draw, jax.eval_shape(lambda: init_params(config, jax.random.key(0))))


@functools.cache
def model(family: str, num_layers: int = 2) -> tuple[ModelConfig, Any]:
  """Config and parameters of the small model of a family, in float32."""
  config = FAMILIES[family].read_config(HF_CONFIGS[family], 'float32')
  config = dataclasses.replace(config, num_layers=num_layers)
  return config, random_params(config)


def in_dtype(config: ModelConfig, params: Any, dtype: str) -> tuple[ModelConfig, Any]:
  """The model with weights and activations of another dtype."""
  cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  return dataclasses.replace(config, dtype=dtype), cast


def tokens(num_rows: int, num_tokens: int, seed: int = 1) -> jax.Array:
  """Random token ids [N, T]."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(0, VOCAB, (num_rows, num_tokens)), jnp.int32)
