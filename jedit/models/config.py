"""What a decoder looks like: sizes, norms and rotary positions of any supported family."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from jedit.types import UserError

_ACTIVATIONS = ('gelu_new', 'gelu_pytorch_tanh', 'gelu', 'silu', 'swish', 'relu')


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary positions: the first `dim` units of each head turn by an angle that grows with position.

  Attributes:
    dim: rotated units per head, even.
    interleaved: pairs are (0, 1), (2, 3), ... (GPT-J) instead of (i, i + dim/2) (LLaMA).
    theta: base of the frequencies.
    kind: 'default', 'linear', 'dynamic' or 'llama3', as `rope_type` of a Hugging Face config.
    factor: how far the context is stretched.
    low_freq_factor, high_freq_factor: llama3 only; wavelengths between the two are blended.
    original_positions: context length the model was trained with, in tokens.
  """

  dim: int
  interleaved: bool
  theta: float = 10000.0
  kind: str = 'default'
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_positions: int = 2048


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes and switches of a decoder-only transformer; hashable, so it can be a jit constant.

  `dtype` is the dtype of the activations; parameters keep the dtype they were loaded in, and a
  product with a wider kernel (an edited one stays float32) is computed in the wider dtype.
  """

  family: str
  vocab_size: int
  num_layers: int
  width: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  ffn_width: int
  max_positions: int
  norm_eps: float
  rope: Rope
  activation: str
  tie_head: bool = False
  head_bias: bool = False
  attention_bias: bool = False
  mlp_bias: bool = False
  dtype: str = 'float32'

  def __post_init__(self) -> None:
    if self.activation not in _ACTIVATIONS:
      raise UserError(
        f'The model asks for activation {self.activation!r}; '
        f'supported are {", ".join(_ACTIVATIONS)}.'
      )
    if self.num_heads % self.num_kv_heads:
      raise UserError(
        f'The model has {self.num_heads} heads over {self.num_kv_heads} key/value heads; '
        'the first number must be a multiple of the second.'
      )

  @property
  def key_sizes(self) -> dict[str, int]:
    """F of the kernels that can be written."""
    return {'mlp': self.ffn_width, 'attn': self.num_heads * self.head_dim}


@dataclasses.dataclass(frozen=True)
class Family:
  """One architecture: how its config is read, what its block is and what its tensors are called.

  Attributes:
    model_type: `model_type` of the Hugging Face config.
    read_config: Hugging Face config (a dict) and activation dtype to ModelConfig.
    block: linen module class of one layer, built as block(config, layer).
    final_norm: linen module class of the norm before the head, built as final_norm(eps).
    names: rows (Hugging Face name, our path, kind); `{}` stands for the layer number, kind is
      'kernel' for a matrix stored [out, in] (ours are [in, out]) and 'plain' for anything else.
      Rows whose path a config does not have (a bias, a tied head) do not apply to it.
    ignored: regular expressions of stored buffers that carry no weights.
  """

  model_type: str
  read_config: Callable[[Mapping[str, Any], str], ModelConfig]
  block: Callable[..., Any]
  final_norm: Callable[..., Any]
  names: tuple[tuple[str, str, str], ...]
  ignored: tuple[str, ...]


def read_rope(hf: Mapping[str, Any], dim: int, *, interleaved: bool, max_positions: int) -> Rope:
  """Reads `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling` (older files)."""
  given = dict(hf.get('rope_scaling') or {})
  given.update(hf.get('rope_parameters') or {})
  kind = given.get('rope_type', given.get('type', 'default'))
  if kind not in ('default', 'linear', 'dynamic', 'llama3'):
    raise UserError(
      f'The model asks for rope_type {kind!r}; supported are default, linear, dynamic and llama3.'
    )
  theta = given.get('rope_theta', hf.get('rope_theta', 10000.0))
  original = given.get('original_max_position_embeddings', max_positions)
  return Rope(
    dim=dim,
    interleaved=interleaved,
    theta=float(theta),
    kind=kind,
    factor=float(given.get('factor', 1.0)),
    low_freq_factor=float(given.get('low_freq_factor', 1.0)),
    high_freq_factor=float(given.get('high_freq_factor', 4.0)),
    original_positions=int(original) if kind == 'llama3' else max_positions,
  )


def require(hf: Mapping[str, Any], *fields: str) -> list[Any]:
  """The named fields of a Hugging Face config; a missing one is an error that names it."""
  missing = [field for field in fields if hf.get(field) is None]
  if missing:
    raise UserError(f'config.json lacks {", ".join(missing)}; it does not describe this family.')
  return [hf[field] for field in fields]


def attention_scale(config: ModelConfig) -> float:
  """What a query-key product is multiplied with, 1 / sqrt(head size)."""
  return 1.0 / math.sqrt(config.head_dim)
