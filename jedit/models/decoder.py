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

from jedit.models import gpt2, gpt_neox, gptj, llama, mistral, qwen
from jedit.models.config import Family, ModelConfig
from jedit.models.layers import Embed, Linear, linear
from jedit.models.precision import wider
from jedit.models.sites import Change, Sites
from jedit.models.view import Cache, Group, Past, View
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
    view: View | None = None,
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
      segment_NxT: documents packed in one row; tokens attend within their own.
      branch_NxT: alternative endings of a document; a token attends within its own branch and to
        branch 0, which they share.
      past: keys and values of earlier tokens for the blocks that run.
      cache: the same with room for one more token per row, whose `position_NxT` must be given; the
        blocks return theirs with that token at `attn_cache`.
      view: what the tokens see, in place of positions, segments, branches, past and cache.
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
    if view is None:
      view = self._view(given, position_NxT, segment_NxT, branch_NxT, past, cache)
    if hidden_NxTxD is None:
      hidden_NxTxD = self.embed(given, view.position_NxT)
    x_NxTxD = hidden_NxTxD.astype(dtype)
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
    given: jax.Array,
    position_NxT: jax.Array | None,
    segment_NxT: jax.Array | None,
    branch_NxT: jax.Array | None,
    past: Past | None,
    cache: Cache | None,
  ) -> View:
    num_rows, num_tokens = given.shape[:2]
    if position_NxT is None:
      first_N = jnp.zeros((num_rows,), jnp.int32) if past is None else past.length_N
      position_NxT = first_N[:, None] + jnp.arange(num_tokens)[None, :]
    group = Group.of(
      jnp.broadcast_to(position_NxT, (num_rows, num_tokens)),
      segment_NxT=segment_NxT,
      branch_NxT=branch_NxT,
      past_N=None if past is None else past.length_N,
      num_past=0 if past is None else next(iter(past.key.values())).shape[1],
      exists_NxS=None if cache is None else cache.exists_NxS,
      sliding_window=self.config.sliding_window,
    )
    stored = {} if past is None else {l: ((past.key[l], past.value[l]),) for l in past.key}
    view = View.of([group], self.config, self.config.dtype)
    return view.replace(past=stored, cache=cache)  # type: ignore[attr-defined]


def init_params(config: ModelConfig, rng: jax.Array) -> Any:
  """Random float32 parameters, as a nested dict."""
  token_1x1 = jnp.zeros((1, 1), jnp.int32)
  return Decoder(config).init(rng, token_1x1, method='everything')['params']
