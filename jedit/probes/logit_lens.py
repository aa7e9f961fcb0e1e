"""Shared parts of the probes: batches of prompts, and the logit lens on hidden states."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.models import Model
from jedit.parallel.shapes import group_by_length, pad
from jedit.types import Request, UserError

_ROWS = 64  # texts of a batch: a fixed number, so that the code after the blocks compiles once


@dataclasses.dataclass(frozen=True)
class Batch:
  """Texts of similar length.

  Attributes:
    rows: indices of the texts; any further rows of the arrays are padding.
    token_NxT: token ids, padded on the right with 0.
    length_N: tokens without padding.
  """

  rows: np.ndarray
  token_NxT: np.ndarray
  length_N: np.ndarray

  def pick(self, values: np.ndarray) -> np.ndarray:
    """The batch's rows of an array over all texts; padding repeats the last one."""
    missing = len(self.length_N) - len(self.rows)
    return values[np.pad(self.rows, (0, missing), mode='edge')]


def batches(ids: Sequence[Sequence[int]]) -> Iterator[Batch]:
  """Batches of few shapes that cover every text once, sorted by length.

  Args:
    ids: token ids of each text.

  Raises:
    UserError: without texts.
  """
  if not ids:
    raise UserError('The probe has no requests; give at least one.')
  size = min(_ROWS, -(-len(ids) // 8) * 8)
  for length, chosen in group_by_length([len(row) for row in ids]):
    for first in range(0, len(chosen), size):
      rows = chosen[first : first + size]
      filled = rows + rows[-1:] * (size - len(rows))
      token_NxT, length_N = pad([ids[row] for row in filled], length)
      yield Batch(np.array(rows), token_NxT, length_N)


def positions(token_NxT: jax.Array, length_N: jax.Array) -> jax.Array:
  """Rotary positions; padding repeats the row's last one, because dynamic scaling uses the max."""
  index_1xT = jnp.arange(token_NxT.shape[1])[None, :]
  return jnp.minimum(index_1xT, jnp.maximum(length_N - 1, 0)[:, None])


def run(
  model: Model, token_NxT: jax.Array, length_N: jax.Array, **arguments: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Runs the model over padded rows."""
  return model(token_NxT, position_NxT=positions(token_NxT, length_N), **arguments)


def project(model: Model, state: jax.Array, projection: str) -> jax.Array:
  """Logits of hidden states [..., D], float32 [..., V].

  Args:
    model: provides the vocabulary layer.
    state: hidden states, float32.
    projection: 'embedding', the input embeddings without norm or bias (PMET's notebook); 'head',
      the vocabulary layer without norm or bias; 'prediction', final norm and vocabulary layer with
      bias, as for the model's own output.
  """
  if projection == 'prediction':
    return model.head(state)
  if projection == 'embedding' or model.config.tie_head:
    matrix_VxD = model.params['embed']['embedding']
  else:
    matrix_VxD = model.params['head']['kernel'].T
  return jnp.einsum('...d,vd->...v', state, matrix_VxD.astype(state.dtype), precision='highest')


def known_answer(request: Request) -> str:
  """The true object, or the target of a request without one."""
  return request.target_new if request.target_true is None else request.target_true
