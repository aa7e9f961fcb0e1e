"""Texts as arrays: hidden states below the edited layers, positions that are read, and weights.

No update changes the blocks below the lowest edited layer, so they run once per text: the edited
and the unedited pass start from their output, and in training so does every epoch, as long as the
hidden states of all texts fit the memory of the host.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jedit.hypernetworks.settings import MEND, Settings
from jedit.models import Model
from jedit.models.encoding import Encoded
from jedit.models.precision import wider
from jedit.parallel.memory import free_host_bytes
from jedit.parallel.mesh import fetch, least_over_processes, num_row_shards, place_rows
from jedit.parallel.shapes import bucket, pad
from jedit.solvers.devices import memory

_TEXTS_PER_PASS = 64  # of the blocks below: fixed, since a resumed run must find the same bits
_MOST_TEXTS = 1024  # of a pass
_PASS_SHARE = 0.25  # of the devices' whole memory, for a pass: free memory changes between runs
_KEPT_SHARE = 0.25  # of the free memory of the host, for hidden states

Array = jax.Array | np.ndarray  # made on the host and traced on the device


@struct.dataclass
class Texts:
  """N texts, padded on the right; Q positions are read in each.

  Attributes:
    hidden_NxTxD: input of the lowest edited block.
    last_N: last token of each text.
    read_at_NxQ: positions whose predictions are read.
    label_NxQ: the tokens that follow.
    weight_NxQ: share of each in the loss; 0 for padding.
  """

  hidden_NxTxD: Array
  last_N: Array
  read_at_NxQ: Array
  label_NxQ: Array
  weight_NxQ: Array

  @property
  def position_NxT(self) -> jax.Array:
    # Padding takes the last position: dynamic rotary scaling looks at the largest one.
    index_T = jnp.arange(self.hidden_NxTxD.shape[1], dtype=jnp.int32)
    return jnp.minimum(index_T[None], jnp.asarray(self.last_N)[:, None])


def ids_of(text: Encoded, reads: str) -> tuple[int, ...]:
  """The tokens that run: all, or without the last one, which predicts no token of the answer."""
  return text.ids if reads == 'all' else text.ids[:-1]


def num_reads(text: Encoded, reads: str) -> int:
  """How many predictions of a text are read."""
  return len(text.ids) if reads == 'all' else len(text.target_ids)


class HiddenStates:
  """Hidden states below the edited layers of numbered texts, kept on the host if they fit.

  Args:
    model: the unedited model.
    first: lowest edited layer.
    rows: token ids of every text.
    keeps: keeps what was computed, for texts that come again.
  """

  def __init__(
    self, model: Model, first: int, rows: Sequence[Sequence[int]], *, keeps: bool = True
  ):
    self.model, self._first, self.rows = model, first, rows
    size = model.config.width * jnp.dtype(model.config.dtype).itemsize
    room = int(_KEPT_SHARE * least_over_processes(free_host_bytes()))
    fits = sum(map(len, rows)) * size < room
    self._kept: dict[int, np.ndarray] | None = {} if keeps and fits else None

  def __call__(self, numbers: Sequence[int], num_tokens: int) -> np.ndarray:
    """Hidden states [N, T, D] of some texts, padded to `num_tokens`, on the host."""
    if self._kept is None:
      return fetch(self._run(numbers, num_tokens))
    for chunk in sorted({number // _TEXTS_PER_PASS for number in numbers}):
      if chunk * _TEXTS_PER_PASS not in self._kept:
        self._keep(chunk)
    first = self._kept[numbers[0]]
    hidden_NxTxD = np.zeros((len(numbers), num_tokens, first.shape[-1]), first.dtype)
    for n, number in enumerate(numbers):
      kept_TxD = self._kept[number]
      hidden_NxTxD[n, : len(kept_TxD)] = kept_TxD
    return hidden_NxTxD

  def forget(self) -> None:
    """Drops what is kept."""
    if self._kept is not None:
      self._kept.clear()

  def _keep(self, chunk: int) -> None:
    assert self._kept is not None
    start = chunk * _TEXTS_PER_PASS
    numbers = list(range(start, min(start + _TEXTS_PER_PASS, len(self.rows))))
    filled = numbers + numbers[:1] * (_TEXTS_PER_PASS - len(numbers))
    longest = max(len(self.rows[number]) for number in numbers)
    hidden_NxTxD = fetch(self._run(filled, bucket(longest)))
    for number, row_TxD in zip(numbers, hidden_NxTxD, strict=False):
      self._kept[number] = row_TxD[: len(self.rows[number])].copy()

  def _run(self, numbers: Sequence[int], num_tokens: int) -> jax.Array:
    token_NxT, length_N = pad([self.rows[number] for number in numbers], num_tokens)
    arrays = place_rows(self.model, (token_NxT, length_N - 1))
    return _below(self.model, self._first, *arrays)


@functools.partial(jax.jit, static_argnames='first')
def _below(model: Model, first: int, token_NxT: jax.Array, last_N: jax.Array) -> jax.Array:
  index_T = jnp.arange(token_NxT.shape[1], dtype=last_N.dtype)
  position_NxT = jnp.minimum(index_T[None], last_N[:, None])
  return model(token_NxT, stop=first, position_NxT=position_NxT)[0]


def make_texts(
  hidden: HiddenStates,
  numbers: Sequence[int],
  texts: Sequence[Encoded],
  denominators: Sequence[float],
  *,
  reads: str,
  num_tokens: int,
  num_reads: int,
  num_rows: int | None = None,
) -> Texts:
  """Pads texts and places them on the devices of the model.

  Args:
    hidden: states of numbered texts.
    numbers: of these texts.
    texts: their tokens.
    denominators: by text, what each of its weights is divided by.
    reads: 'answer' or 'all' predictions.
    num_tokens, num_reads: T and Q.
    num_rows: N, whole groups; more rows than texts have no weight. None takes those of the texts.
  """
  model = hidden.model
  num_rows = num_rows or len(texts)
  read_at_NxQ = np.zeros((num_rows, num_reads), np.int32)
  label_NxQ = np.zeros((num_rows, num_reads), np.int32)
  weight_NxQ = np.zeros((num_rows, num_reads), wider(model.config.dtype, 'float32'))
  for n, (text, denominator) in enumerate(zip(texts, denominators, strict=True)):
    start = 0 if reads == 'all' else text.prompt_last
    label = () if reads == 'all' else text.target_ids
    count = len(text.ids) if reads == 'all' else len(label)
    read_at_NxQ[n, :count] = np.arange(start, start + count)
    label_NxQ[n, : len(label)] = label
    weight_NxQ[n, :count] = 1.0 / denominator
  filled = [*numbers, *[numbers[0]] * (num_rows - len(numbers))]
  last_N = np.array([len(hidden.rows[number]) - 1 for number in filled], np.int32)
  host = Texts(hidden(filled, num_tokens), last_N, read_at_NxQ, label_NxQ, weight_NxQ)
  return place_rows(model, host)


def group_size(settings: Settings) -> int:
  """Edits whose loss is one mean: of an update of MEND, of a mini-batch of MALMEN."""
  return settings.num_edits if settings.name == MEND else settings.mini_batch_size


def denominators(
  counts: Sequence[int], size: int, tokens_per_edit: float = 0.0, *, fills: bool = False
) -> list[float]:
  """By text, the number of predictions that its loss is averaged over: those of its group.

  Args:
    counts: predictions of each text.
    size: texts of a group; the last may hold fewer.
    tokens_per_edit: predictions of an average text; 0 takes the mean of the group.
    fills: a group with fewer texts counts as if it were filled up with average ones, so that its
      gradients are as large as those the net has learned to read.
  """
  found: list[float] = []
  for start in range(0, len(counts), size):
    group = counts[start : start + size]
    total = float(sum(group))
    if fills:
      total += (size - len(group)) * (tokens_per_edit or total / len(group))
    found += [total] * len(group)
  return found


def texts_at_once(model: Model, first: int, num_tokens: int) -> int:
  """How many texts a forward and backward pass from layer `first` on takes: a power of two."""
  config = model.config
  wide = 8 * config.width + 4 * config.ffn_width + config.num_heads * num_tokens
  per_text = 4 * (num_tokens * (config.num_layers - first) * wide + 4 * config.vocab_size)
  devices = num_row_shards(model)
  limit = int(_PASS_SHARE * memory(jax.local_devices()[0]) * devices / per_text)
  limit = least_over_processes(min(limit, _MOST_TEXTS))
  return 1 << max(0, limit.bit_length() - 1)
