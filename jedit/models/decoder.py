"""The network of every family: embedding, blocks `start` to `stop`, head.

`apply` returns `(hidden, seen)`: the last residual stream and the tapped sites. It can start at any
block from given hidden states, stop before any block, and let its tokens attend to stored keys and
values of earlier ones, each row at its own positions. Target optimisation, key extraction, second
moments, evaluation and generation are all this one call.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jedit.models import gpt2, gpt_neox, gptj, llama, mistral, qwen
from jedit.models.config import Family, ModelConfig
from jedit.models.layers import Cache, Embed, Linear, View, linear
from jedit.models.precision import wider
from jedit.models.rotary import Rotary
from jedit.models.sites import Change, Sites, site
from jedit.types import Kernel

FAMILIES: dict[str, Family] = {
  family.model_type: family
  for family in (
    gpt2.FAMILY,
    gpt_neox.FAMILY,
    gptj.FAMILY,
    llama.FAMILY,
    mistral.FAMILY,
    qwen.QWEN2,
    qwen.QWEN3,
  )
}


@struct.dataclass
class Past:
  """Attention keys and values of the tokens before those of a forward pass.

  Attributes:
    key, value: by layer, [N, S, K, Dh] as tapped at `attn_key` and `attn_value`.
    length_N: valid tokens among the S of each row; later slots are masked.
  """

  key: dict[int, jax.Array]
  value: dict[int, jax.Array]
  length_N: jax.Array

  @classmethod
  def from_seen(
    cls, seen: Mapping[str, jax.Array], layers: Iterable[int], length_N: jax.Array
  ) -> 'Past':
    """Collects the recordings of a forward pass with the taps `past_taps(layers)`."""
    layers = tuple(layers)
    key = {layer: seen[site(layer, 'attn_key')] for layer in layers}
    value = {layer: seen[site(layer, 'attn_value')] for layer in layers}
    return cls(key=key, value=value, length_N=length_N)


def past_taps(layers: Iterable[int]) -> tuple[str, ...]:
  """Taps that `Past.from_seen` needs for these layers."""
  return tuple(site(layer, place) for layer in layers for place in ('attn_key', 'attn_value'))


class Decoder(nn.Module):
  """A decoder-only transformer of the family `config.family`."""

  config: ModelConfig

  def setup(self) -> None:
    c, family = self.config, FAMILIES[self.config.family]
    self.embed = Embed(c)
    for layer in range(c.num_layers):
      setattr(self, f'block_{layer}', family.block(c, layer))
    self.final_norm = family.final_norm(c.norm_eps)
    if not c.tie_head:
      self.head = Linear(c.vocab_size, c.head_bias, 'float32')
    elif c.head_bias:
      self.head_bias = self.param('head_bias', nn.initializers.zeros, (c.vocab_size,))

  def __call__(
    self,
    token_NxT: jax.Array | None = None,
    *,
    hidden_NxTxD: jax.Array | None = None,
    start: int = 0,
    stop: int | None = None,
    position_NxT: jax.Array | None = None,
    segment_NxT: jax.Array | None = None,
    branch_NxT: jax.Array | None = None,
    past: Past | None = None,
    cache: Cache | None = None,
    edits: Mapping[str, Callable] | None = None,
    taps: Iterable[str] = (),
    changes: Mapping[Kernel, Change] | None = None,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Runs blocks `start` to `stop - 1`.

    Args:
      token_NxT: token ids, padded on the right; needed if `start` is 0.
      hidden_NxTxD: the input of block `start` if that is not 0 (or in place of the embeddings).
      start: first block to run.
      stop: block to stop before; None runs to the last one.
      position_NxT: position of every token; by default 0, 1, ... (plus the row's past).
      segment_NxT: documents packed in one row; tokens attend within their own. Give positions.
      branch_NxT: alternative endings of a document; a token attends within its own branch and to
        branch 0, which they share.
      past: keys and values of earlier tokens for the blocks that run.
      cache: the same with room for one more token per row, whose `position_NxT` must be given; the
        blocks return theirs with that token at `attn_cache`.
      edits: by site, a function from the site's value to its new value.
      taps: sites whose values are returned.
      changes: by kernel, what this pass adds to it.

    Returns:
      The residual stream at the input of block `stop` in the activation dtype, and the tapped
      values by site.
    """
    stop = self.config.num_layers if stop is None else stop
    dtype = jnp.dtype(self.config.dtype)
    given = token_NxT if hidden_NxTxD is None else hidden_NxTxD
    if given is None:
      raise ValueError('Give token_NxT, or hidden_NxTxD to start from hidden states.')
    if position_NxT is None:
      first_N = jnp.zeros((len(given),), jnp.int32) if past is None else past.length_N
      position_NxT = first_N[:, None] + jnp.arange(given.shape[1])[None, :]
    if hidden_NxTxD is None:
      hidden_NxTxD = self.embed(given, position_NxT)
    x_NxTxD = hidden_NxTxD.astype(dtype)
    view = self._view(x_NxTxD, position_NxT, segment_NxT, branch_NxT, past, cache)
    sites = Sites(edits, taps, changes)
    for layer in range(start, stop):
      x_NxTxD = getattr(self, f'block_{layer}')(x_NxTxD, view, sites)
    unseen = sites.taps - sites.seen.keys()
    if unseen:
      raise ValueError(f'Blocks {start} to {stop - 1} have no site {", ".join(sorted(unseen))}.')
    return x_NxTxD, sites.seen

  def logits(self, hidden: jax.Array, *, final_norm: bool = True) -> jax.Array:
    """Final norm and vocabulary layer over hidden states [..., D]: float32 logits [..., V].

    Without the norm, the logit lens on states of any layer.
    """
    normed = self.final_norm(hidden) if final_norm else hidden
    if not self.config.tie_head:
      return self.head(normed)
    bias_V = self.head_bias if self.config.head_bias else None
    return linear(normed, self.embed.embedding.T, bias_V, wider(normed.dtype, 'float32'))

  def everything(self, token_NxT: jax.Array) -> jax.Array:
    """Logits of whole rows; uses every parameter, for `init`."""
    return self.logits(self(token_NxT)[0])

  def _view(
    self,
    x_NxTxD: jax.Array,
    position_NxT: jax.Array,
    segment_NxT: jax.Array | None,
    branch_NxT: jax.Array | None,
    past: Past | None,
    cache: Cache | None,
  ) -> View:
    num_rows, num_tokens = x_NxTxD.shape[:2]
    index_T = jnp.arange(num_tokens)
    mask_NxTxS = (index_T[None, :] <= index_T[:, None])[None]
    if segment_NxT is not None:
      mask_NxTxS = mask_NxTxS & (segment_NxT[:, :, None] == segment_NxT[:, None, :])
    if branch_NxT is not None:
      is_own_NxTxS = branch_NxT[:, :, None] == branch_NxT[:, None, :]
      mask_NxTxS = mask_NxTxS & (is_own_NxTxS | (branch_NxT == 0)[:, None, :])
    mask_NxTxS = jnp.broadcast_to(mask_NxTxS, (num_rows, num_tokens, num_tokens))
    layers: dict[int, tuple[jax.Array, jax.Array]] = {}
    if past is not None:
      layers = {layer: (past.key[layer], past.value[layer]) for layer in past.key}
      size = next(iter(past.key.values())).shape[1]
      exists_NxS = jnp.arange(size)[None, :] < past.length_N[:, None]
      exists_NxTxS = jnp.broadcast_to(exists_NxS[:, None, :], (num_rows, num_tokens, size))
      mask_NxTxS = jnp.concatenate([exists_NxTxS, mask_NxTxS], axis=-1)
    if cache is not None:
      mask_NxTxS = cache.exists_NxS[:, None, :]
    window = self.config.sliding_window
    if window is not None:  # the last of the visible tokens, which are in order
      rank_NxTxS = jnp.cumsum(mask_NxTxS[..., ::-1], axis=-1)[..., ::-1]
      mask_NxTxS = mask_NxTxS & (rank_NxTxS <= window)
    c = self.config
    rotary = None
    if c.rope is not None:
      dtype = wider(x_NxTxD.dtype, 'float32')
      rotary = Rotary.at(position_NxT, c.rope, c.head_dim, dtype, segment_NxT)
    return View(rotary=rotary, mask_NxTxS=mask_NxTxS, past=layers, cache=cache)


def init_params(config: ModelConfig, rng: jax.Array) -> Any:
  """Random float32 parameters, as a nested dict."""
  token_1x1 = jnp.zeros((1, 1), jnp.int32)
  return Decoder(config).init(rng, token_1x1, method='everything')['params']
