"""Token rows that climb the network while it is being written.

Keys depend only on the tokens up to the place they are read at, and the layers below the one
being written never change again: the rows' hidden states are carried upward, layer by layer, and
never start from the embeddings a second time.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jedit.data.edit_rows import round_up
from jedit.data.prompts import pad
from jedit.models import site

_CHUNK_TOKENS = 16_384  # tokens of a chunk: bounds device memory, whatever the number of rows


class ClimbingRows:
  """Rows cut behind the token that is read, in chunks of similar length; states live on the host.

  Args:
    forward: `(params, token_NxT, **arguments) -> (hidden, seen)`, jitted by this class.
    rows: token ids; each row ends at the token that is read.
  """

  def __init__(self, forward: Callable, rows: Sequence[Sequence[int]]):
    self.layer = 0
    self.num_rows = len(rows)
    self._run = jax.jit(
      lambda params, token, hidden, start, stop, taps: forward(
        params, token, hidden_NxTxD=hidden, start=start, stop=stop, taps=taps
      ),
      static_argnames=('start', 'stop', 'taps'),
    )
    self._chunks: list[_Chunk] = []
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    while order:
      length = round_up(len(rows[order[0]]))
      fits = [i for i in order if len(rows[i]) <= length]
      size = max(1, _CHUNK_TOKENS // length)
      for first in range(0, len(fits), size):
        part = fits[first : first + size]
        count = size if len(fits) > size else len(part)
        padded = [rows[i] for i in part] + [rows[part[0]]] * (count - len(part))
        token_NxT, length_N = pad(padded, length)
        self._chunks.append(_Chunk(np.array(part), token_NxT, length_N - 1))
      order = order[len(fits) :]

  def climb(self, params, layer: int) -> None:
    """Carries the states to the input of block `layer`; blocks below it must be final."""
    if layer < self.layer:
      raise ValueError(f'The rows are at layer {self.layer} already; they only climb.')
    for chunk in self._chunks:
      if chunk.hidden is None or layer > self.layer:
        hidden, _ = self._run(
          params, chunk.token_NxT, chunk.hidden, start=self.layer, stop=layer, taps=()
        )
        chunk.hidden = np.asarray(hidden)
    self.layer = layer

  def read(self, params, layer: int, place: str) -> np.ndarray:
    """Value of a place at each row's last token, looking ahead from the carried states.

    Args:
      params: with every write so far.
      layer: at or above the present one; the states stay where they are.
      place: a place of `jedit.models.sites`.

    Returns:
      float32 [rows, size of the place], in the order the rows were given.
    """
    name, parts = site(layer, place), []
    for chunk in self._chunks:
      if chunk.hidden is None:
        raise ValueError('Call climb before read.')
      _, seen = self._run(
        params, None, chunk.hidden, start=self.layer, stop=layer + 1, taps=(name,)
      )
      at_NxTx1 = jnp.asarray(chunk.last_N)[:, None, None]
      value = jnp.take_along_axis(seen[name], at_NxTx1, axis=1)[:, 0].astype(jnp.float32)
      parts.append((chunk.indices, value))
    out = np.empty((self.num_rows, parts[0][1].shape[-1]), np.float32)
    for indices, value in parts:
      out[indices] = np.asarray(value)[: len(indices)]
    return out


class _Chunk:
  """Padded rows, which of the given ones they are, and their carried states."""

  def __init__(self, indices: np.ndarray, token_NxT: np.ndarray, last_N: np.ndarray):
    self.indices, self.token_NxT, self.last_N = indices, token_NxT, last_N
    self.hidden: np.ndarray | None = None
