"""Window of the target optimisation: the part of the network that the deltas can change.

The published codes run the whole network at every step. Blocks below the lowest δ and tokens before
it do not change during the optimisation: they run once, here, and every evaluation runs the upper
blocks on the window from the δ position on, attending to stored keys and values. The KL row is
read at its δ position, so its window is one token. The tokens of an edit, its P windows and the KL
token, lie side by side and share every product with a weight.

Blocks run one by one through the same compiled programs, forward and backward: a program is
compiled for one block, whatever the depth of the model.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from jedit.editing.blocks import RowBatch
from jedit.editing.problem import Problem
from jedit.models import Intervention, Model, ModelConfig, site
from jedit.models.sites import chained
from jedit.models.view import Group, View
from jedit.parallel.mesh import mesh_of, over_rows
from jedit.parallel.program import jit

KeysAndValues = tuple[tuple[jax.Array, jax.Array], ...]  # of the windows and of the KL token

# What the forward pass of a block records for its backward pass; everything else is cheap to
# compute from these.
HEADS = -2  # the axis of heads in queries, keys and values
_RECORDED = ('attn_query', 'attn_key', 'attn_value', 'attn_out', 'mlp_gate', 'mlp_up')


@struct.dataclass
class Window:
  """State that stays fixed during the optimisation, per edit; every evaluation starts from it.

  Attributes:
    hidden_BxMxD: input of the lowest δ's block at the M = P · S + 1 tokens of an edit: the windows
      of its rows, then the KL token.
    past: by layer from there on, keys and values of the tokens before those of the windows
      [B, P, T, K, Dh] and of the KL token [B, 1, T, K, Dh].
  """

  hidden_BxMxD: jax.Array
  past: dict[int, KeysAndValues]


@struct.dataclass
class AddWhere:
  """Adds an edit's δ at some of its tokens.

  Attributes:
    hit_BxM: the tokens.
    delta_BxD: by edit, float32 for any activation dtype.
  """

  hit_BxM: jax.Array
  delta_BxD: jax.Array

  def __call__(self, x_BxMxD: jax.Array) -> jax.Array:
    delta_Bx1xD = self.delta_BxD[:, None].astype(x_BxMxD.dtype)
    return x_BxMxD + jnp.where(self.hit_BxM[..., None], delta_Bx1xD, jnp.zeros_like(delta_Bx1xD))


@struct.dataclass
class Recorded:
  """A value that the forward pass has computed, with the derivative of its expression."""

  value: jax.Array

  def __call__(self, x: jax.Array) -> jax.Array:
    return _recorded(self.value, x)


@jax.custom_jvp
def _recorded(value, x):
  del x  # computes nothing: products that only lead here are left out
  return value


@_recorded.defjvp
def _recorded_jvp(primals, tangents):
  return primals[0], tangents[1]


def cut_window(model: Model, problem: Problem, rows: RowBatch, *, window: int, past: int) -> Window:
  """Runs everything that does not depend on δ.

  Args:
    model: the model.
    problem: the deltas.
    rows: tokens and positions.
    window: S, tokens kept from each row's window start; covers every position that is read.
    past: tokens whose keys and values are kept; at least the largest window start.
  """
  first, mesh = problem.first_layer, mesh_of(model)
  hidden, view = _embed(model.embedding(), rows, mesh=mesh)
  for layer in range(first):
    hidden = _run(model.block(layer), hidden, view, mesh=mesh)
  hidden_BxMxD, hidden, view = _cut(hidden, rows, model.config, window, past, mesh)
  stored = {}
  for layer in range(first, model.config.num_layers):
    hidden, stored[layer] = _store(model.block(layer), hidden, view, mesh=mesh)
  return Window(hidden_BxMxD, stored)


@functools.partial(jit, static_argnames='mesh')
def _embed(embedding: Model, rows: RowBatch, *, mesh: Mesh | None) -> tuple[jax.Array, View]:
  """Embeddings and view of whole rows, each edit's KL row behind its others."""
  num_edits, num_prompts, num_tokens = rows.token_BxPxT.shape
  token_BxM = jnp.concatenate([rows.token_BxPxT.reshape(num_edits, -1), rows.kl_token_BxT], axis=1)
  view = _whole_rows(
    embedding.config, num_edits, num_prompts, num_tokens, len(rows.kl_token_BxT[0])
  )
  return over_rows(mesh, (embedding(token_BxM, stop=0, view=view)[0], view))


