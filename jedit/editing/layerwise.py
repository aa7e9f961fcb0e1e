"""Layerwise forward pass of token rows while the layers are being updated.

Keys depend only on the tokens up to their position, and layers below the current update are final.
Hidden states therefore move up layer by layer and never restart from the embeddings. Tokens that
many rows begin with, such as a sampled context before every edit's prompt, run once for all rows.
"""

import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jedit.models import Model, Past, past_taps, site
from jedit.parallel.mesh import fetch, place_rows
from jedit.parallel.program import jit
from jedit.parallel.shapes import bucket, group_by_length, pad, round_up

_CHUNK_TOKENS = 16_384  # of a chunk, per device: bounds its memory for any number of rows


class LayerwiseForward:
  """Token rows in chunks of similar length, with their hidden states on the host.

  Every layer runs through the same compiled program, with its parameters as block 0.

  Args:
    rows: token ids; each row ends at the token to read.
    groups: for each row, a number shared by rows that may begin alike; the common beginning of a
      group runs once. None shares nothing.
    row_shards: devices that share the rows of a chunk.
  """

  def __init__(
    self,
    rows: Sequence[Sequence[int]],
    groups: Sequence[int] | None = None,
    row_shards: int = 1,
  ):
    self.layer = 0
    self.num_rows = len(rows)
    beginnings = _beginnings(rows, groups)
    self._shared = _Shared(beginnings) if beginnings else None
    group_N = np.zeros(len(rows), np.int32) if groups is None else np.asarray(groups, np.int32)
    past_N = [len(beginnings[g]) if beginnings else 0 for g in group_N]
    rest = [row[past:] for row, past in zip(rows, past_N, strict=True)]
    self._chunks: list[_Chunk] = []
    for length, indices in group_by_length([len(row) for row in rest]):
      fits = max(1, _CHUNK_TOKENS // length) * row_shards
      # Few sizes, so that consecutive batches of edits reuse compiled programs.
      size = round_up(min(fits, bucket(len(indices), smallest=1)), row_shards)
      for first in range(0, len(indices), size):
        part = indices[first : first + size]
        part_N = np.array(part + [part[0]] * (size - len(part)))
        token_NxT, length_N = pad([rest[i] for i in part_N], length)
        first_N = np.array([past_N[i] for i in part_N], np.int32)
        self._chunks.append(
          _Chunk(np.array(part), token_NxT, first_N, length_N - 1, group_N[part_N])
        )

  def advance(self, model: Model, layer: int) -> None:
    """Carries the states to the input of block `layer`; the blocks below it must be final."""
    if layer < self.layer:
      raise ValueError(f'The rows are at layer {self.layer} already and cannot move down.')
    pasts = self._pasts(model, layer)
    for chunk in self._chunks:
      start = self._states(model, chunk)
      chunk.hidden_NxTxD = fetch(self._up(model, chunk, start, layer, pasts))
    if self._shared is not None:
      self._shared.advance(model, layer)
    self.layer = layer

  def read(self, model: Model, layer: int, place: str) -> np.ndarray:
    """Value of a site at each row's last token; the states stay in place.

    Args:
      model: with every update so far.
      layer: the current layer or one above it.
      place: a place of `jedit.models.sites`.

    Returns:
      float32 [rows, size of the place], in the given order of the rows.
    """
    parts = self.read_chunks(model, layer, place)
    out = np.empty((self.num_rows, parts[0].shape[-1]), np.float32)
    for chunk, part in zip(self._chunks, parts, strict=True):
      out[chunk.indices] = fetch(part)[: len(chunk.indices)]
    return out

  def read_chunks(self, model: Model, layer: int, place: str) -> list[jax.Array]:
    """`read`, chunk by chunk, on the devices."""
    pasts = self._pasts(model, layer + 1)
    parts = []
    for chunk in self._chunks:
      hidden = self._up(model, chunk, self._states(model, chunk), layer, pasts)
      past = pasts[-1] if pasts else None
      at = place_rows(model, (chunk.last_N, chunk.group_N))
      parts.append(_block(model.block(layer), hidden, at[0], past, at[1], place))
    return parts

  def _pasts(self, model: Model, stop: int) -> list[Past]:
    """Keys and values of the shared tokens in the blocks from the current one to `stop - 1`."""
    return [] if self._shared is None else self._shared.pasts(model, stop)

  def _states(self, model: Model, chunk: '_Chunk'):
    if chunk.hidden_NxTxD is None:
      token_NxT, first_N = place_rows(model, (chunk.token_NxT, chunk.first_N))
      return _embed(model.embedding(), token_NxT, first_N)
    return place_rows(model, chunk.hidden_NxTxD)

  def _up(self, model: Model, chunk: '_Chunk', hidden_NxTxD, layer: int, pasts: Sequence[Past]):
    last_N, group_N = place_rows(model, (chunk.last_N, chunk.group_N))
    for below in range(self.layer, layer):
      past = pasts[below - self.layer] if pasts else None
      hidden_NxTxD = _block(model.block(below), hidden_NxTxD, last_N, past, group_N, None)
    return hidden_NxTxD


class _Shared:
  """The shared beginnings, one row per group, and their hidden states."""

  def __init__(self, rows: Sequence[Sequence[int]]):
    self._token_GxT, self._length_G = pad(rows, max(map(len, rows)))
    self._layer, self._hidden_GxTxD = 0, None

  def advance(self, model: Model, layer: int) -> None:
    hidden_GxTxD = self._states(model)
    for below in range(self._layer, layer):
      hidden_GxTxD, _ = _shared_block(model.block(below), hidden_GxTxD, self._length_G)
    self._layer, self._hidden_GxTxD = layer, hidden_GxTxD

  def pasts(self, model: Model, stop: int) -> list[Past]:
    """Keys and values in the blocks from the current one to `stop - 1`."""
    found, hidden_GxTxD = [], self._states(model)
    for layer in range(self._layer, stop):
      hidden_GxTxD, past = _shared_block(model.block(layer), hidden_GxTxD, self._length_G)
      found.append(past)
    return found

  def _states(self, model: Model):
    if self._hidden_GxTxD is None:
      first_G = np.zeros_like(self._length_G)
      return _embed(model.embedding(), self._token_GxT, first_G)
    return self._hidden_GxTxD


def _beginnings(
  rows: Sequence[Sequence[int]], groups: Sequence[int] | None
) -> list[tuple[int, ...]]:
  """Common beginnings of the rows of each group (from 0), last tokens excluded; empty if short."""
  if groups is None or not rows:
    return []
  members: list[list[tuple[int, ...]]] = [[] for _ in range(max(groups) + 1)]
  for row, group in zip(rows, groups, strict=True):
    members[group].append(tuple(row[:-1]))
  found = [os.path.commonprefix(member) for member in members]  # accepts any sequences
  saved = sum(len(b) * (len(m) - 1) for b, m in zip(found, members, strict=True))
  pays = all(found) and 4 * saved > sum(map(len, rows))
  return [tuple(beginning) for beginning in found] if pays else []


@jit
def _embed(embedding: Model, token_NxT, first_N) -> jax.Array:
  position_NxT = first_N[:, None] + jnp.arange(token_NxT.shape[1])[None]
  return embedding(token_NxT, position_NxT=position_NxT, stop=0)[0]


@jit
def _shared_block(block: Model, hidden_GxTxD, length_G) -> tuple[jax.Array, Past]:
  """One block over the shared beginnings: its output, and keys and values for later tokens."""
  hidden_GxTxD, seen = block(hidden_NxTxD=hidden_GxTxD, stop=1, taps=past_taps((0,)))
  return hidden_GxTxD, Past.from_seen(seen, (0,), length_G)


@functools.partial(jit, static_argnames='place')
def _block(
  block: Model, hidden_NxTxD, last_N, past: Past | None, group_N, place: str | None
) -> jax.Array:
  """One block: its output or, given a place, that place's value at each row's last token.

  Args:
    block: a model with this block alone, as block 0.
    hidden_NxTxD: the block's input, without the shared beginnings.
    last_N: index in it of each row's last token.
    past: of the shared beginnings, one row per group; None without any.
    group_N: each row's group.
    place: the place to read.
  """
  taps = () if place is None else (site(0, place),)
  if past is not None:
    past = jax.tree.map(lambda x: x[group_N], past)
  # Padding repeats the last position, because dynamic rotary scaling uses the largest.
  position_NxT = jnp.minimum(jnp.arange(hidden_NxTxD.shape[1])[None], last_N[:, None])
  if past is not None:
    position_NxT = position_NxT + past.length_N[:, None]
  hidden_NxTxD, seen = block(
    hidden_NxTxD=hidden_NxTxD, stop=1, position_NxT=position_NxT, past=past, taps=taps
  )
  if place is None:
    return hidden_NxTxD
  value = jnp.take_along_axis(seen[site(0, place)], last_N[:, None, None], axis=1)
  return value[:, 0].astype(jnp.float32)


class _Chunk:
  """Padded rows with their indices, groups and hidden states.

  Rows begin at position `first_N`, after the beginning of their group.
  """

  def __init__(
    self,
    indices: np.ndarray,
    token_NxT: np.ndarray,
    first_N: np.ndarray,
    last_N: np.ndarray,
    group_N: np.ndarray,
  ):
    self.indices, self.token_NxT, self.first_N, self.last_N = indices, token_NxT, first_N, last_N
    self.group_N = group_N
    self.hidden_NxTxD: np.ndarray | None = None
