"""Texts as arrays: hidden states below the edited layers, positions that are read, and weights.

No update changes the blocks below the lowest edited layer, so they run once per text: the edited
and the unedited pass start from their output, and in training so does every epoch, as long as the
hidden states of all texts fit the memory of the host. In MALMEN's training, several texts share a
row, in which each sees itself alone: texts are short, and half of a padded batch would be padding.
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
from jedit.parallel.shapes import best_fit, bucket, round_up
from jedit.solvers.devices import memory

_ROWS = 4  # packed rows are a multiple of these: shapes are compiled
_TEXTS_PER_PASS = 64  # of the blocks below: fixed, since a resumed run must find the same bits
_MOST_TEXTS = 1024  # of a pass
_PASS_SHARE = 0.25  # of the devices' whole memory, for a pass: free memory changes between runs
_KEPT_SHARE = 0.25  # of the free memory of the host, for hidden states

Array = jax.Array | np.ndarray  # made on the host and traced on the device


@struct.dataclass
class Layout:
  """Where N texts stand in B rows of T tokens.

  Attributes:
    row_N: row of each text; None for a row each.
    position_BxT: position of every token in its text; padding repeats one, since dynamic rotary
      scaling looks at the largest.
    segment_BxT: number of the text that a token belongs to, 0 for padding; None as above.
  """

  row_N: Array | None
  position_BxT: Array
  segment_BxT: Array | None


@struct.dataclass
class Texts:
  """N texts in B rows; Q positions are read in each.

  Attributes:
    hidden_BxTxD: input of the lowest edited block.
    layout: of the rows.
    last_N: last token of each text in its row.
    read_at_NxQ: tokens of its row whose predictions are read.
    label_NxQ: the tokens that follow.
    weight_NxQ: share of each in the loss; 0 for padding.
  """

  hidden_BxTxD: Array
  layout: Layout
  last_N: Array
  read_at_NxQ: Array
  label_NxQ: Array
  weight_NxQ: Array

  @property
  def row_Nx1(self) -> jax.Array:
    """Row of each text."""
    row_N = self.layout.row_N
    return (jnp.arange(len(self.last_N)) if row_N is None else jnp.asarray(row_N))[:, None]


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

  def __call__(self, numbers: Sequence[int]) -> list[np.ndarray]:
    """Hidden states [T, D] of some texts, on the host."""
    if self._kept is None:
      return self._run(numbers, bucket(max(len(self.rows[number]) for number in numbers)), False)
    for chunk in sorted({number // _TEXTS_PER_PASS for number in numbers}):
      if chunk * _TEXTS_PER_PASS not in self._kept:
        self._keep(chunk)
    return [self._kept[number] for number in numbers]

  def forget(self) -> None:
    """Drops what is kept."""
    if self._kept is not None:
      self._kept.clear()

  def _keep(self, chunk: int) -> None:
    assert self._kept is not None
    start = chunk * _TEXTS_PER_PASS
    numbers = list(range(start, min(start + _TEXTS_PER_PASS, len(self.rows))))
    filled = numbers + numbers[:1] * (_TEXTS_PER_PASS - len(numbers))
    longest = bucket(max(map(len, self.rows)))
    found = self._run(filled, longest, can_pack(self.model))
    self._kept.update(zip(numbers, found, strict=False))

  def _run(self, numbers: Sequence[int], num_tokens: int, packs: bool) -> list[np.ndarray]:
    rows = [self.rows[number] for number in numbers]
    layout, start_N = lay_out(list(map(len, rows)), num_tokens, packs)
    row_N = np.arange(len(rows)) if layout.row_N is None else layout.row_N
    token_BxT = np.zeros(layout.position_BxT.shape, np.int32)
    for row, b, start in zip(rows, row_N, start_N, strict=True):
      token_BxT[b, start : start + len(row)] = row
    arrays = place_rows(self.model, (token_BxT, layout))
    hidden_BxTxD = fetch(_below(self.model, self._first, *arrays))
    return [
      hidden_BxTxD[b, start : start + len(row)].copy()
      for row, b, start in zip(rows, row_N, start_N, strict=True)
    ]


@functools.partial(jax.jit, static_argnames='first')
def _below(model: Model, first: int, token_BxT: jax.Array, layout: Layout) -> jax.Array:
  return model(
    token_BxT, stop=first, position_NxT=layout.position_BxT, segment_NxT=layout.segment_BxT
  )[0]


def can_pack(model: Model) -> bool:
  """True where one device holds all rows; over several, a text stays with its row's device."""
  return num_row_shards(model) == 1


