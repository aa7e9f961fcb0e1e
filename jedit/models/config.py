"""Configuration of a decoder: sizes, norms and rotary positions of any supported family."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import pydantic

from jedit.io.schema import Fields, Positive
from jedit.types import UserError

_ACTIVATIONS = (
  'gelu_new', 'gelu_fast', 'gelu_pytorch_tanh', 'gelu', 'silu', 'swish', 'relu',
)  # fmt: skip


_Above0 = Annotated[float, pydantic.Field(gt=0, lt=1e30)]
_Epsilon = Annotated[float, pydantic.Field(gt=0, le=1)]
_Layers = Annotated[int, pydantic.Field(ge=1, le=10_000)]


class _HfRope(Fields):
  """`rope_parameters` or `rope_scaling` of a Hugging Face config."""

  rope_type: str = ''
  type: str = ''
  rope_theta: _Above0 = 1.0
  factor: _Above0 = 1.0
  low_freq_factor: _Above0 = 1.0
  high_freq_factor: _Above0 = 4.0
  partial_rotary_factor: _Above0 = 1.0
  original_max_position_embeddings: Positive = 1


class HfConfig(Fields):
  """Types of the fields of a Hugging Face config that any family reads; all may be absent."""

  model_type: str
  # Sizes.
  vocab_size: Positive = 1
  n_layer: _Layers = 1
  num_hidden_layers: _Layers = 1
  n_embd: Positive = 1
  hidden_size: Positive = 1
  n_head: Positive = 1
  num_attention_heads: Positive = 1
  num_key_value_heads: Positive | None = None
  head_dim: Positive | None = None
  n_inner: Positive | None = None
  intermediate_size: Positive = 1
  # Positions.
  n_positions: Positive = 1
  max_position_embeddings: Positive = 1
  rotary_dim: Positive | None = None
  rotary_pct: _Above0 = 1.0
  rotary_emb_base: _Above0 = 1.0
  rope_theta: _Above0 = 1.0
  rope_scaling: _HfRope | None = None
  rope_parameters: _HfRope | None = None
  sliding_window: Positive | None = None
  max_window_layers: int = 0
  layer_types: list[str] | None = None
  # Forms.
  activation_function: str = ''
  hidden_act: str = ''
  layer_norm_epsilon: _Epsilon = 1.0
  layer_norm_eps: _Epsilon = 1.0
  rms_norm_eps: _Epsilon = 1.0
  tie_word_embeddings: bool = False
  attention_bias: bool = False
  mlp_bias: bool = False
  use_parallel_residual: bool = False
  use_sliding_window: bool = False


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary positions: rotates the first `dim` units of each head by angles linear in position.

  Attributes:
    dim: rotated units per head, even.
    interleaved: pairs are (0, 1), (2, 3), ... (GPT-J) instead of (i, i + dim/2) (LLaMA).
    theta: base of the frequencies.
    kind: 'default', 'linear', 'dynamic' or 'llama3', as `rope_type` of a Hugging Face config.
    factor: extension of the context.
    low_freq_factor, high_freq_factor: llama3 only; wavelengths between the two are blended.
    original_positions: context length in training, in tokens.
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

  `dtype` is the dtype of the activations. Parameters keep the dtype of loading, and a product with
  a wider kernel (edited ones stay float32) is computed in the wider dtype.

  Attributes:
    rope: rotary positions; None for learned position embeddings.
    fused_qkv: None for separate maps to query, key and value; 'by_head' for one map with query, key
      and value of each head in turn (GPT-NeoX); 'by_part' for one with all queries, then all keys,
      then all values (GPT-2).
    parallel: the MLP reads the block's input, not the attention's output (GPT-NeoX).
    qkv_bias, out_bias: biases of the attention's input and output maps.
    qk_norm: RMS norm on each head's query and key before rotation (Qwen3).
    sliding_window: tokens that a token attends to, itself included; None for all.
    renames: pairs of prefixes of tensor names, (in the family's name table, in this model's files).
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
  rope: Rope | None
  activation: str
  tie_head: bool = False
  head_bias: bool = False
  fused_qkv: str | None = None
  qkv_bias: bool = False
  out_bias: bool = False
  qk_norm: bool = False
  sliding_window: int | None = None
  mlp_bias: bool = False
  parallel: bool = False
  dtype: str = 'float32'
  renames: tuple[tuple[str, str], ...] = ()

  def __post_init__(self) -> None:
    if self.activation not in _ACTIVATIONS:
      raise UserError(
        f'config.json requires activation {self.activation!r}; '
        f'supported are {", ".join(_ACTIVATIONS)}.'
      )
    if self.head_dim < 1:
      raise UserError(
        f'config.json has {self.num_heads} heads for a width of {self.width}; correct it.'
      )
    if self.rope and (self.rope.dim % 2 or not 2 <= self.rope.dim <= self.head_dim):
      raise UserError(
        f'config.json rotates {self.rope.dim} of the {self.head_dim} units of a head; give an even '
        'number of at most all.'
      )
    if self.num_heads % self.num_kv_heads:
      raise UserError(
        f'The model has {self.num_heads} heads over {self.num_kv_heads} key/value heads; '
        'the first number must be a multiple of the second.'
      )

  @property
  def title(self) -> str:
    """One line: family, sizes and dtype."""
    return (
      f'{self.family}, {self.num_layers} layers, width {self.width}, {self.vocab_size} tokens, '
      f'{self.dtype}'
    )

  @property
  def key_sizes(self) -> dict[str, int]:
    """F of the kernels that can be edited."""
    return {
      'mlp': self.ffn_width,
      'attn': self.num_heads * self.head_dim,
      'mlp_up': self.width,
      'mlp_gate': self.width,
    }

  @property
  def position_limit(self) -> int | None:
    """Maximal tokens of a row; None for rotary positions."""
    return self.max_positions if self.rope is None else None

  def check_length(self, num_tokens: int) -> None:
    """Raises a UserError for rows longer than the learned positions."""
    if self.position_limit is not None and num_tokens > self.position_limit:
      raise UserError(
        f'A row would have {num_tokens} tokens, the model has positions for '
        f'{self.position_limit}; shorten it.'
      )

  def stored_name(self, name: str) -> str:
    """Name, in this model's files, of a tensor of the family's name table."""
    for ours, theirs in self.renames:
      if name.startswith(ours):
        return theirs + name.removeprefix(ours)
    return name


@dataclasses.dataclass(frozen=True)
class Family:
  """An architecture: its config reader, its modules and its tensor names.

  Attributes:
    model_type: `model_type` of the Hugging Face config.
    read_config: maps a Hugging Face config (a dict) and the activation dtype to a ModelConfig.
    block: linen module class of one layer, built as block(config, layer).
    final_norm: linen module class of the norm before the head, built as final_norm(eps).
    names: rows (Hugging Face name, our path, kind); `{}` stands for the layer number, kind is
      'kernel' for a matrix stored [out, in] (ours are [in, out]) and 'plain' for anything else.
      Rows whose path a config lacks (a bias, a tied head) do not apply to it.
    ignored: regular expressions of stored buffers without weights.
    sharding: rows (regular expression of a whole path, mesh axis or None per dimension); every path
      has a match, and the first counts.
    renames: rows (prefix in `names`, prefix in some files); a row applies to files in which no name
      has the first prefix.
  """

  model_type: str
  read_config: Callable[[Mapping[str, Any], str], ModelConfig]
  block: Callable[..., Any]
  final_norm: Callable[..., Any]
  names: tuple[tuple[str, str, str], ...]
  ignored: tuple[str, ...]
  sharding: tuple[tuple[str, tuple[str | None, ...]], ...]
  renames: tuple[tuple[str, str], ...] = ()


def read_rope(hf: Mapping[str, Any], dim: int, *, interleaved: bool, max_positions: int) -> Rope:
  """Reads `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling` (older files)."""
  given = dict(hf.get('rope_scaling') or {})
  given.update(hf.get('rope_parameters') or {})
  kind = given.get('rope_type', given.get('type', 'default'))
  if kind not in ('default', 'linear', 'dynamic', 'llama3'):
    raise UserError(
      f'config.json requires rope_type {kind!r}; supported are default, linear, dynamic and llama3.'
    )
  theta = given.get('rope_theta', hf.get('rope_theta', 10000.0))
  original = given.get('original_max_position_embeddings', max_positions)
  if kind == 'llama3' and given.get('low_freq_factor', 1.0) >= given.get('high_freq_factor', 4.0):
    raise UserError('config.json has a low_freq_factor that is not below its high_freq_factor.')
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


def read_window(hf: Mapping[str, Any], window: int | None) -> int | None:
  """The sliding window of all layers, from `layer_types` if the config has them.

  Raises:
    UserError: if only some layers have the window.
  """
  kinds = set(hf.get('layer_types') or ['sliding_attention'])
  if window is None or kinds == {'full_attention'}:
    return None
  if kinds != {'sliding_attention'}:
    raise UserError(
      f'The model mixes layers of {" and ".join(sorted(kinds))}; supported are models whose '
      'layers all have the same sliding window, or none.'
    )
  return window


def require(hf: Mapping[str, Any], *fields: str) -> list[Any]:
  """The named fields of a Hugging Face config; raises a UserError that names missing ones."""
  missing = [field for field in fields if hf.get(field) is None]
  if missing:
    raise UserError(f'config.json lacks {", ".join(missing)}; it does not describe this family.')
  return [hf[field] for field in fields]


def attention_scale(config: ModelConfig) -> float:
  """Factor of query-key products, 1 / sqrt(head size)."""
  return 1.0 / math.sqrt(config.head_dim)
