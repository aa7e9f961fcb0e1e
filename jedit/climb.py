"""Token rows that climb the network while it is being written.

Keys depend only on the tokens up to the place they are read at, and the layers below the one
being written never change again: the rows' hidden states are carried upward, layer by layer, and
never start from the embeddings a second time.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.buckets import group_by_length
from jedit.data.prompts import pad
from jedit.models import site

_CHUNK_TOKENS = 16_384  # tokens of a chunk: bounds device memory, whatever the number of rows


class ClimbingRows:
  """Rows cut behind the token that is read, in chunks of similar length; states live on the host.

  Every layer runs through the same compiled program: its parameters go in as block 0.

  Args:
    forward: `(params, token_NxT, **arguments) -> (hidden, seen)`.
    rows: token ids; each row ends at the token that is read.
  """

  def __init__(self, forward: Callable, rows: Sequence[Sequence[int]]):
    self.layer = 0
    self.num_rows = len(rows)
    self._forward = forward
    self._chunks: list[_Chunk] = []
    for length, indices in group_by_length([len(row) for row in rows]):
      size = min(max(1, _CHUNK_TOKENS // length), len(indices))
      for first in range(0, len(indices), size):
        part = indices[first : first + size]
        padded = [rows[i] for i in part] + [rows[part[0]]] * (size - len(part))
        token_NxT, length_N = pad(padded, length)
        self._chunks.append(_Chunk(np.array(part), token_NxT, length_N - 1))

  def climb(self, params: Mapping[str, Any], layer: int) -> None:
    """Carries the states to the input of block `layer`; blocks below it must be final."""
    if layer < self.layer:
      raise ValueError(f'The rows are at layer {self.layer} already; they only climb.')
    for chunk in self._chunks:
      start = self._states(params, chunk)
      chunk.hidden_NxTxD = np.asarray(self._up(params, chunk, start, layer))
    self.layer = layer

  def read(self, params: Mapping[str, Any], layer: int, place: str) -> np.ndarray:
    """Value of a place at each row's last token, looking ahead from the carried states.

    Args:
      params: with every write so far.
      layer: at or above the present one; the states stay where they are.
      place: a place of `jedit.models.sites`.

    Returns:
      float32 [rows, size of the place], in the order the rows were given.
    """
    parts = []
    for chunk in self._chunks:
      hidden = self._up(params, chunk, self._states(params, chunk), layer)
      parts.append(_block(self._forward, _as_first(params, layer), hidden, chunk.last_N, place))
    out = np.empty((self.num_rows, parts[0].shape[-1]), np.float32)
    for chunk, part in zip(self._chunks, parts, strict=True):
      out[chunk.indices] = np.asarray(part)[: len(chunk.indices)]
    return out

  def _states(self, params, chunk: '_Chunk'):
    if chunk.hidden_NxTxD is None:
      return _embed(self._forward, {'embed': params['embed']}, chunk.token_NxT)
    return chunk.hidden_NxTxD

  def _up(self, params, chunk: '_Chunk', hidden_NxTxD, layer: int):
    for below in range(self.layer, layer):
      block = _as_first(params, below)
      hidden_NxTxD = _block(self._forward, block, hidden_NxTxD, chunk.last_N, None)
    return hidden_NxTxD


@functools.partial(jax.jit, static_argnames='forward')
def _embed(forward: Callable, params, token_NxT) -> jax.Array:
  return forward(params, token_NxT, stop=0)[0]


@functools.partial(jax.jit, static_argnames=('forward', 'place'))
def _block(forward: Callable, params, hidden_NxTxD, last_N, place: str | None) -> jax.Array:
  """One block: its output, or with a place that place's value at each row's last token."""
  taps = () if place is None else (site(0, place),)
  # Padding takes the last position: dynamic rotary scaling looks at the largest one.
  position_NxT = jnp.minimum(jnp.arange(hidden_NxTxD.shape[1])[None], last_N[:, None])
  hidden_NxTxD, seen = forward(
    params, hidden_NxTxD=hidden_NxTxD, stop=1, position_NxT=position_NxT, taps=taps
  )
  if place is None:
    return hidden_NxTxD
  value = jnp.take_along_axis(seen[site(0, place)], last_N[:, None, None], axis=1)
  return value[:, 0].astype(jnp.float32)


class _Chunk:
  """Padded rows, which of the given ones they are, and their carried states."""

  def __init__(self, indices: np.ndarray, token_NxT: np.ndarray, last_N: np.ndarray):
    self.indices, self.token_NxT, self.last_N = indices, token_NxT, last_N
    self.hidden_NxTxD: np.ndarray | None = None


def _as_first(params: Mapping[str, Any], layer: int) -> dict[str, Any]:
  """The parameters of one block, under the name of the lowest."""
  return {'block_0': params[f'block_{layer}']}
