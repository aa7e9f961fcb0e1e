"""Rounding of second moments: float32 sums of synthetic keys against float64.

  python benchmarks/synthetic_keys.py --num_tokens=10000000

Keys are rows of a table, so their second moments are known in float64. Prints how far a pass over
so many tokens is from them, with the two sums of `jedit.moments.sums` and with a plain float32 one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from common.command_line import Parser, name_list, whole
from flax import struct

from jedit.moments import sums
from jedit.moments.collect import accumulate
from jedit.moments.packing import START, PackedBatch, Place
from jedit.types import Kernel

KERNEL = Kernel(0, 'mlp')

PARSER = Parser(__doc__)
PARSER.add('num_tokens', whole(1), 10_000_000, 'tokens of the pass')
PARSER.add('width', whole(1), 256, 'components of a key')
PARSER.add('batch_tokens', whole(1), 8192, 'tokens of a batch')
PARSER.add('dtypes', name_list, ('float32', 'bfloat16'), 'precisions of the keys')


class Text:
  """Batches of random tokens, drawn from their number and a seed."""

  def __init__(self, num_batches, shape, vocab_size=64):
    self.corpus, self.shapes, self.vocab_size = range(num_batches), (shape,), vocab_size

  def batches(self, start=START):
    """As of PackedText: a batch is a document."""
    for number in self.corpus[start.document :]:
      rng = np.random.default_rng([7, number])
      token_NxT = rng.integers(self.vocab_size, size=self.shapes[0]).astype(np.int32)
      one_NxT = np.ones(self.shapes[0], np.int32)
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


def main() -> None:
  settings = PARSER.parse_args()
  shape = (1, settings.batch_tokens)
  text = Text(-(-settings.num_tokens // settings.batch_tokens), shape, vocab_size=4096)
  device, two_sum = jax.devices()[0].device_kind, sums.two_sum
  for dtype in settings.dtypes:
    table_VxF = table(settings.width, text.vocab_size, dtype)
    exact_FxF = text.exact(table_VxF)
    errors = {}
    for label, add in (('two sums', two_sum), ('one sum', lambda a, b, part: (a + part, b))):
      sums.two_sum = add
      jax.clear_caches()  # programs that were traced with the other one
      found = accumulate(Model(table_VxF), text, [KERNEL])
      wrong_FxF = found.cov[KERNEL] - exact_FxF
      errors[label] = np.linalg.norm(wrong_FxF) / np.linalg.norm(exact_FxF)
      largest = np.abs(wrong_FxF).max() / np.abs(exact_FxF).max()
      print(
        f'{device}, {dtype} keys, {found.num_tokens} tokens, {label}: relative error '
        f'{errors[label]:.1e} in norm, {largest:.1e} at most',
        flush=True,
      )
    print(f'{dtype} keys: one sum errs {errors["one sum"] / errors["two sums"]:.1f} times as much')


if __name__ == '__main__':
  main()
