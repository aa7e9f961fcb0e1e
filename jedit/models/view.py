"""What the tokens of a forward pass see: their positions, their mask, and stored keys and values.

The tokens of a row may belong to several groups of shorter rows, such as the windows of an edit's
prompts and its KL token: they share every product with a weight and attend within their own row.
"""

from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from jedit.models.config import ModelConfig
from jedit.models.precision import wider
from jedit.models.rotary import Rotary
from jedit.models.sites import site


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


@struct.dataclass
class Group:
  """Rows of T tokens each, `per_row` of them side by side in every row of the pass.

  Attributes:
    position_NxT: position of every token, for N rows of the group.
    mask_NxTxS: which of the S tokens, the past ones and these T, each attends to.
    per_row: rows of the group in a row of the pass.
    segment_NxT: documents packed in one row; None for one document in each.
  """

  position_NxT: jax.Array
  mask_NxTxS: jax.Array
  per_row: int = struct.field(pytree_node=False, default=1)
  segment_NxT: jax.Array | None = None

  @classmethod
  def of(
    cls,
    position_NxT: jax.Array,
    *,
    segment_NxT: jax.Array | None = None,
    branch_NxT: jax.Array | None = None,
    past_N: jax.Array | None = None,
    num_past: int = 0,
    exists_NxS: jax.Array | None = None,
    sliding_window: int | None = None,
    per_row: int = 1,
  ) -> 'Group':
    """Rows in which no token looks ahead.

    Args:
      position_NxT: position of every token.
      segment_NxT: documents packed in one row; tokens attend within their own.
      branch_NxT: alternative endings of a document; a token attends within its own branch and to
        branch 0, which they share.
      past_N, num_past: valid tokens of each row's stored keys and values, and slots for them.
      exists_NxS: slots of a cache that hold tokens; they are all that a token sees.
      sliding_window: the last of the visible tokens, which are in order; None for all.
      per_row: rows of the group in a row of the pass.
    """
    num_rows, num_tokens = position_NxT.shape
    index_T = jnp.arange(num_tokens)
    mask_NxTxS = (index_T[None, :] <= index_T[:, None])[None]
    if segment_NxT is not None:
      mask_NxTxS = mask_NxTxS & (segment_NxT[:, :, None] == segment_NxT[:, None, :])
    if branch_NxT is not None:
      is_own_NxTxS = branch_NxT[:, :, None] == branch_NxT[:, None, :]
      mask_NxTxS = mask_NxTxS & (is_own_NxTxS | (branch_NxT == 0)[:, None, :])
    mask_NxTxS = jnp.broadcast_to(mask_NxTxS, (num_rows, num_tokens, num_tokens))
    if past_N is not None:
      exists_NxP = jnp.arange(num_past)[None, :] < past_N[:, None]
      exists_NxTxP = jnp.broadcast_to(exists_NxP[:, None, :], (num_rows, num_tokens, num_past))
      mask_NxTxS = jnp.concatenate([exists_NxTxP, mask_NxTxS], axis=-1)
    if exists_NxS is not None:
      mask_NxTxS = exists_NxS[:, None, :]
    if sliding_window is not None:
      rank_NxTxS = jnp.cumsum(mask_NxTxS[..., ::-1], axis=-1)[..., ::-1]
      mask_NxTxS = mask_NxTxS & (rank_NxTxS <= sliding_window)
    return cls(position_NxT, mask_NxTxS, per_row, segment_NxT)

  @property
  def num_tokens(self) -> int:
    """Tokens of the group in a row of the pass."""
    return self.per_row * self.mask_NxTxS.shape[1]


@struct.dataclass
class View:
  """What the tokens of a forward pass see, shared by all layers.

  Attributes:
    rotary: turns queries and keys; None where positions are learned.
    groups: in the order of their tokens in a row.
    past: by layer, for each group the attention keys and values [N, P, K, Dh] of earlier tokens or
      None; layers without any may be absent.
    cache: where earlier tokens are instead, and this one goes.
  """

  rotary: Rotary | None
  groups: tuple[Group, ...]
  past: Mapping[int, Sequence[tuple[jax.Array, jax.Array] | None]] = struct.field(
    default_factory=dict
  )
  cache: Cache | None = None

  @classmethod
  def of(cls, groups: Sequence[Group], config: ModelConfig, dtype: DTypeLike) -> 'View':
    """The view of tokens with activations of this dtype."""
    rope = config.rope
    if rope is None:
      return cls(None, tuple(groups))
    dtype = wider(dtype, 'float32')
    turns = [
      Rotary.at(each.position_NxT, rope, config.head_dim, dtype, each.segment_NxT).side_by_side(
        each.per_row
      )
      for each in groups
    ]
    return cls(Rotary.joined(turns), tuple(groups))

  @property
  def position_NxT(self) -> jax.Array:
    """Positions of all tokens of a row, group by group."""
    parts = [group.position_NxT.reshape(-1, group.num_tokens) for group in self.groups]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
