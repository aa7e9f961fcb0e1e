"""Reads llama2.c checkpoints (version 0) and vocabularies, for the one real model of the tests."""

import pathlib
import struct

import numpy as np
from safetensors.numpy import save_file

from jedit.io import storage


def _split_pairs(weight_OxD: np.ndarray, num_heads: int) -> np.ndarray:
  """Rotary pairs (0, 1), (2, 3), ... of each head become (i, i + Dh/2), as in Hugging Face."""
  grouped = weight_OxD.reshape(num_heads, -1, 2, weight_OxD.shape[1])
  return np.ascontiguousarray(grouped.swapaxes(1, 2).reshape(weight_OxD.shape))


def convert(checkpoint_path: pathlib.Path, directory: pathlib.Path) -> None:
  """Writes a llama2.c checkpoint as a Hugging Face directory."""
  data = checkpoint_path.read_bytes()
  width, ffn, layers, heads, kv_heads, vocab, positions = struct.unpack('<7i', data[:28])
  values = np.frombuffer(data, np.float32, offset=28)
  offset = 0

  def take(*shape: int) -> np.ndarray:
    nonlocal offset
    size = int(np.prod(shape))
    offset += size
    return values[offset - size : offset].reshape(shape)

  head_dim = width // heads
  is_tied, vocab = vocab > 0, abs(vocab)  # a negative size says that a head follows
  tensors = {'model.embed_tokens.weight': take(vocab, width)}
  per_layer = {
    'input_layernorm': take(layers, width),
    'self_attn.q_proj': take(layers, width, width),
    'self_attn.k_proj': take(layers, kv_heads * head_dim, width),
    'self_attn.v_proj': take(layers, kv_heads * head_dim, width),
    'self_attn.o_proj': take(layers, width, width),
    'post_attention_layernorm': take(layers, width),
    'mlp.gate_proj': take(layers, ffn, width),
    'mlp.down_proj': take(layers, width, ffn),
    'mlp.up_proj': take(layers, ffn, width),
  }
  tensors['model.norm.weight'] = take(width)
  take(positions * head_dim)  # tables of cosines and sines
  if not is_tied:
    tensors['lm_head.weight'] = take(vocab, width)
  assert offset == len(values), 'not a llama2.c checkpoint of version 0'
  for name, stacked in per_layer.items():
    for layer in range(layers):
      weight = stacked[layer]
      if name in ('self_attn.q_proj', 'self_attn.k_proj'):
        weight = _split_pairs(weight, heads if name == 'self_attn.q_proj' else kv_heads)
      tensors[f'model.layers.{layer}.{name}.weight'] = weight
  directory.mkdir(parents=True)
  save_file(tensors, directory / 'model.safetensors', {'format': 'pt'})
  config = {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': vocab,
    'hidden_size': width,
    'intermediate_size': ffn,
    'num_hidden_layers': layers,
    'num_attention_heads': heads,
    'num_key_value_heads': kv_heads,
    'max_position_embeddings': positions,
    'rms_norm_eps': 1e-5,
    'rope_theta': 10000.0,
    'hidden_act': 'silu',
    'tie_word_embeddings': is_tied,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'torch_dtype': 'float32',
  }
  storage.write_json(directory / 'config.json', config)


def read_pieces(path: pathlib.Path) -> list[bytes]:
  """The vocabulary of a llama2.c tokenizer file, by token id."""
  data = path.read_bytes()
  pieces, offset = [], 4  # the first number is the longest piece
  while offset < len(data):
    _, length = struct.unpack_from('<fi', data, offset)
    pieces.append(data[offset + 8 : offset + 8 + length])
    offset += 8 + length
  return pieces


def decode(pieces: list[bytes], ids: list[int]) -> str:
  """Text of token ids after BOS, whose following space is not part of it."""
  return b''.join(pieces[i] for i in ids).decode(errors='replace').removeprefix(' ')
