"""Text generation with a cache of fixed shape: one program per batch shape.

Rows of different lengths share a batch. Prompts are left-aligned; new tokens follow the longest
one, in the same slot of every row, with the positions that continue their own prompt. A mask hides
the slots between, so a token attends exactly to the tokens of its row.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jedit.models.config import ModelConfig
from jedit.models.model import Model
from jedit.models.sites import site
from jedit.models.view import Cache, past_taps
from jedit.parallel.memory import check_fits
from jedit.parallel.mesh import fetch, place_rows
from jedit.parallel.shapes import bucket, pad
from jedit.types import UserError


def generate(
  model: Model,
  rows: Sequence[Sequence[int]],
  *,
  max_new_tokens: int,
  top_k: int | None = None,
  temperature: float = 1.0,
  seed: int = 0,
  stop_ids: Sequence[int] = (),
  max_length: int | None = None,
  row_ids: Sequence[int] | None = None,
  batch_size: int = 64,
) -> list[list[int]]:
  """Continues rows of tokens.

  Args:
    model: predicts the tokens.
    rows: token ids to continue, at least one per row (BOS included if the model needs it).
    max_new_tokens: maximal new tokens per row.
    top_k: sample from the k most probable tokens, renormalised; None takes the most probable.
    temperature: divides the logits before sampling; above 0.
    seed: of the sampling.
    stop_ids: tokens that end a row.
    max_length: maximal tokens per row including the prompt; longer prompts are not continued.
    row_ids: a number per row that its random draws depend on, besides the seed; by default the
      index in `rows`. With the same number a row keeps its text in other batches.
    batch_size: rows decoded together, which bounds the memory of the cache.

  Returns:
    The new tokens of each row, without the prompt; a stop token that ended the row comes last.

  Raises:
    UserError: for an empty row, a token outside the vocabulary, or settings out of range.
  """
  config = model.config
  _check(config, rows, max_new_tokens, top_k, temperature)
  row_ids = range(len(rows)) if row_ids is None else row_ids
  if len(row_ids) != len(rows):
    raise ValueError(f'{len(row_ids)} row_ids for {len(rows)} rows.')
  room = [max_new_tokens if max_length is None else max_length - len(row) for row in rows]
  room = [max(0, min(max_new_tokens, left)) for left in room]
  config.check_length(max([len(row) + left for row, left in zip(rows, room, strict=True)] or [0]))
  new: list[list[int]] = [[] for _ in rows]
  stop_Z = np.asarray(stop_ids, np.int32)
  for indices in _batches(rows, room, batch_size):
    num_rows = min(batch_size, 1 << (len(indices) - 1).bit_length())
    filler = [indices[0]] * (num_rows - len(indices))
    longest = max(len(rows[i]) for i in indices)
    check_memory(config, num_rows, bucket(longest) + bucket(max(room)))
    arrays = (
      *pad([rows[i] for i in indices + filler], bucket(longest)),
      np.array([room[i] for i in indices] + [0] * len(filler), np.int32),
      np.array([row_ids[i] % 2**32 for i in indices + filler], np.uint32),
    )
    out_NxM, count_N = _decode(
      model,
      *place_rows(model, arrays),
      stop_Z,
      np.uint32(seed % 2**32),
      np.float32(temperature),
      num_new=bucket(max(room)),
      top_k=top_k,
    )
    out_NxM, count_N = fetch((out_NxM, count_N))
    for n, i in enumerate(indices):
      new[i] = out_NxM[n, : count_N[n]].tolist()
  return new


def _check(
  config: ModelConfig,
  rows: Sequence[Sequence[int]],
  max_new_tokens: int,
  top_k: int | None,
  temperature: float,
) -> None:
  for number, row in enumerate(rows):
    if not len(row):
      raise UserError(f'Text {number} has no token to continue from; give at least one.')
    if min(row) < 0 or max(row) >= config.vocab_size:
      raise UserError(
        f'Text {number} has a token outside the vocabulary of {config.vocab_size}; '
        'use the tokenizer of this model.'
      )
  if max_new_tokens < 0:
    raise UserError(f'max_new_tokens is {max_new_tokens}; give 0 or more.')
  if top_k is not None and not 1 <= top_k <= config.vocab_size:
    raise UserError(f'top_k is {top_k}; give 1 to {config.vocab_size}, or None for greedy.')
  if temperature <= 0:
    raise UserError(f'temperature is {temperature}; give more than 0, or top_k=None for greedy.')


def check_memory(config: ModelConfig, num_rows: int, num_tokens: int) -> None:
  """Raises UserError for a cache of keys and values that does not fit."""
  per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
  size = num_rows * num_tokens * per_token * jnp.dtype(config.dtype).itemsize
  check_fits(f'Generating {num_tokens} tokens of {num_rows} texts', size, 'generate fewer')


def _batches(
  rows: Sequence[Sequence[int]], room: Sequence[int], batch_size: int
) -> Iterator[list[int]]:
  """Indices of the rows to continue, in batches of similar length, longest first."""
  order = sorted((i for i in range(len(rows)) if room[i]), key=lambda i: (-len(rows[i]), i))
  for first in range(0, len(order), batch_size):
    yield order[first : first + batch_size]


@struct.dataclass
class _State:
  """Loop state of decoding."""

  key: dict[int, jax.Array]  # by layer, [N, K, S, Dh]
  value: dict[int, jax.Array]
  num_steps: jax.Array  # tokens in the cache after those of the prompt
  token_N: jax.Array  # chosen last, not yet in the cache
  count_N: jax.Array  # new tokens so far
  is_done_N: jax.Array
  out_NxM: jax.Array


@functools.partial(jax.jit, static_argnames=('num_new', 'top_k'))
def _decode(
  model: Model,
  token_NxT: jax.Array,
  length_N: jax.Array,
  room_N: jax.Array,
  row_id_N: jax.Array,
  stop_Z: jax.Array,
  seed: jax.Array,
  temperature: jax.Array,
  *,
  num_new: int,
  top_k: int | None,
) -> tuple[jax.Array, jax.Array]:
  """Continues one batch until every row is done: tokens [N, num_new] and their valid counts."""
  num_rows, num_tokens = token_NxT.shape
  index_N, slot_S = jnp.arange(num_rows), jnp.arange(num_tokens + num_new)
  layers = range(model.config.num_layers)
  key = jax.random.key(seed)
  key_N = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, row_id_N)

  def choose(hidden_NxD: jax.Array, count_N: jax.Array) -> jax.Array:
    logits_NxV = model.head(hidden_NxD)
    if top_k is None:
      return jnp.argmax(logits_NxV, axis=-1).astype(jnp.int32)
    best_NxK, id_NxK = jax.lax.top_k(logits_NxV, top_k)
    step_N = jax.vmap(jax.random.fold_in)(key_N, count_N)
    scaled_NxK = best_NxK / temperature.astype(best_NxK.dtype)
    choice_N = jax.vmap(jax.random.categorical)(step_N, scaled_NxK)
    return jnp.take_along_axis(id_NxK, choice_N[:, None], axis=1)[:, 0].astype(jnp.int32)

  def record(state: _State, token_N: jax.Array) -> _State:
    slot_N = jnp.where(state.is_done_N, num_new, state.count_N)  # out of range for done rows
    is_stop_N = (token_N[:, None] == stop_Z[None, :]).any(-1)
    count_N = state.count_N + (~state.is_done_N).astype(jnp.int32)
    return dataclasses.replace(
      state,
      token_N=token_N,
      count_N=count_N,
      is_done_N=state.is_done_N | is_stop_N | (count_N >= room_N),
      out_NxM=state.out_NxM.at[index_N, slot_N].set(token_N, mode='drop'),
    )

  def step(state: _State) -> _State:
    # New tokens follow the longest prompt: one slot for all rows.
    slot = num_tokens + state.num_steps
    is_new_S = (slot_S >= num_tokens) & (slot_S <= slot)
    cache = Cache(
      key=state.key,
      value=state.value,
      exists_NxS=(slot_S[None, :] < length_N[:, None]) | is_new_S[None, :],
      slot=slot,
    )
    hidden_Nx1xD, seen = model(
      state.token_N[:, None],
      position_NxT=(length_N + state.num_steps)[:, None],
      cache=cache,
      taps=[site(layer, 'attn_cache') for layer in layers],
    )
    written = {layer: seen[site(layer, 'attn_cache')] for layer in layers}
    state = dataclasses.replace(
      state,
      key={layer: key for layer, (key, _) in written.items()},
      value={layer: value for layer, (_, value) in written.items()},
      num_steps=state.num_steps + 1,
    )
    return record(state, choose(hidden_Nx1xD[:, 0], state.count_N))

  # Padding repeats the row's last position, because dynamic rotary scaling uses the largest.
  position_NxT = jnp.minimum(jnp.arange(num_tokens)[None, :], length_N[:, None] - 1)
  hidden_NxTxD, seen = model(token_NxT, position_NxT=position_NxT, taps=past_taps(layers))

  def with_room(place: str) -> dict[int, jax.Array]:
    pad = ((0, 0), (0, 0), (0, num_new), (0, 0))
    return {layer: jnp.pad(seen[site(layer, place)].swapaxes(1, 2), pad) for layer in layers}

  state = _State(
    key=with_room('attn_key'),
    value=with_room('attn_value'),
    num_steps=jnp.int32(0),
    token_N=jnp.zeros_like(length_N),
    count_N=jnp.zeros_like(length_N),
    is_done_N=room_N <= 0,
    out_NxM=jnp.zeros((num_rows, num_new), jnp.int32),
  )
  state = record(state, choose(hidden_NxTxD[index_N, length_N - 1], state.count_N))
  state = jax.lax.while_loop(lambda s: ~s.is_done_N.all(), step, state)
  return state.out_NxM, state.count_N
