"""Log-probabilities of given answers to many prompts, in one program and little memory.

A prompt and its answers are packed as a tree: the prompt once, then every answer as a branch that
attends to the prompt and to itself. Several trees share a row, and all rows have one length, so
that almost no padding is run and every batch of every evaluation is the same compiled program. The
last token of an answer is never fed to the model, so one-token answers cost nothing beyond the
prompt. The vocabulary layer runs only at tokens that predict one of an answer. Equal rows are
scored once.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.models import Model
from jedit.models.encoding import Encoded
from jedit.parallel.mesh import fetch, place_rows
from jedit.parallel.program import jit
from jedit.parallel.shapes import PADDING_PER_PROGRAM, best_fit
from jedit.types import UserError

_ROW_TOKENS = 64  # at least: attention over more keys costs more, shorter rows have more gaps
_KEYS_PER_TOKEN = 256  # attending to so many more keys takes about as long as one more token
_ANSWERS = 2  # tokens scored at one position, since a record compares two objects
_READS = 16  # tokens of a batch for each one that the vocabulary layer runs on at once
_LOGITS = 2**26  # entries of the logits at once: 256 MiB in float32


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
  """Packed prompts with their answers.

  Attributes:
    token_NxT: token ids, 0 where a row is not full.
    position_NxT: of each token in its prompt and answer.
    segment_NxT: number of the prompt in its row from 1; 0 marks padding.
    branch_NxT: number of the answer after its prompt from 1; 0 for tokens of the prompt.
    index_J: tokens, counted over all rows, at which an answer token is predicted.
    target_JxC: the answer tokens, padded with 0.
    found: where scores go: indices j, c, row and answer token [4, M].
    num_tokens: tokens that are not padding.
  """

  token_NxT: np.ndarray
  position_NxT: np.ndarray
  segment_NxT: np.ndarray
  branch_NxT: np.ndarray
  index_J: np.ndarray
  target_JxC: np.ndarray
  found: np.ndarray
  num_tokens: int

  @property
  def num_answered(self) -> int:
    """Number of rows that the batch scores."""
    return int((self.found[3] == 0).sum())


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
  def shapes(self) -> tuple[tuple[int, int], ...]:
    """The (packed rows, tokens) of the plan's programs."""
    return tuple(sorted({batch.token_NxT.shape for batch in self.batches}))


@dataclasses.dataclass(frozen=True)
class _Tree:
  """A prompt and its answers, each with the numbers of the rows that ask for it."""

  prompt: tuple[int, ...]
  answers: Mapping[tuple[int, ...], Sequence[int]]

  @property
  def num_tokens(self) -> int:
    return len(self.prompt) + sum(len(answer) - 1 for answer in self.answers)


def default_tokens() -> int:
  """Tokens of a batch by device: a CPU has small caches."""
  return 2048 if jax.default_backend() == 'cpu' else 8192


