"""Causal tracing: the layers and tokens at which a model recalls facts about a subject.

ROME (arXiv:2202.05262), section 2: noise corrupts the embeddings of the subject's tokens, then
clean outputs of some layers are restored at one token. Layers whose restored outputs recover the
answer recall the fact; they are the ones to edit in a new model.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.evals.estimates import summarize_values
from jedit.io.progress import Progress
from jedit.models import Model, ModelConfig, ReplaceAt, site
from jedit.models.encoding import Encoded, Row, encode_many
from jedit.probes import figures
from jedit.probes.axes import ENDS, PLACES, POSITIONS
from jedit.probes.logit_lens import batches, known_answer, run
from jedit.probes.rows import by_layer, range_of
from jedit.types import Request, UserError

if TYPE_CHECKING:
  from jedit.models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Trace:
  """Probability of the answer's first token per prompt, averaged over the draws of noise.

  Axes: K kind of restored output (`kinds`), Q restored token (`positions`), W window of layers
  (`windows`), N prompt.

  Attributes:
    kinds: from 'hidden' (the residual stream after the block), 'attn' and 'mlp'.
    positions: from `POSITIONS`.
    windows: layers restored together.
    clean_N: clean run.
    corrupted_N: with noise on the subject's embeddings; clean - corrupted is ROME's total effect.
    restored_KxQxWxN: corrupted run with restored outputs; restored - corrupted is the indirect
      effect. Mean over the tokens of a position, restored one at a time; nan without such a token.
  """

  kinds: tuple[str, ...]
  positions: tuple[str, ...]
  windows: tuple[tuple[int, ...], ...]
  clean_N: np.ndarray
  corrupted_N: np.ndarray
  restored_KxQxWxN: np.ndarray

  @property
  def recovered_KxQxW(self) -> np.ndarray:
    """Recovered share of the probability lost to the noise, over prompts that have the position.

    nan at a position that no prompt has, and where the noise costs nothing.
    """
    gain_KxQxWxN = self.restored_KxQxWxN - self.corrupted_N
    is_there_KxQxWxN = ~np.isnan(gain_KxQxWxN)
    lost_KxQxW = (is_there_KxQxWxN * (self.clean_N - self.corrupted_N)).sum(axis=-1)
    found_KxQxW = is_there_KxQxWxN.any(axis=-1)
    with np.errstate(divide='ignore', invalid='ignore'):  # zero noise loses nothing
      share_KxQxW = np.nansum(gain_KxQxWxN, axis=-1) / lost_KxQxW
    return np.where(found_KxQxW & (lost_KxQxW != 0), share_KxQxW, np.nan)

  def summary(self, width: int | None = None) -> dict[str, Any]:
    """Means of indirect effects by window of layers, as `jedit.probes.rows`.

    Args:
      width: of the windows that was asked for, where a small model cuts all of them off.
    """
    notes = {
      'answers': 'the true object, or the target of a request without one',
      'clean': summarize_values(self.clean_N),
      'corrupted': summarize_values(self.corrupted_N),
    }
    width = width or max(map(len, self.windows))
    rows = []
    for k, kind in enumerate(self.kinds):
      for q, position in enumerate(self.positions):
        effect_WxN = self.restored_KxQxWxN[k, q] - self.corrupted_N
        place: dict[str, Any] = {
          'kind': kind,
          'position': position,
          'width': width,
          'measure': 'indirect effect',
        }
        more = by_layer(effect_WxN, **place)
        for row, window, share in zip(more, self.windows, self.recovered_KxQxW[k, q], strict=True):
          row |= {'layers': range_of(window), 'recovered': share}
        rows += more
    return {'num_requests': len(self.clean_N), 'notes': notes, 'rows': rows}

  def __repr__(self) -> str:
    kinds, positions = ', '.join(self.kinds), ', '.join(self.positions)
    count = len(self.clean_N)
    return f'Trace({count} prompts, {len(self.windows)} windows; {kinds} at {positions})'

  def _repr_html_(self) -> str:
    return figures.page(figures.trace_figures(self.summary()))


def windows_of(num_layers: int, width: int) -> tuple[tuple[int, ...], ...]:
  """A window of `width` layers around each layer l: l - ⌊width/2⌋ to l + ⌈width/2⌉ - 1.

  These are the windows of ROME's code: an even one reaches one layer further down than up. Windows
  are cut off at both ends of the model. ROME's figures have a width of 10 for MLP and attention
  outputs, and 1 for hidden states.
  """
  first = [layer - width // 2 for layer in range(num_layers)]
  return tuple(tuple(range(max(f, 0), min(f + width, num_layers))) for f in first)


@functools.partial(jax.jit, static_argnames='kinds')
def _trace(
  model: Model,
  kinds: tuple[str, ...],
  token_NxT: jax.Array,
  length_N: jax.Array,
  is_subject_NxT: jax.Array,
  at_NxZ: jax.Array,
  answer_N: jax.Array,
  text_N: jax.Array,
  draw_keys: jax.Array,
  scale: jax.Array,
  plan_PxK: jax.Array,
  window_PxL: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Answer probabilities, clean [N] and per row of the plan [P, N].

  A row of the plan names, for each kind, the column of `at_NxZ` with the token to restore (-1:
  none), and the layers. -1 in `at_NxZ` marks a text without such a token.
  """
  config = model.config
  places = [[site(layer, PLACES[kind]) for layer in range(config.num_layers)] for kind in kinds]
  rows_N = jnp.arange(token_NxT.shape[0])
  embedding_NxTxD, _ = run(model, token_NxT, length_N, stop=0)
  embedding_NxTxD = embedding_NxTxD.astype(jnp.float32)

  def noise_NxTxD(key: jax.Array) -> jax.Array:
    # One key per token and text: draws do not depend on the rest of the batch.
    def of_token(text: jax.Array, token: jax.Array) -> jax.Array:
      at_token = jax.random.fold_in(jax.random.fold_in(key, text), token)
      return jax.random.normal(at_token, (config.width,))

    index_T = jnp.arange(token_NxT.shape[1])
    return jax.vmap(jax.vmap(of_token, (None, 0)), (0, None))(text_N, index_T)

  def probability_N(hidden_NxTxD: jax.Array) -> jax.Array:
    logits_NxV = model.head(hidden_NxTxD[rows_N, length_N - 1])
    return jax.nn.softmax(logits_NxV)[rows_N, answer_N]

  hidden, seen = run(
    model,
    token_NxT,
    length_N,
    hidden_NxTxD=embedding_NxTxD,
    taps=[name for names in places for name in names],
  )
  clean_N = probability_N(hidden)
  kept = {
    name: [seen[name][rows_N, at_NxZ[:, z]] for z in range(at_NxZ.shape[1])]
    for names in places
    for name in names
  }

  def restored_PxN(key: jax.Array) -> jax.Array:
    noise = scale * noise_NxTxD(key)
    spoilt_NxTxD = embedding_NxTxD + jnp.where(is_subject_NxT[..., None], noise, 0.0)

    def restored_N(step: tuple[jax.Array, jax.Array]) -> jax.Array:
      token_K, window_L = step
      edits = {}
      for k, names in enumerate(places):
        pos_N = jnp.take(at_NxZ, jnp.maximum(token_K[k], 0), axis=1)
        for layer, name in enumerate(names):
          value_NxD = jnp.stack(kept[name])[jnp.maximum(token_K[k], 0)]
          is_on = (token_K[k] >= 0) & (window_L[layer] > 0)
          # A position outside the row restores nothing.
          edits[name] = ReplaceAt(jnp.where(is_on, pos_N, -1), value_NxD)
      spoilt = run(model, token_NxT, length_N, hidden_NxTxD=spoilt_NxTxD, edits=edits)
      return probability_N(spoilt[0])

    return jax.lax.map(restored_N, (plan_PxK, window_PxL))

  total_PxN = jax.lax.map(restored_PxN, draw_keys).mean(axis=0)
  return clean_N, total_PxN


