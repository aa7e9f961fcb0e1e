"""Mistral: LLaMA with sliding-window attention."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jedit.models import llama
from jedit.models.config import ModelConfig, read_window


def read_config(hf: Mapping[str, Any], dtype: str) -> ModelConfig:
  """ModelConfig of a Hugging Face Mistral config."""
  hf = {'num_key_value_heads': 8, 'sliding_window': 4096, **hf}  # defaults of absent fields
  config = llama.read_config(hf, dtype)
  return dataclasses.replace(
    config, family='mistral', sliding_window=read_window(hf, hf['sliding_window'])
  )


FAMILY = dataclasses.replace(llama.FAMILY, model_type='mistral', read_config=read_config)