def lay_out(lengths: Sequence[int], num_tokens: int, packs: bool) -> tuple[Layout, np.ndarray]:
  """Rows for texts of some lengths, and the first token of each text in its row, on the host.

  Args:
    lengths: of the N texts.
    num_tokens: T, at least the longest.
    packs: several texts share a row.
  """
  start_N = np.zeros(len(lengths), np.int32)
  if not packs:
    last_Nx1 = np.array(lengths, np.int32)[:, None] - 1
    position_NxT = np.minimum(np.arange(num_tokens, dtype=np.int32)[None], last_Nx1)
    return Layout(None, position_NxT, None), start_N
  rows = [row for _, row in best_fit(lengths, [num_tokens])]
  row_N = np.zeros(len(lengths), np.int32)
  shape = round_up(len(rows), _ROWS), num_tokens
  position_BxT, segment_BxT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  for b, texts in enumerate(rows):
    start = 0
    for segment, n in enumerate(texts, start=1):
      stop = start + lengths[n]
      row_N[n], start_N[n] = b, start
      position_BxT[b, start:stop] = np.arange(lengths[n])
      segment_BxT[b, start:stop] = segment
      start = stop
  return Layout(row_N, position_BxT, segment_BxT), start_N


def make_texts(
  hidden: HiddenStates,
  numbers: Sequence[int],
  texts: Sequence[Encoded],
  denominators: Sequence[float],
  *,
  reads: str,
  num_tokens: int,
  num_reads: int,
  num_texts: int | None = None,
  packs: bool = False,
) -> Texts:
  """Lays texts out in rows and places them on the devices of the model.

  Args:
    hidden: states of numbered texts.
    numbers: of these texts.
    texts: their tokens.
    denominators: by text, what each of its weights is divided by.
    reads: 'answer' or 'all' predictions.
    num_tokens, num_reads: T and Q.
    num_texts: N, whole groups; those beyond the texts have no weight. None takes no more.
    packs: several texts share a row.
  """
  model = hidden.model
  num_texts = num_texts or len(texts)
  shape = num_texts, num_reads
  read_at_NxQ, label_NxQ = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  weight_NxQ = np.zeros(shape, wider(model.config.dtype, 'float32'))
  filled = [*numbers, *[numbers[0]] * (num_texts - len(numbers))]
  states = hidden(filled)
  lengths = [len(state_TxD) for state_TxD in states]
  layout, start_N = lay_out(lengths, num_tokens, packs)
  row_N = np.arange(num_texts) if layout.row_N is None else layout.row_N
  hidden_BxTxD = np.zeros((*layout.position_BxT.shape, model.config.width), states[0].dtype)
  for state_TxD, b, start in zip(states, row_N, start_N, strict=True):
    hidden_BxTxD[b, start : start + len(state_TxD)] = state_TxD
  for n, (text, denominator) in enumerate(zip(texts, denominators, strict=True)):
    first = start_N[n] + (0 if reads == 'all' else text.prompt_last)
    label = () if reads == 'all' else text.target_ids
    count = len(text.ids) if reads == 'all' else len(label)
    read_at_NxQ[n, :count] = np.arange(first, first + count)
    label_NxQ[n, : len(label)] = label
    weight_NxQ[n, :count] = 1.0 / denominator
  last_N = start_N + np.array(lengths, np.int32) - 1
  host = Texts(hidden_BxTxD, layout, last_N, read_at_NxQ, label_NxQ, weight_NxQ)
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