def trace(
  lm: 'LanguageModel',
  requests: Sequence[Request],
  windows: Sequence[Sequence[int]],
  *,
  kinds: Sequence[str] = ('mlp', 'attn'),
  positions: Sequence[str] = ENDS,
  noise: float = 3.0,
  num_noises: int = 4,
  seed: int = 0,
) -> Trace:
  """Restores outputs of windows of layers, one token at a time.

  Args:
    lm: the model.
    requests: prompts whose answer the model recalls: the true object, or the target of a request
      without one.
    windows: layers restored together; see `windows_of`. They need not be adjacent.
    kinds: restored outputs, from 'hidden', 'attn' and 'mlp'.
    positions: restored tokens, from `POSITIONS`; time is proportional to the number of tokens. All
      of them give the rows of ROME's figures.
    noise: standard deviation of the noise, relative to that of all entries of the embedding matrix
      (ROME's code: of the subjects' tokens only).
    num_noises: draws per prompt, averaged.
    seed: of the noise, which depends only on the seed and the indices of prompt and token.

  Returns:
    Probabilities of the first token of every prompt's answer.

  Raises:
    UserError: for no requests, one that cannot be tokenised, unknown kinds, positions or layers, or
      positions that no prompt has.
  """
  config = lm.config
  kinds, positions = tuple(kinds), tuple(positions)
  _check(config, windows, kinds, positions)
  limit = config.position_limit
  prompts = encode_many(lm.tokenizer, [Row(r.prompt, r.subject) for r in requests], limit)
  with_answer = [Row(r.prompt, r.subject, known_answer(r)) for r in requests]
  answered = encode_many(lm.tokenizer, with_answer, limit)
  answer_N = np.array([e.target_ids[0] for e in answered], np.int32)
  at_NxZ, position_Z = _columns(prompts, positions)
  plan = [([-1] * len(kinds), ())] + [
    ([z if i == k else -1 for i in range(len(kinds))], tuple(window))
    for k in range(len(kinds))
    for z in range(len(position_Z))
    for window in windows
  ]
  window_PxL = np.zeros((len(plan), config.num_layers), np.int32)
  for row, (_, layers) in zip(window_PxL, plan, strict=True):
    row[list(layers)] = 1
  plan_PxK = np.array([tokens for tokens, _ in plan], np.int32)
  scale = jnp.float32(noise) * jnp.std(lm.params['embed']['embedding'].astype(jnp.float32))
  draw_keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(
    jnp.arange(num_noises)
  )
  clean_N, found_PxN = np.zeros(len(prompts)), np.zeros((len(plan), len(prompts)))
  with Progress('tracing', len(prompts), 'prompts') as progress:
    for batch in batches([e.ids for e in prompts]):
      length = batch.token_NxT.shape[1]
      is_subject_NxT = _subject_tokens(prompts, length)
      texts = (is_subject_NxT, at_NxZ, answer_N, np.arange(len(prompts), dtype=np.int32))
      found = _trace(
        lm.model,
        kinds,
        batch.token_NxT,
        batch.length_N,
        *(batch.pick(values) for values in texts),
        draw_keys,
        scale,
        plan_PxK,
        window_PxL,
      )
      clean, restored = jax.device_get(found)
      clean_N[batch.rows] = clean[: len(batch.rows)]
      found_PxN[:, batch.rows] = restored[:, : len(batch.rows)]
      progress.update(len(batch.rows))
  shape = (len(kinds), len(position_Z), len(windows), len(prompts))
  return Trace(
    kinds,
    positions,
    tuple(tuple(window) for window in windows),
    clean_N,
    found_PxN[0],
    _by_position(found_PxN[1:].reshape(shape), at_NxZ, position_Z, len(positions)),
  )


