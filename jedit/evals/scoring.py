"""Log-probabilities of given answers to many prompts, in few shapes and little memory.

Rows are sorted into a few lengths, each one compiled program over batches of equal size. The
vocabulary layer runs only at positions that predict an answer token. A prompt with several answers
runs once, and each answer continues from its keys and values. The last token of an answer is never
fed to the model, so one-token answers cost nothing beyond the prompt. Equal rows are scored once.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.models import Model, Past, past_taps
from jedit.models.encoding import Encoded
from jedit.parallel.mesh import fetch, place_rows
from jedit.parallel.program import jit
from jedit.parallel.shapes import PADDING_PER_PROGRAM, group_by_length
from jedit.types import UserError

_ANSWERS = 2  # per prompt of a batch, since a record compares two objects
_LOGITS = 2**26  # entries of one batch's logits: 256 MiB in float32


# A prompt and its answers, each with the indices of its rows.
_Item = tuple[tuple[int, ...], list[tuple[tuple[int, ...], list[int]]]]


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of the target tokens of N rows, in row order.

  Attributes:
    logp_NxT: natural-log probability of each target token given all before it; nan after the end.
    is_top_NxT: True where it is the top token (lowest id among ties); False after the end.
    length_N: target tokens of each row.
    top_NxT: the top tokens themselves, -1 after the end.
  """

  logp_NxT: np.ndarray
  is_top_NxT: np.ndarray
  length_N: np.ndarray
  top_NxT: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.int32))

  @functools.cached_property
  def nll_N(self) -> np.ndarray:
    """Mean of -ln p over target tokens, nats per token, float64; nan where the model gives nan."""
    exists_NxT = np.arange(self.logp_NxT.shape[1]) < self.length_N[:, None]
    total_N = np.sum(self.logp_NxT, axis=1, where=exists_NxT, dtype=np.float64)
    return -total_N / self.length_N

  @functools.cached_property
  def exact_N(self) -> np.ndarray:
    """1 where every target token is top-1, else 0; nan without probabilities."""
    return np.where(np.isnan(self.nll_N), np.nan, self.is_top_NxT.sum(axis=1) == self.length_N)

  @functools.cached_property
  def token_acc_N(self) -> np.ndarray:
    """Share of target tokens that are top-1; nan without probabilities."""
    return np.where(np.isnan(self.nll_N), np.nan, self.is_top_NxT.sum(axis=1) / self.length_N)


@dataclasses.dataclass(frozen=True)
class Batch:
  """Prompts that are scored together, C answers each.

  Attributes:
    token_NxT: token ids of the prompts, padded on the right with 0.
    length_N: tokens of each prompt without padding.
    target_NxCxS: answer tokens, padded with 0; all but the last are model input.
    rows: indices of the scored rows for each of N x C; empty for padding.
    num_tokens: tokens of the forward pass without padding.
  """

  token_NxT: np.ndarray
  length_N: np.ndarray
  target_NxCxS: np.ndarray
  rows: tuple[tuple[tuple[int, ...], ...], ...]
  num_tokens: int

  @property
  def num_answered(self) -> int:
    """Number of rows that the batch scores."""
    return sum(len(numbers) for answers in self.rows for numbers in answers)


@dataclasses.dataclass(frozen=True)
class Plan:
  """Batches that cover the given rows; planned once, run on any number of models."""

  batches: tuple[Batch, ...]
  length_N: np.ndarray

  @property
  def num_tokens(self) -> int:
    """Tokens over all batches, without padding."""
    return sum(batch.num_tokens for batch in self.batches)

  @property
  def shapes(self) -> tuple[tuple[int, int, int], ...]:
    """The (prompts, tokens, answer tokens) of the plan's programs."""
    sizes = ((*batch.token_NxT.shape, batch.target_NxCxS.shape[2]) for batch in self.batches)
    return tuple(sorted(set(sizes)))


