"""Keys that are rows of a table, so that their second moments are known in float64.

python benchmarks/synthetic_keys.py --num_tokens=10000000

prints how far a pass over so many tokens is from float64, with the two sums of
`jedit.moments.collect` and with a plain float32 one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import struct

from jedit.moments import collect
from jedit.moments.packing import PackedBatch
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

  def batches(self, start=0):
    """As of PackedText: a batch is a document."""
    for number in self.corpus[start:]:
      rng = np.random.default_rng([7, number])
      token_NxT = rng.integers(self.vocab_size, size=self.shape).astype(np.int32)
      one_NxT = np.ones(self.shape, np.int32)
      yield PackedBatch(token_NxT, one_NxT, 0 * one_NxT, token_NxT.size, number + 1)

  def exact(self, table):
    """C_FxF of the keys of a `Table`, float64."""
    count_V = sum(
      np.bincount(batch.token_NxT.ravel(), minlength=self.vocab_size) for batch in self.batches()
    )
    table_VxF = np.asarray(table.key_VxF, np.float64)
    return table_VxF.T @ (count_V[:, None] * table_VxF) / count_V.sum()


@struct.dataclass
class Table:
  """A model whose keys depend on the token alone."""

  key_VxF: jax.Array

  @classmethod
  def of(cls, width, vocab_size=64, dtype='float32'):
    """Random keys; their mean is not zero, so that sums grow."""
    rng = np.random.default_rng(3)
    return cls(jnp.asarray(1 + rng.normal(size=(vocab_size, width)), dtype))

  def __call__(self, token_NxT, *, taps, **unused):
    return None, dict.fromkeys(taps, self.key_VxF[token_NxT])


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'There is no argument {argv[1]!r}; use the flags.')
  text = Text(-(-_NUM_TOKENS.value // _BATCH.value), (1, _BATCH.value), vocab_size=4096)
  two_sum = collect.two_sum
  for dtype in _DTYPES.value:
    model = Table.of(_WIDTH.value, text.vocab_size, dtype)
    exact_FxF = text.exact(model)
    for label, add in (('two sums', two_sum), ('one sum', lambda a, b, part: (a + part, b))):
      collect.two_sum = add
      found = collect.accumulate(model, text, [KERNEL])
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
