"""Window of the target optimisation: the part of the network that the deltas can change.

The published codes run the whole network at every step. Blocks below the lowest δ and tokens before
it do not change during the optimisation: they run once, here, and every step runs the upper blocks
on the window from the δ position on, attending to stored keys and values. The KL row is read at its
δ position, so its window is one token.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import struct

from jedit.editing.blocks import Array, RowBatch
from jedit.editing.problem import Problem
from jedit.models import Intervention, Model, Past, past_taps


@struct.dataclass
class Window:
  """State that stays fixed during the optimisation, per edit; the steps start from it.

  Attributes:
    hidden_BxPxSxD: input of the lowest δ's block from the window's start on.
    past: keys and values of the tokens before the window, [B, P, T, K, Dh] by layer.
    kl_hidden_BxSxD, kl_past: the same for the KL row, S = 1 and P = 1.
    init_BxD: by δ, the value v₀ of its place on the bare prompt (row 0), float32.
  """

  hidden_BxPxSxD: jax.Array
  past: Past
  kl_hidden_BxSxD: jax.Array
  kl_past: Past
  init_BxD: dict[str, jax.Array]


def cut_window(model: Model, problem: Problem, rows: RowBatch, *, window: int, past: int) -> Window:
  """Runs everything that does not depend on δ.

  Args:
    model: the model.
    problem: the deltas.
    rows: tokens and positions.
    window: S, tokens kept from each row's window start; covers every position that is read.
    past: tokens whose keys and values are kept; at least the largest window start.
  """
  num_edits, num_prompts, num_tokens = rows.token_BxPxT.shape
  token_NxT, start_N = rows.token_BxPxT.reshape(-1, num_tokens), rows.start_BxP.reshape(-1)
  hidden, earlier, seen = _run_rows(model, problem, token_NxT, start_N, window, past)

  def per_edit(x):
    return x.reshape(num_edits, num_prompts, *x.shape[1:])

  init_BxD = {}
  for placed in problem.deltas:
    bare_BxTxD = per_edit(seen[placed.site])[:, 0]
    at_B = rows.start_BxP[:, 0] + rows.token_at_BxP[placed.token][:, 0]
    init_BxD[placed.name] = _take(bare_BxTxD, at_B).astype(jnp.float32)
  kl_hidden, kl_past, _ = _run_rows(
    model, problem, rows.kl_token_BxT, rows.kl_start_B, 1, rows.kl_token_BxT.shape[1]
  )
  return Window(
    hidden_BxPxSxD=per_edit(hidden),
    past=jax.tree.map(per_edit, earlier),
    kl_hidden_BxSxD=kl_hidden,
    kl_past=jax.tree.map(lambda x: x[:, None], kl_past),
    init_BxD=init_BxD,
  )


def _run_rows(model: Model, problem: Problem, token_NxT, start_N, window: int, past: int):
  """Forward pass of whole rows: hidden states of the window, earlier keys and values, sites."""
  first, layers = problem.first_layer, range(problem.first_layer, model.config.num_layers)
  below_NxTxD, _ = model(token_NxT, stop=first)
  sites = tuple(placed.site for placed in problem.deltas)
  _, seen = model(hidden_NxTxD=below_NxTxD, start=first, taps=past_taps(layers) + sites)
  index_NxS = start_N[:, None] + jnp.arange(window)[None, :]
  index_NxS = jnp.minimum(index_NxS, token_NxT.shape[1] - 1)
  hidden_NxSxD = jnp.take_along_axis(below_NxTxD, index_NxS[..., None], axis=1)
  earlier = {name: seen[name][:, :past] for name in past_taps(layers)}
  return hidden_NxSxD, Past.from_seen(earlier, layers, start_N), seen


def run_window(
  model: Model,
  problem: Problem,
  hidden_NxSxD: jax.Array,
  past: Past,
  edits: Mapping[str, Intervention],
  taps: Sequence[str] = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The upper blocks over the window, with interventions: hidden states [N, S, D], tapped sites."""
  return model(
    hidden_NxTxD=hidden_NxSxD, start=problem.first_layer, past=past, edits=edits, taps=taps
  )


def _take(x_NxTxD: jax.Array, at_N: Array) -> jax.Array:
  """The vector of each row at its own token: [N, D]."""
  return jnp.take_along_axis(x_NxTxD, jnp.asarray(at_N)[:, None, None], axis=1)[:, 0]
