"""Log-probabilities of given answers to many prompts, in few shapes and little memory.

Rows are sorted into a few lengths; each length is one compiled program over batches of equal size.
The vocabulary layer runs only where a token of an answer is read. Rows that differ in nothing but
their last token (two answers of one token each, after the same prompt) are one forward pass, and
equal rows are scored once: the last token of a row is never fed to the model.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.buckets import group_by_length
from jedit.data.prompts import Encoded
from jedit.mesh import fetch, place_rows
from jedit.models import ModelConfig, forward, head
from jedit.types import UserError

_ANSWERS = 2  # last tokens per forward pass: a record compares two objects
_LOGITS = 2**26  # entries of one batch's logits: 256 MiB in float32


# What the model reads, where its answers start, and each last token with the rows it ends.
_Item = tuple[tuple[int, ...], int, list[tuple[int, list[int]]]]


@dataclasses.dataclass(frozen=True)
class Scores:
  """What a model says to the target tokens of N rows, in row order.

  Attributes:
    logp_NxT: natural-log probability of each target token given all before it; nan after the end.
    is_top_NxT: whether it is the top token (of equal ones, the lowest id); False after the end.
    length_N: target tokens of each row.
  """

  logp_NxT: np.ndarray
  is_top_NxT: np.ndarray
  length_N: np.ndarray

  @functools.cached_property
  def nll_N(self) -> np.ndarray:
    """Mean over target tokens of -ln p, in nats per token, float64; nan where the model's is."""
    exists_NxT = np.arange(self.logp_NxT.shape[1]) < self.length_N[:, None]
    total_N = np.sum(self.logp_NxT, axis=1, where=exists_NxT, dtype=np.float64)
    return -total_N / self.length_N

  @functools.cached_property
  def exact_N(self) -> np.ndarray:
    """1 where every target token is on top, else 0; nan where the model gave no probabilities."""
    return np.where(np.isnan(self.nll_N), np.nan, self.is_top_NxT.sum(axis=1) == self.length_N)

  @functools.cached_property
  def token_acc_N(self) -> np.ndarray:
    """Share of target tokens on top; nan where the model gave no probabilities."""
    return np.where(np.isnan(self.nll_N), np.nan, self.is_top_NxT.sum(axis=1) / self.length_N)


@dataclasses.dataclass(frozen=True)
class Batch:
  """Rows that are scored together, C answers each.

  Attributes:
    token_NxT: token ids without the last one of each row, padded on the right with 0.
    length_N: tokens of each row that are no padding.
    read_NxS: index of the token that predicts each target token.
    target_NxCxS: target tokens, padded with 0.
    rows: for each of N x C, the numbers of the given rows that it answers; empty for padding.
  """

  token_NxT: np.ndarray
  length_N: np.ndarray
  read_NxS: np.ndarray
  target_NxCxS: np.ndarray
  rows: tuple[tuple[tuple[int, ...], ...], ...]

  @property
  def num_tokens(self) -> int:
    """Tokens that are no padding."""
    return int(self.length_N.sum())


@dataclasses.dataclass(frozen=True)
class Plan:
  """Batches that together score the given rows; made once, run on any number of models."""

  batches: tuple[Batch, ...]
  length_N: np.ndarray

  @property
  def num_tokens(self) -> int:
    """Tokens that are no padding, over all batches."""
    return sum(batch.num_tokens for batch in self.batches)

  @property
  def shapes(self) -> tuple[tuple[int, int, int], ...]:
    """The (rows, tokens, read positions) of the programs that the plan needs."""
    sizes = ((*batch.token_NxT.shape, batch.read_NxS.shape[1]) for batch in self.batches)
    return tuple(sorted(set(sizes)))


