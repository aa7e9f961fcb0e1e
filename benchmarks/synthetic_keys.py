"""Keys that are rows of a table, so that their second moments are known in float64.

python benchmarks/synthetic_keys.py --num_tokens=10000000

prints how far a pass over so many tokens is from float64, with the two sums of
`jedit.moments.sums` and with a plain float32 one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import struct

from jedit.moments import sums
from jedit.moments.collect import accumulate
from jedit.moments.packing import START, PackedBatch, Place
from jedit.types import Kernel

KERNEL = Kernel(0, 'mlp')

_NUM_TOKENS = flags.DEFINE_integer('num_tokens', 10_000_000, 'Tokens of the pass.', lower_bound=1)
_WIDTH = flags.DEFINE_integer('width', 256, 'Components of a key.', lower_bound=1)
_BATCH = flags.DEFINE_integer('batch_tokens', 8192, 'Tokens of a batch.', lower_bound=1)
_DTYPES = flags.DEFINE_list('dtypes', ['float32', 'bfloat16'], 'Of the keys.')


class Text:
  """Batches of random tokens, drawn from their number and a seed."""

  def __init__(self, num_batches, shape, vocab_size=64):
    self.corpus, self.shape, self.vocab_size = range(num_batches), shape, vocab_size

  def batches(self, start=START):
    """As of PackedText: a batch is a document."""
    for number in self.corpus[start.document :]:
      rng = np.random.default_rng([7, number])
      token_NxT = rng.integers(self.vocab_size, size=self.shape).astype(np.int32)
      one_NxT = np.ones(self.shape, np.int32)
      yield PackedBatch(token_NxT, one_NxT, 0 * one_NxT, 1, Place(number + 1))

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


@struct.dataclass
class Model:
  """A model whose keys depend on the token alone."""

  table_VxF: jax.Array

  def __call__(self, token_NxT, *, taps, **unused):
    return None, dict.fromkeys(taps, self.table_VxF[token_NxT])


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'There is no argument {argv[1]!r}; use the flags.')
  text = Text(-(-_NUM_TOKENS.value // _BATCH.value), (1, _BATCH.value), vocab_size=4096)
  two_sum = sums.two_sum
  for dtype in _DTYPES.value:
    table_VxF = table(_WIDTH.value, text.vocab_size, dtype)
    exact_FxF = text.exact(table_VxF)
    for label, add in (('two sums', two_sum), ('one sum', lambda a, b, part: (a + part, b))):
      sums.two_sum = add
      found = accumulate(Model(table_VxF), text, [KERNEL])
      wrong_FxF = found.cov[KERNEL] - exact_FxF
      norm = np.linalg.norm(wrong_FxF) / np.linalg.norm(exact_FxF)
      largest = np.abs(wrong_FxF).max() / np.abs(exact_FxF).max()
      print(
        f'{dtype} keys, {found.num_tokens} tokens, {label}: relative error {norm:.1e} in norm, '
        f'{largest:.1e} at most',
        flush=True,
      )


if __name__ == '__main__':
  app.run(main)