def default_tokens() -> int:
  """Tokens of a batch by device: a CPU has small caches."""
  return 2048 if jax.default_backend() == 'cpu' else 8192


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
    tokens_per_batch: tokens of a batch, padding included, but at least one row. None takes
      `default_tokens`.
    shapes: of compiled programs (`Plan.shapes`) to reuse where they fit.

  Returns:
    The plan; results come back in the order of `rows`.

  Raises:
    UserError: for a row without target or with an empty prompt.
  """
  tokens_per_batch = tokens_per_batch or default_tokens()
  answers: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
  for number, row in enumerate(rows):
    if not 0 < row.target_start < len(row.ids):
      lacks = 'no token before its answer' if row.target_start < 1 else 'no answer'
      raise UserError(f'The text {row.text!r} has {lacks}; give a prompt and an answer.')
    ids, start = tuple(row.ids), row.target_start
    answers.setdefault(ids[:start], {}).setdefault(ids[start:], []).append(number)
  items: list[_Item] = []
  for prompt, found in answers.items():
    # Answers of similar length share batches, to save padding.
    ends = sorted(found.items(), key=lambda end: len(end[0]))
    items.extend((prompt, ends[i : i + _ANSWERS]) for i in range(0, len(ends), _ANSWERS))
  batches, items = _reuse(items, shapes)
  for num_read, similar in _by_answer(items):
    for length, chosen in group_by_length([len(prompt) for prompt, _ in similar]):
      num_tokens = length + _ANSWERS * (num_read - 1)
      num_logits = 1 + _ANSWERS * (num_read - 1)
      limit = min(tokens_per_batch // num_tokens, _LOGITS // (num_logits * vocab_size))
      num_batches = -(-len(chosen) // max(limit, 1))
      # Equal batches pad less than full ones plus a rest; multiples of eight recur between runs.
      size = -(-len(chosen) // num_batches)
      size = min(-(-size // 8) * 8, max(limit, size))
      for first in range(0, len(chosen), size):
        batch = [similar[i] for i in chosen[first : first + size]]
        batches.append(_fill(batch, size, length, num_read))
  return Plan(tuple(batches), np.array([len(r.ids) - r.target_start for r in rows], np.int64))


def _by_answer(items: Sequence[_Item]) -> list[tuple[int, list[_Item]]]:
  """Groups items by the padded length of their answers, as `group_by_length` groups by length."""
  if not items:
    return []
  by_size: dict[int, list[_Item]] = {}
  for item in items:
    by_size.setdefault(_ceil_power(_num_read(item)), []).append(item)
  groups: list[tuple[int, list[_Item]]] = []
  waiting: list[_Item] = []
  sizes = sorted(by_size)
  for size, longer in zip(sizes, [*sizes[1:], None], strict=True):
    waiting = waiting + by_size[size]
    more = 0 if longer is None else sum(longer - _num_read(item) for item in waiting)
    if longer is None or _ANSWERS * more > PADDING_PER_PROGRAM:
      groups.append((size, waiting))
      waiting = []
  return groups


def _num_read(item: _Item) -> int:
  return max(len(answer) for answer, _ in item[1])


def _reuse(
  items: list[_Item], shapes: Sequence[tuple[int, int, int]]
) -> tuple[list[Batch], list[_Item]]:
  """Batches of given shapes, shortest first, and the items that fit none of them."""

  def fits(item: _Item, shape: tuple[int, int, int]) -> bool:
    return len(item[0]) <= shape[1] and _num_read(item) <= shape[2]

  shapes = sorted(shapes, key=lambda shape: shape[1:])
  left = sorted(items, key=lambda item: len(item[0]))
  batches = []
  for number, shape in enumerate(shapes):
    chosen = [item for item in left if fits(item, shape)]
    # Items that do not fill a batch move to the next longer shape that fits.
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
  target_NxCxS = np.zeros((num_rows, _ANSWERS, num_read), np.int32)
  answered = []
  num_tokens = 0
  for n, (prompt, ends) in enumerate(items):
    token_NxT[n, : len(prompt)] = prompt
    length_N[n] = len(prompt)
    for c, (answer, _) in enumerate(ends):
      target_NxCxS[n, c, : len(answer)] = answer
    answered.append(tuple(tuple(numbers) for _, numbers in ends))
    num_tokens += len(prompt) + sum(len(answer) - 1 for answer, _ in ends)
  return Batch(token_NxT, length_N, target_NxCxS, tuple(answered), num_tokens)


@jit
def _score_batch(
  model: Model, token_NxT: jax.Array, length_N: jax.Array, target_NxCxS: jax.Array
) -> tuple[jax.Array, jax.Array]:
  num_rows, num_answers, num_read = target_NxCxS.shape
  layers = range(model.config.num_layers)
  is_read_on = num_read > 1
  # Padding repeats the row's last position, because dynamic rotary scaling uses the largest.
  last_N = jnp.maximum(length_N - 1, 0)
  position_NxT = jnp.minimum(jnp.arange(token_NxT.shape[1])[None, :], last_N[:, None])
  taps = past_taps(layers) if is_read_on else ()
  hidden_NxTxD, seen = model(token_NxT, position_NxT=position_NxT, taps=taps)
  hidden_NxJxD = hidden_NxTxD[jnp.arange(num_rows), last_N][:, None]
  if is_read_on:
    past = Past.from_seen(seen, layers, length_N)
    past = jax.tree.map(lambda x: jnp.repeat(x, num_answers, axis=0), past)
    tail_MxS = target_NxCxS[:, :, :-1].reshape(num_rows * num_answers, num_read - 1)
    tail_MxSxD, _ = model(tail_MxS, past=past)
    tail_NxJxD = tail_MxSxD.reshape(num_rows, num_answers * (num_read - 1), -1)
    hidden_NxJxD = jnp.concatenate([hidden_NxJxD, tail_NxJxD], axis=1)
  logits_NxJxV = model.head(hidden_NxJxD)
  norm_NxJ = jax.nn.logsumexp(logits_NxJxV, axis=-1)
  top_NxJ = jnp.argmax(logits_NxJxV, axis=-1)  # the first among ties
  # The end of the prompt predicts an answer's first token; answer tokens predict the next ones.
  index_CxS = np.zeros((num_answers, num_read), np.int32)
  index_CxS[:, 1:] = 1 + np.arange(num_answers * (num_read - 1)).reshape(num_answers, -1)
  row_Nx1x1 = jnp.arange(num_rows)[:, None, None]
  logit_NxCxS = logits_NxJxV[row_Nx1x1, index_CxS[None], target_NxCxS]
  return logit_NxCxS - norm_NxJ[:, index_CxS], top_NxJ[:, index_CxS]


def score_plan(
  model: Model, plan: Plan, *, on_batch: Callable[[int], None] | None = None
) -> Scores:
  """Scores the rows of a plan with one model.

  Args:
    model: the model to measure.
    plan: from `plan_batches`.
    on_batch: progress callback, called after each batch with the number of rows scored.

  Returns:
    Scores of all rows, in the order given to `plan_batches`.
  """
  width = int(plan.length_N.max(initial=0))
  logp_NxT = np.full((len(plan.length_N), width), np.nan)
  is_top_NxT = np.zeros((len(plan.length_N), width), bool)
  top_NxT = np.full((len(plan.length_N), width), -1, np.int32)

  def collect(batch: Batch, result: tuple[jax.Array, jax.Array]) -> None:
    logp_NxCxS, top_NxCxS = fetch(result)
    is_top_NxCxS = top_NxCxS == batch.target_NxCxS
    for n, answers in enumerate(batch.rows):
      for c, numbers in enumerate(answers):
        for number in numbers:
          length = plan.length_N[number]
          logp_NxT[number, :length] = logp_NxCxS[n, c, :length]
          is_top_NxT[number, :length] = is_top_NxCxS[n, c, :length]
          top_NxT[number, :length] = top_NxCxS[n, c, :length]
    if on_batch is not None:
      on_batch(batch.num_answered)

  running = None
  for batch in plan.batches:
    # Dispatch the next batch before fetching the last, to keep the device busy.
    arrays = (batch.token_NxT, batch.length_N, batch.target_NxCxS)
    result = _score_batch(model, *place_rows(model, arrays))
    if running is not None:
      collect(*running)
    running = (batch, result)
  if running is not None:
    collect(*running)
  return Scores(logp_NxT, is_top_NxT, plan.length_N, top_NxT)


def score(model: Model, rows: Sequence[Encoded], **options: Any) -> Scores:
  """Plans and scores rows with one model; `options` as in `plan_batches`."""
  return score_plan(model, plan_batches(rows, model.config.vocab_size, **options))