def _whole_rows(
  config: ModelConfig, num_edits: int, num_prompts: int, num_tokens: int, kl_tokens: int
) -> View:
  """The view of rows that begin at position 0."""
  groups = []
  for per_row, size in ((num_prompts, num_tokens), (1, kl_tokens)):
    position_NxT = jnp.broadcast_to(jnp.arange(size), (num_edits * per_row, size))
    group = Group.of(position_NxT, sliding_window=config.sliding_window, per_row=per_row)
    groups.append(group)
  return View.of(groups, config, config.dtype)


@functools.partial(jit, static_argnames='mesh')
def _run(block: Model, hidden: jax.Array, view: View, *, mesh: Mesh | None) -> jax.Array:
  return over_rows(mesh, block(hidden_NxTxD=hidden, stop=1, view=view)[0])


@functools.partial(jit, static_argnames=('config', 'window', 'past', 'mesh'))
def _cut(
  hidden: jax.Array, rows: RowBatch, config: ModelConfig, window: int, past: int, mesh: Mesh | None
) -> tuple[jax.Array, jax.Array, View]:
  """Hidden states of the windows; those of the tokens before them, and their view."""
  num_edits, num_prompts, num_tokens = rows.token_BxPxT.shape
  kl_tokens = rows.kl_token_BxT.shape[1]
  split = num_prompts * num_tokens
  row_BxPxTxD = hidden[:, :split].reshape(num_edits, num_prompts, num_tokens, -1)
  kl_BxTxD = hidden[:, split:]
  index_S = jnp.arange(window)
  index_BxPxS = jnp.minimum(rows.start_BxP[..., None] + index_S[None, None], num_tokens - 1)
  window_BxPxSxD = jnp.take_along_axis(row_BxPxTxD, index_BxPxS[..., None], axis=2)
  kl_Bx1xD = jnp.take_along_axis(kl_BxTxD, rows.kl_start_B[:, None, None], axis=1)
  earlier = [row_BxPxTxD[:, :, :past].reshape(num_edits, -1, hidden.shape[-1]), kl_BxTxD]
  view = _whole_rows(config, num_edits, num_prompts, min(past, num_tokens), kl_tokens)
  window_BxMxD = jnp.concatenate([_side_by_side(window_BxPxSxD), kl_Bx1xD], axis=1)
  return over_rows(mesh, (window_BxMxD, jnp.concatenate(earlier, axis=1), view))


def _side_by_side(x_BxPxSxD: jax.Array) -> jax.Array:
  return x_BxPxSxD.reshape(len(x_BxPxSxD), -1, x_BxPxSxD.shape[-1])


@functools.partial(jit, static_argnames='mesh')
def _store(
  block: Model, hidden: jax.Array, view: View, *, mesh: Mesh | None
) -> tuple[jax.Array, KeysAndValues]:
  """One block over the tokens before the windows: its output, and their keys and values."""
  taps = (site(0, 'attn_key'), site(0, 'attn_value'))
  hidden, seen = block(hidden_NxTxD=hidden, stop=1, view=view, taps=taps)
  stored, first = [], 0
  for group in view.groups:
    stop = first + group.num_tokens
    key, value = (
      seen[tap][:, first:stop].reshape(len(hidden), group.per_row, -1, *seen[tap].shape[2:])
      for tap in taps
    )
    stored.append((key, value))
    first = stop
  return over_rows(mesh, hidden), over_rows(mesh, tuple(stored), HEADS)


@functools.partial(jit, static_argnames=('config', 'window', 'past', 'tokens', 'mesh'))
def window_view(
  rows: RowBatch,
  config: ModelConfig,
  window: int,
  past: int,
  tokens: tuple[str, ...],
  mesh: Mesh | None,
) -> tuple[View, dict[str, jax.Array]]:
  """The view of the windows and the KL token, and where the δ of each of `tokens` are added.

  A δ at the prompt's last token sits at the "a" of "{subject} is a", behind the KL token, and
  cannot change it.
  """
  num_edits, num_prompts, _ = rows.token_BxPxT.shape
  start_N, index_S = jnp.asarray(rows.start_BxP).reshape(-1), jnp.arange(window)
  position_NxS = start_N[:, None] + index_S[None]
  kl_position_Bx1 = jnp.asarray(rows.kl_start_B)[:, None]
  groups = [
    Group.of(
      position_NxS,
      past_N=start_N,
      num_past=past,
      sliding_window=config.sliding_window,
      per_row=num_prompts,
    ),
    Group.of(
      kl_position_Bx1,
      past_N=kl_position_Bx1[:, 0],
      num_past=rows.kl_token_BxT.shape[1],
      sliding_window=config.sliding_window,
    ),
  ]
  hits = {}
  for token in tokens:
    hit_BxPxS = index_S[None, None] == rows.token_at_BxP[token][..., None]
    kl_Bx1 = jnp.full((num_edits, 1), token == 'subject_last')
    hits[token] = jnp.concatenate([hit_BxPxS.reshape(num_edits, -1), kl_Bx1], axis=1)
  return over_rows(mesh, (View.of(groups, config, config.dtype), hits))


