"""Small random models: Hugging Face configs, parameters, tokens."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.models import FAMILIES, Model, ModelConfig, init_params

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
GPT_NEOX = {
  'model_type': 'gpt_neox',
  'architectures': ['GPTNeoXForCausalLM'],
  'vocab_size': VOCAB,
  'num_hidden_layers': 2,
  'hidden_size': 32,
  'num_attention_heads': 4,
  'intermediate_size': 48,
  'max_position_embeddings': 64,
  'rotary_pct': 0.5,
  'rotary_emb_base': 10000,
  'hidden_act': 'gelu',
  'layer_norm_eps': 1e-5,
  'use_parallel_residual': True,
  'tie_word_embeddings': False,
  'bos_token_id': 0,
  'eos_token_id': 0,
  'dtype': 'float32',
}
GPT2 = {
  'model_type': 'gpt2',
  'architectures': ['GPT2LMHeadModel'],
  'vocab_size': VOCAB,
  'n_layer': 2,
  'n_embd': 32,
  'n_head': 4,
  'n_inner': 48,
  'n_positions': 64,
  'activation_function': 'gelu_new',
  'attn_pdrop': 0.0,
  'embd_pdrop': 0.0,
  'resid_pdrop': 0.0,
  'bos_token_id': 0,
  'eos_token_id': 0,
  'dtype': 'float32',
}
HF_CONFIGS = {'gptj': GPTJ, 'llama': LLAMA, 'gpt_neox': GPT_NEOX, 'gpt2': GPT2}

# Families that are LLaMA but for a few fields; tests of what they add use them.
LLAMA_LIKE = {
  'mistral': {
    **LLAMA,
    'model_type': 'mistral',
    'architectures': ['MistralForCausalLM'],
    'sliding_window': 4,
  },
  'qwen2': {**LLAMA, 'model_type': 'qwen2', 'architectures': ['Qwen2ForCausalLM']},
  'qwen3': {
    **LLAMA,
    'model_type': 'qwen3',
    'architectures': ['Qwen3ForCausalLM'],
    'head_dim': 12,
  },
}


def hf_config(family: str, **fields: Any) -> dict[str, Any]:
  """config.json of a small model, with some fields changed."""
  return {**{**HF_CONFIGS, **LLAMA_LIKE}[family], **fields}


def random_params(config: ModelConfig, seed: int = 0) -> Any:
  """Parameters in which no bias is zero and no gain is one."""
  rng = np.random.default_rng(seed)

  def draw(leaf):
    centre = 1.0 if leaf.ndim == 1 else 0.0
    return jnp.asarray(centre + rng.normal(0, 0.2, leaf.shape), jnp.float32)

  return jax.tree.map(draw, jax.eval_shape(lambda: init_params(config, jax.random.key(0))))


def make_model(family: str, **fields: Any) -> Model:
  """A small model in float32, with some fields of config.json changed."""
  config = FAMILIES[family].read_config(hf_config(family, **fields), 'float32')
  return Model(random_params(config), config=config)


@functools.cache
def model(family: str, num_layers: int = 2) -> Model:
  """The small model of a family in float32; read only."""
  config = dataclasses.replace(make_model(family).config, num_layers=num_layers)
  return Model(random_params(config), config=config)


def in_dtype(model: Model, dtype: str) -> Model:
  """The model with weights and activations of another dtype."""
  cast = jax.tree.map(lambda leaf: leaf.astype(dtype), model.params)
  return Model(cast, config=dataclasses.replace(model.config, dtype=dtype))


def tokens(num_rows: int, num_tokens: int, seed: int = 1) -> jax.Array:
  """Random token ids [N, T]."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(0, VOCAB, (num_rows, num_tokens)), jnp.int32)


@jax.jit
def _logits(model: Model, token_1xT: jax.Array) -> jax.Array:
  hidden_1xTxD, _ = model(token_1xT)
  return model.head(hidden_1xTxD)


def logits(model: Model, ids: Any, length: int = 64) -> np.ndarray:
  """Logits [T, V] after each of the tokens of one row, which is padded to `length`."""
  row = np.zeros((1, length), np.int32)
  row[0, : len(ids)] = ids
  return np.asarray(_logits(model, row), np.float64)[0, : len(ids)]
