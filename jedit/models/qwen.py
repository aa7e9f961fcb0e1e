"""Qwen 2 and 3 without experts: LLaMA with biases to q, k and v (2) or norms on q and k (3)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jedit.models import llama
from jedit.models.config import ModelConfig, read_window


def read_qwen2(hf: Mapping[str, Any], dtype: str) -> ModelConfig:
  """ModelConfig of a Hugging Face Qwen2 config."""
  config = llama.read_config(hf, dtype)
  return dataclasses.replace(config, family='qwen2', qkv_bias=True, sliding_window=_window(hf))


def read_qwen3(hf: Mapping[str, Any], dtype: str) -> ModelConfig:
  """ModelConfig of a Hugging Face Qwen3 config."""
  config = llama.read_config({'head_dim': 128, **hf}, dtype)
  return dataclasses.replace(config, family='qwen3', qk_norm=True, sliding_window=_window(hf))


def _window(hf: Mapping[str, Any]) -> int | None:
  if not hf.get('use_sliding_window', False):
    return None
  num_full = hf.get('max_window_layers', 28)
  kinds = ['full_attention', 'sliding_attention']
  layer_types = [kinds[layer >= num_full] for layer in range(hf['num_hidden_layers'])]
  return read_window({'layer_types': layer_types, **hf}, hf.get('sliding_window', 4096))


QWEN2 = dataclasses.replace(llama.FAMILY, model_type='qwen2', read_config=read_qwen2)
QWEN3 = dataclasses.replace(
  llama.FAMILY,
  model_type='qwen3',
  read_config=read_qwen3,
  names=(
    *llama.FAMILY.names,
    ('model.layers.{}.self_attn.q_norm.weight', 'block_{}/attn/q_norm/scale', 'plain'),
    ('model.layers.{}.self_attn.k_norm.weight', 'block_{}/attn/k_norm/scale', 'plain'),
  ),
)
