"""The parts that families share: linear maps, norms, attention, MLP and block."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jedit.models.config import ModelConfig, attention_scale
from jedit.models.precision import contract, matmul, wider
from jedit.models.sites import Change, Sites
from jedit.models.view import View

ACTIVATIONS = {
  'gelu_new': lambda x: nn.gelu(x, approximate=True),
  'gelu_fast': lambda x: nn.gelu(x, approximate=True),
  'gelu_pytorch_tanh': lambda x: nn.gelu(x, approximate=True),
  'gelu': lambda x: nn.gelu(x, approximate=False),
  'silu': nn.silu,
  'swish': nn.silu,
  'relu': nn.relu,
}
# Queries of a long row that are attended at once, each with the keys up to its last one alone.
_QUERIES = 256
_KERNEL_INIT = nn.initializers.normal(0.02)

# How the parameters of the modules below, and of the decoder around them, are split over a mesh:
# columns of what reads the residual stream and rows of what writes to it, so that a block needs one
# sum per half; the vocabulary of embedding and head. See `Family.sharding`.
SHARDING = (
  (r'embed/embedding', ('model', None)),
  (r'embed/positions', (None, None)),
  (r'block_\d+/attn/(q|k|v|qkv)/kernel', (None, 'model')),
  (r'block_\d+/attn/(q|k|v|qkv)/bias', ('model',)),
  (r'block_\d+/attn/out/kernel', ('model', None)),
  (r'block_\d+/mlp/up/kernel', (None, 'model')),
  (r'block_\d+/mlp/up/bias', ('model',)),
  (r'block_\d+/mlp/down/kernel', ('model', None)),
  (r'block_\d+/(attn/out|mlp/down)/bias', (None,)),
  (r'.*norm/(scale|bias)', (None,)),
  (r'head/kernel', (None, 'model')),
  (r'head/bias|head_bias', ('model',)),
)


def linear(
  x: jax.Array,
  kernel: jax.Array,
  bias: jax.Array | None,
  out_dtype: DTypeLike,
  change: Change | None = None,
) -> jax.Array:
  """The map x @ (kernel + change) + bias, rounded once to `out_dtype`, at the end.

  An edited kernel, which is float32 in a bfloat16 model, is not rounded on the way.
  """
  if change is None:
    y = matmul(x, kernel, out_dtype)
  else:
    added = change(x)
    y = matmul(x, kernel, wider(out_dtype, added.dtype)).astype(added.dtype) + added
  if bias is not None:
    y = y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
  return y.astype(out_dtype)


class Linear(nn.Module):
  """x @ kernel + bias with the kernel stored [in, out].

  Attributes:
    features: size of the output.
    use_bias: adds a bias.
    out_dtype: dtype of the output, at least as wide as the input; None for the input's.
  """

  features: int
  use_bias: bool = False
  out_dtype: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, change: Change | None = None) -> jax.Array:
    kernel = self.param('kernel', _KERNEL_INIT, (x.shape[-1], self.features))
    bias = None
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
    return linear(x, kernel, bias, wider(x.dtype, self.out_dtype or x.dtype), change)


class Embed(nn.Module):
  """Vectors of the tokens, plus those of their positions where a model learns them."""

  config: ModelConfig

  def setup(self) -> None:
    c = self.config
    self.embedding = self.param('embedding', _KERNEL_INIT, (c.vocab_size, c.width))
    if c.position_limit is not None:
      self.positions = self.param('positions', _KERNEL_INIT, (c.position_limit, c.width))

  def __call__(self, token_NxT: jax.Array, position_NxT: jax.Array) -> jax.Array:
    c = self.config
    x_NxTxD = jnp.take(self.embedding, token_NxT, axis=0).astype(c.dtype)
    if c.position_limit is None:
      return x_NxTxD
    known_NxT = jnp.minimum(position_NxT, c.position_limit - 1)  # padding may go beyond
    return x_NxTxD + jnp.take(self.positions, known_NxT, axis=0).astype(c.dtype)


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


def attend(
  query_NxTxHxDh: jax.Array,
  key_NxKxSxDh: jax.Array,
  value_NxKxSxDh: jax.Array,
  mask_NxTxS: jax.Array,
  scale: float,
  past: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
  """Softmax attention with H query heads over K key/value heads; scores in float32 or wider.

  Past keys and values are multiplied apart from the new ones: neither is copied, and no gradient
  is taken of what is constant. A token that sees nothing (a padded one) gets the mean of all
  values: finite and never read.

  Args:
    query_NxTxHxDh: of the new tokens.
    key_NxKxSxDh, value_NxKxSxDh: of the new tokens, or of all slots of a cache.
    mask_NxTxS: of the past tokens, if any, and the new ones.
    scale: of the scores.
    past: key and value [N, P, K, Dh] of earlier tokens.
  """
  num_rows, num_tokens, num_heads, head_dim = query_NxTxHxDh.shape
  kv_heads = key_NxKxSxDh.shape[1]
  # Heads first: XLA's CPU client cannot add bfloat16 products of the other order up in float32.
  grouped = query_NxTxHxDh.reshape(num_rows, num_tokens, kv_heads, -1, head_dim)
  query_NxKxGxTxDh = grouped.transpose(0, 2, 3, 1, 4)
  parts = []
  for start in range(0, num_tokens, _QUERIES):
    stop = min(start + _QUERIES, num_tokens)
    seen = mask_NxTxS.shape[-1] - (num_tokens - stop)  # nobody looks ahead
    new = seen - (0 if past is None else past[0].shape[1])
    parts.append(
      _attend(
        query_NxKxGxTxDh[:, :, :, start:stop],
        key_NxKxSxDh[:, :, :new],
        value_NxKxSxDh[:, :, :new],
        mask_NxTxS[:, start:stop, :seen],
        scale,
        past,
      )
    )
  out_NxKxGxTxDh = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=3)
  out = out_NxKxGxTxDh.transpose(0, 3, 1, 2, 4)
  return out.reshape(num_rows, num_tokens, num_heads * head_dim)


def _attend(query_NxKxGxTxDh, key_NxKxSxDh, value_NxKxSxDh, mask_NxTxS, scale, past) -> jax.Array:
  """Attention of some queries, the heads in groups that share keys: [N, K, G, T, Dh]."""
  dtype = wider(query_NxKxGxTxDh.dtype, jnp.float32)
  score = contract('nkgtd,nksd->nkgts', query_NxKxGxTxDh, key_NxKxSxDh)
  if past is not None:
    score = jnp.concatenate([contract('nkgtd,npkd->nkgtp', query_NxKxGxTxDh, past[0]), score], -1)
  score = jnp.where(mask_NxTxS[:, None, None], score * scale, jnp.finfo(dtype).min)
  weight = jax.nn.softmax(score, axis=-1).astype(value_NxKxSxDh.dtype)
  num_past = 0 if past is None else past[0].shape[1]
  out = contract('nkgts,nksd->nkgtd', weight[..., num_past:], value_NxKxSxDh)
  if past is not None:
    out = out + contract('nkgtp,npkd->nkgtd', weight[..., :num_past], past[1])
  return out.astype(value_NxKxSxDh.dtype)


class Attention(nn.Module):
  """Multi-head attention with intervention sites on its query, key, value, mix and output."""

  config: ModelConfig
  layer: int

  @nn.compact
  def __call__(self, x_NxTxD: jax.Array, view: View, sites: Sites) -> jax.Array:
    c = self.config
    query, key, value = self._query_key_value(x_NxTxD)
    if c.qk_norm:
      query = RMSNorm(c.norm_eps, name='q_norm')(query)
      key = RMSNorm(c.norm_eps, name='k_norm')(key)
    if view.rotary is not None:
      query, key = view.rotary(query), view.rotary(key)
    query = sites(self.layer, 'attn_query', query)
    key = sites(self.layer, 'attn_key', key)
    value = sites(self.layer, 'attn_value', value)
    mix = sites(self.layer, 'attn_in', self._mix(query, key, value, view, sites))
    out = Linear(c.width, c.out_bias, name='out')(mix, sites.change(self.layer, 'attn'))
    return sites(self.layer, 'attn_out', out)

  def _mix(
    self,
    query_NxTxHxDh: jax.Array,
    key_NxTxKxDh: jax.Array,
    value_NxTxKxDh: jax.Array,
    view: View,
    sites: Sites,
  ) -> jax.Array:
    """Values mixed by attention, group by group: [N, T, H * Dh]."""
    pasts = view.past.get(self.layer, (None,) * len(view.groups))
    parts, first = [], 0
    for group, past in zip(view.groups, pasts, strict=True):
      stop = first + group.num_tokens
      query, key, value = (
        x[:, first:stop].reshape(*group.position_NxT.shape, *x.shape[2:])
        for x in (query_NxTxHxDh, key_NxTxKxDh, value_NxTxKxDh)
      )
      if past is not None:
        past = past[0].astype(key.dtype), past[1].astype(value.dtype)
      key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
      if view.cache is not None:
        key, value = sites(self.layer, 'attn_cache', view.cache.write(self.layer, key, value))
      mix = attend(query, key, value, group.mask_NxTxS, attention_scale(self.config), past)
      parts.append(mix.reshape(len(query_NxTxHxDh), stop - first, -1))
      first = stop
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

  def _query_key_value(self, x_NxTxD: jax.Array) -> Sequence[jax.Array]:
    """Query [N, T, H, Dh], key and value [N, T, K, Dh]."""
    c, rows = self.config, x_NxTxD.shape[:2]
    if c.fused_qkv is None:
      counts = {'q': c.num_heads, 'k': c.num_kv_heads, 'v': c.num_kv_heads}
      return [
        Linear(count * c.head_dim, c.qkv_bias, name=name)(x_NxTxD).reshape(*rows, count, c.head_dim)
        for name, count in counts.items()
      ]
    fused = Linear(3 * c.num_heads * c.head_dim, c.qkv_bias, name='qkv')(x_NxTxD)
    if c.fused_qkv == 'by_head':
      return jnp.unstack(fused.reshape(*rows, c.num_heads, 3, c.head_dim), axis=3)
    return jnp.unstack(fused.reshape(*rows, 3, c.num_heads, c.head_dim), axis=2)


class MLP(nn.Module):
  """Two layers with an activation between: down(act(up(x)))."""

  config: ModelConfig
  layer: int

  @nn.compact
  def __call__(self, x_NxTxD: jax.Array, sites: Sites) -> jax.Array:
    c = self.config
    up = Linear(c.ffn_width, c.mlp_bias, name='up')
    up_NxTxF = sites(self.layer, 'mlp_up', up(x_NxTxD, sites.change(self.layer, 'mlp_up')))
    key_NxTxF = sites(self.layer, 'mlp_in', ACTIVATIONS[c.activation](up_NxTxF))
    down = Linear(c.width, c.mlp_bias, name='down')
    return sites(self.layer, 'mlp_out', down(key_NxTxF, sites.change(self.layer, 'mlp')))


class TwoNormBlock(nn.Module):
  """Attention and MLP, each on its own norm: one after the other, or `config.parallel`."""

  config: ModelConfig
  layer: int
  norm: Callable[..., Any]
  mlp: Callable[..., Any]

  @nn.compact
  def __call__(self, x_NxTxD: jax.Array, view: View, sites: Sites) -> jax.Array:
    c = self.config
    normed = sites(self.layer, 'attn_normed', self.norm(c.norm_eps, name='attn_norm')(x_NxTxD))
    after_NxTxD = x_NxTxD + Attention(c, self.layer, name='attn')(normed, view, sites)
    read_NxTxD = x_NxTxD if c.parallel else after_NxTxD
    normed = sites(self.layer, 'mlp_normed', self.norm(c.norm_eps, name='mlp_norm')(read_NxTxD))
    after_NxTxD = after_NxTxD + self.mlp(c, self.layer, name='mlp')(normed, sites)
    return sites(self.layer, 'block_out', after_NxTxD)