def plan_batches(
  rows: Sequence[Encoded],
  vocab_size: int,
  *,
  tokens_per_batch: int | None = None,
  shapes: Sequence[tuple[int, int, int]] = (),
) -> Plan:
  """Sorts rows by length into batches of few shapes.

  Args:
    rows: encoded texts with a target each.
    vocab_size: V, which bounds the rows of a batch by the size of their logits.
    tokens_per_batch: tokens of a batch, padding included; at least one row whatever its length.
      None takes 2048 on a CPU, whose caches are small, and 8192 elsewhere.
    shapes: of programs that are there already (`Plan.shapes`); they are used where they fit.

  Returns:
    The plan; results come back in the order of `rows`.

  Raises:
    UserError: for a row without target or with nothing before its target.
  """
  if tokens_per_batch is None:
    tokens_per_batch = 2048 if jax.default_backend() == 'cpu' else 8192
  # What the model reads -> last tokens -> the rows that end so.
  answers: dict[tuple[tuple[int, ...], int], dict[int, list[int]]] = {}
  for number, row in enumerate(rows):
    if not 0 < row.target_start < len(row.ids):
      lacks = 'no token before its answer' if row.target_start < 1 else 'no answer'
      raise UserError(f'The text {row.text!r} has {lacks}; give a prompt and an answer.')
    ids = tuple(row.ids)
    answers.setdefault((ids[:-1], row.target_start), {}).setdefault(ids[-1], []).append(number)
  items: list[_Item] = []
  for (read, start), last in answers.items():
    ends = list(last.items())
    groups = (ends[i : i + _ANSWERS] for i in range(0, len(ends), _ANSWERS))
    items.extend((read, start, group) for group in groups)
  batches, items = _reuse(items, shapes)
  for length, chosen in group_by_length([len(read) for read, _, _ in items]):
    num_read = _ceil_power(max(len(items[i][0]) - items[i][1] + 1 for i in chosen))
    limit = min(tokens_per_batch // length, _LOGITS // (num_read * vocab_size))
    num_batches = -(-len(chosen) // max(limit, 1))
    # Equal batches waste less than full ones with a rest; sizes in eights repeat between runs.
    size = -(-len(chosen) // num_batches)
    size = min(-(-size // 8) * 8, max(limit, size))
    for first in range(0, len(chosen), size):
      batch = [items[i] for i in chosen[first : first + size]]
      batches.append(_fill(batch, size, length, num_read))
  return Plan(tuple(batches), np.array([len(r.ids) - r.target_start for r in rows], np.int64))


def _reuse(
  items: list[_Item], shapes: Sequence[tuple[int, int, int]]
) -> tuple[list[Batch], list[_Item]]:
  """Batches of given shapes, the shortest first, and the items that fit none of them."""

  def fits(item: _Item, shape: tuple[int, int, int]) -> bool:
    read, start, _ = item
    return len(read) <= shape[1] and len(read) - start + 1 <= shape[2]

  shapes = sorted(shapes, key=lambda shape: shape[1:])
  left = sorted(items, key=lambda item: len(item[0]))
  batches = []
  for number, shape in enumerate(shapes):
    chosen = [item for item in left if fits(item, shape)]
    # What does not fill a batch goes into the next longer one that it fits.
    chosen.sort(key=lambda item: any(fits(item, other) for other in shapes[number + 1 :]))
    num_bound = sum(not any(fits(i, other) for other in shapes[number + 1 :]) for i in chosen)
    size, length, num_read = shape
    count = max(-(-num_bound // size), len(chosen) // size) * size
    taken = chosen[:count]
    batches += [
      _fill(taken[first : first + size], size, length, num_read)
      for first in range(0, len(taken), size)
    ]
    gone = set(map(id, taken))
    left = [item for item in left if id(item) not in gone]
  return batches, left


def _ceil_power(number: int) -> int:
  return 1 << (number - 1).bit_length()


def _fill(items: Sequence[_Item], num_rows: int, length: int, num_read: int) -> Batch:
  token_NxT = np.zeros((num_rows, length), np.int32)
  length_N = np.zeros(num_rows, np.int32)
  read_NxS = np.zeros((num_rows, num_read), np.int32)
  target_NxCxS = np.zeros((num_rows, _ANSWERS, num_read), np.int32)
  answered = []
  for n, (read, start, ends) in enumerate(items):
    token_NxT[n, : len(read)] = read
    length_N[n] = len(read)
    read_NxS[n] = np.minimum(start - 1 + np.arange(num_read), length - 1)
    target_NxCxS[n, :, : len(read) - start] = read[start:]
    for c, (last, _) in enumerate(ends):
      target_NxCxS[n, c, len(read) - start] = last
    answered.append(tuple(tuple(numbers) for _, numbers in ends))
  return Batch(token_NxT, length_N, read_NxS, target_NxCxS, tuple(answered))


@functools.partial(jax.jit, static_argnames='config')
def _score_batch(
  config: ModelConfig,
  params: Any,
  token_NxT: jax.Array,
  length_N: jax.Array,
  read_NxS: jax.Array,
  target_NxCxS: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  # A padded token takes its row's last position: scaled rotary positions look at the largest.
  last_Nx1 = jnp.maximum(length_N - 1, 0)[:, None]
  position_NxT = jnp.minimum(jnp.arange(token_NxT.shape[1])[None, :], last_Nx1)
  hidden_NxTxD, _ = forward(config, params, token_NxT, position_NxT=position_NxT)
  hidden_NxSxD = hidden_NxTxD[jnp.arange(token_NxT.shape[0])[:, None], read_NxS]
  logits_NxSxV = head(config, params, hidden_NxSxD)
  norm_NxS = jax.nn.logsumexp(logits_NxSxV, axis=-1)
  top_NxS = jnp.argmax(logits_NxSxV, axis=-1)  # the first of equal ones
  target_NxSxC = jnp.swapaxes(target_NxCxS, 1, 2)
  logit_NxSxC = jnp.take_along_axis(logits_NxSxV, target_NxSxC, axis=-1)
  logp_NxCxS = jnp.swapaxes(logit_NxSxC - norm_NxS[..., None], 1, 2)
  return logp_NxCxS, target_NxCxS == top_NxS[:, None, :]


def score_plan(
  config: ModelConfig,
  params: Any,
  plan: Plan,
  *,
  on_batch: Callable[[int], None] | None = None,
) -> Scores:
  """Scores the rows of a plan with one model.

  Args:
    config: the model's.
    params: its parameters.
    plan: from `plan_batches`.
    on_batch: called after each batch with the number of its tokens, for progress.

  Returns:
    Scores of all rows, in the order they were given to `plan_batches`.
  """
  width = int(plan.length_N.max(initial=0))
  logp_NxT = np.full((len(plan.length_N), width), np.nan)
  is_top_NxT = np.zeros((len(plan.length_N), width), bool)

  def collect(batch: Batch, result: tuple[jax.Array, jax.Array]) -> None:
    logp_NxCxS, is_top_NxCxS = fetch(result)
    for n, answers in enumerate(batch.rows):
      for c, numbers in enumerate(answers):
        for number in numbers:
          length = plan.length_N[number]
          logp_NxT[number, :length] = logp_NxCxS[n, c, :length]
          is_top_NxT[number, :length] = is_top_NxCxS[n, c, :length]
    if on_batch is not None:
      on_batch(batch.num_tokens)

  running = None
  for batch in plan.batches:
    # The next batch is sent before the last one is fetched, so that the device never waits.
    arrays = (batch.token_NxT, batch.length_N, batch.read_NxS, batch.target_NxCxS)
    result = _score_batch(config, params, *place_rows(params, arrays))
    if running is not None:
      collect(*running)
    running = (batch, result)
  if running is not None:
    collect(*running)
  return Scores(logp_NxT, is_top_NxT, plan.length_N)


def score(config: ModelConfig, params: Any, rows: Sequence[Encoded], **options: Any) -> Scores:
  """Plans and scores rows with one model; `options` as of `plan_batches`."""
  return score_plan(config, params, plan_batches(rows, config.vocab_size, **options))