def plan_batches(
  rows: Sequence[Encoded],
  *,
  tokens_per_batch: int | None = None,
  shapes: Iterable[tuple[int, int]] = (),
) -> Plan:
  """Packs rows into batches of few shapes.

  Args:
    rows: encoded texts with a target each.
    tokens_per_batch: tokens of a batch, padding included, but at least one packed row. None takes
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
    ids, start = row.ids, row.target_start
    answers.setdefault(ids[:start], {}).setdefault(ids[start:], []).append(number)
  trees = [tree for prompt, found in answers.items() for tree in _trees(prompt, found)]
  lengths = [tree.num_tokens for tree in trees]
  compiled: dict[int, list[int]] = {}
  for count, size in sorted(shapes):
    compiled.setdefault(size, []).append(count)
  packed: dict[int, list[list[_Tree]]] = {}
  for size, indices in best_fit(lengths, _row_sizes(lengths, compiled)):
    packed.setdefault(size, []).append([trees[index] for index in indices])
  batches = []
  for size, found in sorted(packed.items()):
    most = max(tokens_per_batch // size, 1)
    sizes = compiled.get(size) or [min(most, 1 << (len(found) - 1).bit_length())]
    count = next((count for count in sizes if count >= len(found)), sizes[-1])
    batches += [_fill(found[i : i + count], count, size) for i in range(0, len(found), count)]
  return Plan(tuple(batches), np.array([len(r.ids) - r.target_start for r in rows], np.int64))


def _trees(
  prompt: tuple[int, ...], answers: Mapping[tuple[int, ...], Sequence[int]]
) -> Iterator[_Tree]:
  """A tree for each share of the answers that is no longer than its prompt or a short row."""
  most, room = max(_ROW_TOKENS, len(prompt)), 0
  chosen: dict[tuple[int, ...], Sequence[int]] = {}
  for answer, numbers in answers.items():
    room -= len(answer) - 1
    if chosen and room < 0:
      yield _Tree(prompt, chosen)
      chosen = {}
    if not chosen:
      room = most - (len(answer) - 1)
    chosen[answer] = numbers
  yield _Tree(prompt, chosen)


def _row_sizes(lengths: Sequence[int], compiled: Iterable[int]) -> list[int]:
  """Lengths of packed rows, ascending: compiled ones, and powers of two for what is longer.

  Short items fill the gaps of long rows in any case, and go into them altogether where the keys
  that they are compared with in vain cost less than a program for shorter rows.
  """
  sizes, waiting = sorted(compiled), 0
  longest = max(sizes, default=0)
  tokens: dict[int, int] = collections.Counter()
  for length in lengths:
    if length > longest:
      tokens[max(_ROW_TOKENS, 1 << (length - 1).bit_length())] += length
  more = sorted(tokens)
  for size, longer in zip(more, [*more[1:], None]):
    waiting += tokens[size]
    if longer is None or waiting * (longer - size) > _KEYS_PER_TOKEN * PADDING_PER_PROGRAM:
      sizes.append(size)
      waiting = 0
  return sizes


def _fill(rows: Sequence[Sequence[_Tree]], num_rows: int, size: int) -> Batch:
  token, position, segment, branch = np.zeros((4, num_rows, size), np.int32)
  indices: list[int] = []
  targets: list[list[int]] = []
  found: list[tuple[int, int, int, int]] = []

  def read(index: int, answers: Sequence[tuple[int, Sequence[int]]], place: int) -> None:
    """Scores, at one token, the next ones of some answers."""
    for c, (_, numbers) in enumerate(answers):
      found.extend((len(indices), c, number, place) for number in numbers)
    indices.append(index)
    targets.append([target for target, _ in answers] + [0] * (_ANSWERS - len(answers)))

  num_tokens = 0
  for n, trees in enumerate(rows):
    at = 0
    for number, tree in enumerate(trees, start=1):
      start, stop = at, at + len(tree.prompt)
      token[n, at:stop] = tree.prompt
      position[n, at:stop] = np.arange(stop - at)
      firsts = [(answer[0], numbers) for answer, numbers in tree.answers.items()]
      for i in range(0, len(firsts), _ANSWERS):
        read(n * size + stop - 1, firsts[i : i + _ANSWERS], 0)
      at = stop
      for which, (answer, numbers) in enumerate(tree.answers.items(), start=1):
        for i, (given, target) in enumerate(zip(answer, answer[1:])):
          token[n, at], position[n, at], branch[n, at] = given, stop - start + i, which
          read(n * size + at, [(target, numbers)], i + 1)
          at += 1
      segment[n, start:at] = number
    num_tokens += at
  index_J, target_JxC = np.array(indices, np.int32), np.array(targets, np.int32)
  found_4xM = np.array(found).T
  return Batch(token, position, segment, branch, index_J, target_JxC, found_4xM, num_tokens)


@jit
def read_prompts(
  model: Model,
  token_NxT: jax.Array,
  position_NxT: jax.Array,
  segment_NxT: jax.Array,
  branch_NxT: jax.Array,
) -> jax.Array:
  """The last residual stream of packed rows, [N, T, D]; arguments as of `Batch`."""
  hidden_NxTxD, _ = model(
    token_NxT, position_NxT=position_NxT, segment_NxT=segment_NxT, branch_NxT=branch_NxT
  )
  return hidden_NxTxD


@jit
def score_targets(
  model: Model, hidden_NxTxD: jax.Array, index_J: jax.Array, target_JxC: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Log-probabilities of tokens predicted at J of all N x T tokens, and the top one, [J]."""
  hidden_JxD = hidden_NxTxD.reshape(-1, hidden_NxTxD.shape[-1])[index_J]
  logits_JxV = model.head(hidden_JxD)
  logit_JxC = jnp.take_along_axis(logits_JxV, target_JxC, axis=-1)
  norm_J = jax.nn.logsumexp(logits_JxV, axis=-1)
  top_J = jnp.argmax(logits_JxV, axis=-1)  # the first among ties
  return logit_JxC - norm_J[:, None], top_J


def _score_batch(model: Model, batch: Batch) -> list[tuple[jax.Array, jax.Array]]:
  """The results of `score_targets`, by share of the J tokens."""
  arrays = (batch.token_NxT, batch.position_NxT, batch.segment_NxT, batch.branch_NxT)
  hidden_NxTxD = read_prompts(model, *place_rows(model, arrays))
  count = max(min(batch.token_NxT.size // _READS, _LOGITS // model.config.vocab_size), 1)
  padding = -len(batch.index_J) % count
  index_J = np.pad(batch.index_J, (0, padding))
  target_JxC = np.pad(batch.target_JxC, ((0, padding), (0, 0)))
  shares = (slice(start, start + count) for start in range(0, len(index_J), count))
  return [
    score_targets(model, hidden_NxTxD, *place_rows(model, (index_J[share], target_JxC[share])))
    for share in shares
  ]


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

  def collect(batch: Batch, results: list[tuple[jax.Array, jax.Array]]) -> None:
    j_M, c_M, row_M, place_M = batch.found
    logp_JxC, top_J = (np.concatenate(shares) for shares in zip(*fetch(results)))
    logp_NxT[row_M, place_M] = logp_JxC[j_M, c_M]
    top_NxT[row_M, place_M] = top_J[j_M]
    is_top_NxT[row_M, place_M] = top_J[j_M] == batch.target_JxC[j_M, c_M]
    if on_batch is not None:
      on_batch(batch.num_answered)

  running = None
  for batch in plan.batches:
    # Dispatch the next batch before fetching the last, to keep the device busy.
    results = _score_batch(model, batch)
    if running is not None:
      collect(*running)
    running = (batch, results)
  if running is not None:
    collect(*running)
  return Scores(logp_NxT, is_top_NxT, plan.length_N, top_NxT)


def score(model: Model, rows: Sequence[Encoded], **options: Any) -> Scores:
  """Plans and scores rows with one model; `options` as in `plan_batches`."""
  return score_plan(model, plan_batches(rows, **options))
