"""Rotary positions (arXiv:2104.09864): pairs of units of queries and keys turned by their position.

The turn is x cos + (x R) sin with a constant matrix R that swaps the units of a pair and negates
one: a product instead of strided slices, which compilers for accelerators lay out anew.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike

from jedit.models.config import Rope
from jedit.models.precision import matmul


@struct.dataclass
class Rotary:
  """The turn of every token of a forward pass, shared by all layers.

  Attributes:
    cos_NxTx1xDh, sin_NxTx1xDh: of each unit's angle, float32 or wider; 1 and 0 for units that pass
      through.
    swap_DhxDh: R, with one 1 or -1 in each row and column of a rotated unit.
  """

  cos_NxTx1xDh: jax.Array
  sin_NxTx1xDh: jax.Array
  swap_DhxDh: jax.Array

  @classmethod
  def at(
    cls,
    position_NxT: jax.Array,
    rope: Rope,
    head_dim: int,
    dtype: DTypeLike = jnp.float32,
    segment_NxT: jax.Array | None = None,
  ) -> 'Rotary':
    """The turns at these positions, with angles in `dtype`; rows may hold several documents."""
    first, second = _pairs(rope)
    swap_DhxDh = np.zeros((head_dim, head_dim), np.float32)
    swap_DhxDh[second, first], swap_DhxDh[first, second] = -1, 1
    pair_Dh = np.full(head_dim, rope.dim // 2)
    pair_Dh[first] = pair_Dh[second] = np.arange(rope.dim // 2)
    angle_NxTxR = _angles(rope, position_NxT, segment_NxT, dtype)
    still_NxTx1 = jnp.zeros_like(angle_NxTxR[..., :1])
    angle_NxTxDh = jnp.concatenate([angle_NxTxR, still_NxTx1], axis=-1)[..., pair_Dh]
    cos, sin = jnp.cos(angle_NxTxDh), jnp.sin(angle_NxTxDh)
    return cls(cos[:, :, None], sin[:, :, None], jnp.asarray(swap_DhxDh))

  @classmethod
  def joined(cls, parts: Sequence['Rotary']) -> 'Rotary':
    """The turns of tokens that follow one another in the rows of a pass."""
    if len(parts) == 1:
      return parts[0]
    cos = jnp.concatenate([part.cos_NxTx1xDh for part in parts], axis=1)
    sin = jnp.concatenate([part.sin_NxTx1xDh for part in parts], axis=1)
    return cls(cos, sin, parts[0].swap_DhxDh)

  def side_by_side(self, per_row: int) -> 'Rotary':
    """The turns of `per_row` rows as those of one longer row."""
    cos, sin = (
      x.reshape(-1, per_row * x.shape[1], *x.shape[2:])
      for x in (self.cos_NxTx1xDh, self.sin_NxTx1xDh)
    )
    return Rotary(cos, sin, self.swap_DhxDh)

  def __call__(self, x_NxTxHxDh: jax.Array) -> jax.Array:
    dtype = x_NxTxHxDh.dtype
    swapped = matmul(x_NxTxHxDh, self.swap_DhxDh.astype(dtype), dtype)
    return x_NxTxHxDh * self.cos_NxTx1xDh.astype(dtype) + swapped * self.sin_NxTx1xDh.astype(dtype)


def _pairs(rope: Rope) -> tuple[np.ndarray, np.ndarray]:
  """First and second unit of every pair."""
  pairs = np.arange(rope.dim // 2)
  return (2 * pairs, 2 * pairs + 1) if rope.interleaved else (pairs, pairs + rope.dim // 2)


def _angles(
  rope: Rope, position_NxT: jax.Array, segment_NxT: jax.Array | None, dtype: DTypeLike
) -> jax.Array:
  """Angles [N, T, R], one per rotated pair."""
  exponent_R = jnp.arange(0, rope.dim, 2, dtype=dtype) / rope.dim
  if rope.kind == 'dynamic':
    # The base grows with a document's length once that exceeds the context of the training.
    last_NxT = position_NxT.max(-1, keepdims=True)
    if segment_NxT is not None:
      is_same_NxTxS = segment_NxT[:, :, None] == segment_NxT[:, None, :]
      last_NxT = jnp.max(position_NxT[:, None, :], axis=-1, where=is_same_NxTxS, initial=0)
    length_NxT = jnp.maximum((last_NxT + 1).astype(dtype), float(rope.original_positions))
    stretch_NxT = rope.factor * length_NxT / rope.original_positions - (rope.factor - 1)
    theta_NxT = rope.theta * stretch_NxT ** (rope.dim / (rope.dim - 2))
    frequency_NxTxR = 1.0 / theta_NxT[..., None] ** exponent_R[None, None, :]
  else:
    frequency_NxTxR = _static_frequencies(rope, exponent_R)[None, None, :]
  return position_NxT.astype(dtype)[..., None] * frequency_NxTxR


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