def _with_past(view: View, past: KeysAndValues) -> View:
  rows = tuple(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pair) for pair in past)
  return view.replace(past={0: rows})  # type: ignore[attr-defined]


@functools.partial(jit, static_argnames='mesh')
def forward(
  block: Model,
  hidden_BxMxD: jax.Array,
  view: View,
  past: KeysAndValues,
  added: Mapping[str, AddWhere],
  *,
  mesh: Mesh | None,
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
  """One block over the windows.

  Args:
    block: a model with this block alone, as block 0.
    hidden_BxMxD: its input.
    view: of the windows.
    past: keys and values of this layer.
    added: by place of this block, the δ that is added.

  Returns:
    The block's output, what `backward` needs, and by place with a δ its value at the δ's token on
    the first row, float32.
  """
  has_gate = 'gate' in block.params['block_0']['mlp']
  recorded = tuple(site(0, place) for place in _RECORDED if place != 'mlp_gate' or has_gate)
  taps = recorded + tuple(site(0, place) for place in added)
  out_BxMxD, seen = block(
    hidden_NxTxD=hidden_BxMxD,
    stop=1,
    view=_with_past(view, past),
    edits={site(0, place): add for place, add in added.items()},
    taps=taps,
  )
  values = {}
  for place, add in added.items():
    at_B = jnp.argmax(add.hit_BxM, axis=1)  # the first row's token comes first
    value_Bx1xD = jnp.take_along_axis(seen[site(0, place)], at_B[:, None, None], axis=1)
    values[place] = value_Bx1xD[:, 0].astype(jnp.float32)
  kept = {tap: over_rows(mesh, seen[tap], _split(tap)) for tap in recorded}
  return over_rows(mesh, out_BxMxD), kept, over_rows(mesh, values)


def _split(tap: str) -> int | None:
  """The axis of a recorded value that devices split which share the block's kernels."""
  place = tap.partition('/')[2]
  if place in ('attn_query', 'attn_key', 'attn_value'):
    return HEADS
  return -1 if place in ('mlp_gate', 'mlp_up') else None


@functools.partial(jit, static_argnames=('is_lowest', 'mesh'), donate_argnames='grad_BxMxD')
def backward(
  block: Model,
  hidden_BxMxD: jax.Array,
  view: View,
  past: KeysAndValues,
  added: Mapping[str, AddWhere],
  recorded: Mapping[str, jax.Array],
  grad_BxMxD: jax.Array,
  *,
  is_lowest: bool,
  mesh: Mesh | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The gradient of one block: with respect to its input and, by place, to the δ.

  Args:
    block, hidden_BxMxD, view, past, added: as of `forward`.
    recorded: what `forward` returned.
    grad_BxMxD: gradient with respect to the block's output.
    is_lowest: leaves the gradient with respect to the input out; `grad_BxMxD` takes its place.
  """
  substitutes: dict[str, Intervention] = {name: Recorded(value) for name, value in recorded.items()}

  def run(hidden_BxMxD, delta_BxD):
    edits: dict[str, Intervention] = {
      site(0, place): AddWhere(add.hit_BxM, delta_BxD[place]) for place, add in added.items()
    }
    return block(
      hidden_NxTxD=hidden_BxMxD,
      stop=1,
      view=_with_past(view, past),
      edits=chained(edits, substitutes),
    )[0]

  delta_BxD = {place: add.delta_BxD for place, add in added.items()}
  if is_lowest:
    _, pull = jax.vjp(functools.partial(run, hidden_BxMxD), delta_BxD)
    return over_rows(mesh, (grad_BxMxD, *pull(grad_BxMxD)))
  _, pull = jax.vjp(run, hidden_BxMxD, delta_BxD)
  return over_rows(mesh, pull(grad_BxMxD))
