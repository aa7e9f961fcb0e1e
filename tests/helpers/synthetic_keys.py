"""Keys that are rows of a table, so that their second moments are known in float64.

Run as a script, it takes them with a save after every batch and writes the result, or what a kill
leaves of it: `python synthetic_keys.py STORE OUT`.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jedit import accumulate
from jedit.data.packing import PackedBatch

KERNEL = ('mlp', 0)


class Text:
  """Batches of random tokens, drawn from their number and a seed."""

  def __init__(self, num_batches, shape, vocab_size=64):
    self.corpus, self.shape, self.vocab_size = range(num_batches), shape, vocab_size

  def batches(self, start=0):
    """As of PackedText: a batch is a document."""
    for number in self.corpus[start:]:
      rng = np.random.default_rng([7, number])
      token_NxT = rng.integers(self.vocab_size, size=self.shape).astype(np.int32)
      one_NxT = np.ones(self.shape, np.int32)
      yield PackedBatch(token_NxT, one_NxT, 0 * one_NxT, token_NxT.size, number + 1)

  def exact(self, table_VxF):
    """C_FxF in float64."""
    count_V = sum(
      np.bincount(batch.token_NxT.ravel(), minlength=self.vocab_size) for batch in self.batches()
    )
    table_VxF = np.asarray(table_VxF, np.float64)
    return table_VxF.T @ (count_V[:, None] * table_VxF) / count_V.sum()


def table(width, vocab_size=64, dtype='float32'):
  """Key of every token; their mean is not zero, so that sums grow."""
  rng = np.random.default_rng(3)
  return jnp.asarray(1 + rng.normal(size=(vocab_size, width)), dtype)


def forward(table_VxF: jax.Array, token_NxT: jax.Array, *, taps, **unused):
  """A model whose keys depend on the token alone."""
  return None, dict.fromkeys(taps, table_VxF[token_NxT])


def main(store: str, out: str) -> None:
  """The run that is killed."""
  accumulate._SECONDS_PER_SAVE = accumulate._WORK_PER_SAVE = 0
  text = Text(num_batches=150, shape=(1, 64))
  found = accumulate.accumulate(forward, table(48), text, [KERNEL], pathlib.Path(store))
  found.save(out)


if __name__ == '__main__':
  main(*sys.argv[1:])
