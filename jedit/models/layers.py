"""The parts that every family shares: linear maps, norms, rotary positions and attention."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike

from jedit.models.config import ModelConfig, Rope, attention_scale
from jedit.models.sites import Sites

ACTIVATIONS = {
  'gelu_new': lambda x: nn.gelu(x, approximate=True),
  'gelu_pytorch_tanh': lambda x: nn.gelu(x, approximate=True),
  'gelu': lambda x: nn.gelu(x, approximate=False),
  'silu': nn.silu,
  'swish': nn.silu,
  'relu': nn.relu,
}
_KERNEL_INIT = nn.initializers.normal(0.02)


def wider(*dtypes: DTypeLike) -> jnp.dtype:
  """The dtype that holds all of them, also where promotion is not allowed to happen by itself."""
  with jax.numpy_dtype_promotion('standard'):
    return functools.reduce(jnp.promote_types, [jnp.dtype(dtype) for dtype in dtypes])


def matmul_precision(dtype: jnp.dtype) -> str | None:
  """Accelerators shorten float32 products by default; we ask for all digits, and only there."""
  return None if dtype == jnp.bfloat16 or dtype == jnp.float16 else 'highest'


@struct.dataclass
class Cache:
  """Slots for the attention keys and values of whole rows, written as generation goes on.

  A pass with a cache has one token per row. All rows write it to the same slot, which can be done
  in place, and keys lie as the attention product reads them: neither is copied at every token.

  Attributes:
    key, value: by layer, [N, K, S, Dh].
    exists_NxS: the slots to attend to, that of the new token among them.
    slot: where the new token goes.
  """

  key: dict[int, jax.Array]
  value: dict[int, jax.Array]
  exists_NxS: jax.Array
  slot: jax.Array

  def write(
    self, layer: int, key_NxKx1xDh: jax.Array, value_NxKx1xDh: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Keys and values of a layer with those of the new token in their slot."""
    return (
      jax.lax.dynamic_update_slice_in_dim(self.key[layer], key_NxKx1xDh, self.slot, axis=2),
      jax.lax.dynamic_update_slice_in_dim(self.value[layer], value_NxKx1xDh, self.slot, axis=2),
    )


@struct.dataclass
class View:
  """What the tokens of a forward pass see, shared by all layers.

  Attributes:
    cos_NxTxR, sin_NxTxR: rotary tables, one angle per rotated pair, float32.
    mask_NxTxS: which of the S tokens, the past ones and these T, each of these attends to.
    past: attention keys and values [N, S - T, K, Dh] of earlier tokens by layer, or empty.
    cache: where earlier tokens are instead, and this one goes.
  """

  cos_NxTxR: jax.Array
  sin_NxTxR: jax.Array
  mask_NxTxS: jax.Array
  past: dict[int, tuple[jax.Array, jax.Array]]
  cache: Cache | None = None


class Linear(nn.Module):
  """x @ kernel + bias with the kernel stored [in, out].

  Computed in the wider of the activations' and the kernel's dtype, returned in the activations':
  an edited kernel stays float32 in a bfloat16 model and must not be rounded on the way.
  """

  features: int
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param('kernel', _KERNEL_INIT, (x.shape[-1], self.features))
    dtype = wider(x.dtype, kernel.dtype)
    y = jnp.matmul(x.astype(dtype), kernel.astype(dtype), precision=matmul_precision(dtype))
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y = y + bias.astype(dtype).reshape((1,) * (y.ndim - 1) + (-1,))
    return y.astype(x.dtype)