def _check(
  config: ModelConfig,
  windows: Sequence[Sequence[int]],
  kinds: Sequence[str],
  positions: Sequence[str],
) -> None:
  for kind in kinds:
    if kind not in PLACES:
      raise UserError(f'Unknown output {kind!r} to trace; choose from {", ".join(PLACES)}.')
  for position in positions:
    if position not in POSITIONS:
      raise UserError(f'Unknown position {position!r}; choose from {", ".join(POSITIONS)}.')
  for layer in {layer for window in windows for layer in window}:
    if not 0 <= layer < config.num_layers:
      raise UserError(
        f'Layer {layer} cannot be traced; the model has layers 0 to {config.num_layers - 1}.'
      )


def _subject_tokens(prompts: Sequence[Encoded], length: int) -> np.ndarray:
  """Mask [N, T] of the subject's tokens, which the noise corrupts."""
  index_1xT = np.arange(length)[None]
  first_Nx1 = np.array([[e.subject_first] for e in prompts], np.int32)
  last_Nx1 = np.array([[e.subject_last] for e in prompts], np.int32)
  return (first_Nx1 <= index_1xT) & (index_1xT <= last_Nx1)


def _tokens_at(prompt: Encoded, position: str) -> Sequence[int]:
  """Tokens of a prompt at a position."""
  first, last, end = prompt.subject_first, prompt.subject_last, prompt.prompt_last
  assert first is not None and last is not None, 'requests have subjects'
  return {
    'subject_first': range(first, first + 1),
    'subject_middle': range(first + 1, last),
    'subject_last': range(last, last + 1),
    'after_first': range(last + 1, min(last + 2, end + 1)),
    'after_middle': range(last + 2, end),
    'prompt_last': range(end, end + 1),
  }[position]


def _columns(prompts: Sequence[Encoded], positions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """Tokens to restore, [N, Z] with -1 for none, and the index of each column's position."""
  columns, numbers = [], []
  for number, position in enumerate(positions):
    tokens = [_tokens_at(prompt, position) for prompt in prompts]
    for i in range(max(map(len, tokens), default=0)):
      columns.append([each[i] if i < len(each) else -1 for each in tokens])
      numbers.append(number)
  if not columns:
    raise UserError(f'No prompt has a token at {", ".join(positions)}; choose other positions.')
  at_ZxN = np.array(columns, np.int32).reshape(len(columns), len(prompts))
  return at_ZxN.T, np.array(numbers, np.int32)


def _by_position(
  value_KxZxWxN: np.ndarray, at_NxZ: np.ndarray, position_Z: np.ndarray, num_positions: int
) -> np.ndarray:
  """Means over the tokens of each position; nan for prompts without any."""
  is_there_ZxN = at_NxZ.T >= 0
  found = []
  for number in range(num_positions):
    of_Z = position_Z == number
    is_there_1xZx1xN = is_there_ZxN[of_Z][None, :, None]
    total_KxWxN = (value_KxZxWxN[:, of_Z] * is_there_1xZx1xN).sum(axis=1)
    count_N = is_there_ZxN[of_Z].sum(axis=0)
    found.append(np.where(count_N > 0, total_KxWxN / np.maximum(count_N, 1), np.nan))
  return np.stack(found, axis=1)