class LayerNorm(nn.Module):
  """Layer norm with gain and bias, computed in float32 or wider."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    dtype = wider(x.dtype, jnp.float32)
    wide = x.astype(dtype)
    centred = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    shape = (1,) * (x.ndim - 1) + (-1,)
    y = centred * jax.lax.rsqrt(variance + self.eps) * scale.astype(dtype).reshape(shape)
    return (y + bias.astype(dtype).reshape(shape)).astype(x.dtype)


class RMSNorm(nn.Module):
  """Root-mean-square norm with gain (LLaMA); the gain multiplies the rounded value, as there."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    wide = x.astype(wider(x.dtype, jnp.float32))
    y = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.eps)
    return y.astype(x.dtype) * scale.astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def rotary_tables(rope: Rope, position_NxT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cosine and sine of the rotary angles, float32, one per rotated pair: two [N, T, dim/2]."""
  exponent_R = jnp.arange(0, rope.dim, 2, dtype=jnp.float32) / rope.dim
  if rope.kind == 'dynamic':
    # The base grows with the row's length once that exceeds the context of the training.
    length_N = (position_NxT.max(-1) + 1).astype(jnp.float32)
    length_N = jnp.maximum(length_N, float(rope.original_positions))
    stretch_N = rope.factor * length_N / rope.original_positions - (rope.factor - 1)
    theta_N = rope.theta * stretch_N ** (rope.dim / (rope.dim - 2))
    frequency_NxR = 1.0 / theta_N[:, None] ** exponent_R[None, :]
  else:
    frequency_NxR = _static_frequencies(rope, exponent_R)[None, :]
  angle_NxTxR = position_NxT.astype(jnp.float32)[..., None] * frequency_NxR[:, None, :]
  return jnp.cos(angle_NxTxR), jnp.sin(angle_NxTxR)


def _static_frequencies(rope: Rope, exponent_R: jax.Array) -> jax.Array:
  frequency_R = 1.0 / rope.theta**exponent_R
  if rope.kind == 'linear':
    return frequency_R / rope.factor
  if rope.kind != 'llama3':
    return frequency_R
  # Llama 3: long wavelengths are stretched, short ones kept, those between blended.
  wavelength_R = 2 * jnp.pi / frequency_R
  turns_R = rope.original_positions / wavelength_R
  blend_R = (turns_R - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
  blend_R = jnp.clip(blend_R, 0.0, 1.0)
  return (1 - blend_R) * frequency_R / rope.factor + blend_R * frequency_R


def rotate(x_NxTxHxDh: jax.Array, view: View, *, interleaved: bool) -> jax.Array:
  """Turns the first 2R units of each head by the angles of the view; the rest pass through."""
  cos = view.cos_NxTxR[:, :, None, :].astype(x_NxTxHxDh.dtype)
  sin = view.sin_NxTxR[:, :, None, :].astype(x_NxTxHxDh.dtype)
  pairs = cos.shape[-1]
  turned, rest = x_NxTxHxDh[..., : 2 * pairs], x_NxTxHxDh[..., 2 * pairs :]
  if interleaved:
    first, second = turned[..., 0::2], turned[..., 1::2]
  else:
    first, second = turned[..., :pairs], turned[..., pairs:]
  new_first, new_second = first * cos - second * sin, second * cos + first * sin
  if interleaved:
    turned = jnp.stack([new_first, new_second], axis=-1).reshape(turned.shape)
  else:
    turned = jnp.concatenate([new_first, new_second], axis=-1)
  return jnp.concatenate([turned, rest], axis=-1)


def attend(
  query_NxTxHxDh: jax.Array,
  key_NxKxSxDh: jax.Array,
  value_NxKxSxDh: jax.Array,
  mask_NxTxS: jax.Array,
  scale: float,
) -> jax.Array:
  """Softmax attention with H query heads over K key/value heads; scores in float32 or wider.

  A token that sees nothing (a padded one) gets the mean of all values: finite and never read.
  """
  num_rows, num_tokens, num_heads, head_dim = query_NxTxHxDh.shape
  kv_heads = key_NxKxSxDh.shape[1]
  dtype = wider(query_NxTxHxDh.dtype, jnp.float32)
  precision = matmul_precision(query_NxTxHxDh.dtype)
  grouped = query_NxTxHxDh.reshape(num_rows, num_tokens, kv_heads, -1, head_dim)
  score_NxKxGxTxS = jnp.einsum(
    'ntkgd,nksd->nkgts', grouped, key_NxKxSxDh, precision=precision, preferred_element_type=dtype
  )
  score_NxKxGxTxS = jnp.where(
    mask_NxTxS[:, None, None], score_NxKxGxTxS * scale, jnp.finfo(dtype).min
  )
  weight_NxKxGxTxS = jax.nn.softmax(score_NxKxGxTxS, axis=-1).astype(value_NxKxSxDh.dtype)
  out = jnp.einsum('nkgts,nksd->ntkgd', weight_NxKxGxTxS, value_NxKxSxDh, precision=precision)
  return out.reshape(num_rows, num_tokens, num_heads * head_dim)


class Attention(nn.Module):
  """Rotary multi-head attention with intervention sites on its key, value, mix and output."""

  config: ModelConfig
  layer: int

  @nn.compact
  def __call__(self, x_NxTxD: jax.Array, view: View, sites: Sites) -> jax.Array:
    c = self.config

    def heads(name: str, count: int) -> jax.Array:
      y = Linear(count * c.head_dim, c.attention_bias, name=name)(x_NxTxD)
      return y.reshape(*x_NxTxD.shape[:2], count, c.head_dim)

    query = rotate(heads('q', c.num_heads), view, interleaved=c.rope.interleaved)
    key = rotate(heads('k', c.num_kv_heads), view, interleaved=c.rope.interleaved)
    key = sites(self.layer, 'attn_key', key)
    value = sites(self.layer, 'attn_value', heads('v', c.num_kv_heads))
    if self.layer in view.past:
      past_key, past_value = view.past[self.layer]
      key = jnp.concatenate([past_key.astype(key.dtype), key], axis=1)
      value = jnp.concatenate([past_value.astype(value.dtype), value], axis=1)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    if view.cache is not None:
      key, value = sites(self.layer, 'attn_cache', view.cache.write(self.layer, key, value))
    mix = attend(query, key, value, view.mask_NxTxS, attention_scale(c))
    mix = sites(self.layer, 'attn_in', mix)
    out = Linear(c.width, c.attention_bias, name='out')(mix)
    return sites(self.layer, 'attn_out', out)
