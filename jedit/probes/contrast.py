"""JEEP's contrast probe: probability and rank of the true and the new object, layer by layer.

JEEP (arXiv:2412.17872), section 4.1, eqs. 5 and 6, figure 2: the vocabulary layer reads the state
after every layer, at the subject's last token and at the prediction position. The layers where the
two objects diverge are the ones to edit. Figure 5 adds sets of words.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.io.progress import Progress
from jedit.models import Model, site
from jedit.models.encoding import Row, encode, encode_many
from jedit.probes import figures
from jedit.probes.axes import ENDS, NORMS, OBJECTS
from jedit.probes.logit_lens import batches, run
from jedit.probes.rows import by_layer
from jedit.types import Request, UserError

if TYPE_CHECKING:
  from jedit.models.language_model import LanguageModel

REST = 'rest'


@dataclasses.dataclass(frozen=True)
class Contrast:
  """Per-record values; their means over the last axis are the curves of the figures.

  Axes: Z norm ('raw': the vocabulary layer, bias included, applied to the state itself, the paper's
  form; 'normed': final norm first, which at the last state is the model's prediction), Q position
  ('subject_last', 'prompt_last'), O object ('true', 'new'), S state (0 the embeddings, l + 1 the
  output of block l), N record.

  Attributes:
    prob_ZxQxOxSxN: probability of the object's first token.
    rank_ZxQxOxSxN: tokens with a larger logit; 0 is the top.
    position_QxN: token index, BOS included.
    first_token_OxN: the first token of " " + object after the prompt.
    words_ZxQxSxN: by set name, the mean probability of the first tokens of its words, each token
      once; 'rest' covers all tokens outside the sets except the true object. Empty without sets.
  """

  prob_ZxQxOxSxN: np.ndarray
  rank_ZxQxOxSxN: np.ndarray
  position_QxN: np.ndarray
  first_token_OxN: np.ndarray
  words_ZxQxSxN: dict[str, np.ndarray]

  def summary(self) -> dict[str, Any]:
    """Means of probabilities and ranks by state, as `jedit.probes.rows`."""
    rows = []
    for z, norm in enumerate(NORMS):
      for q, position in enumerate(ENDS):
        place = {'norm': norm, 'position': position}
        for o, name in enumerate(OBJECTS):
          for measure_name, values in (
            ('probability', self.prob_ZxQxOxSxN),
            ('rank', self.rank_ZxQxOxSxN),
          ):
            rows += by_layer(values[z, q, o], 'state', **place, of=name, measure=measure_name)
        for name, values in self.words_ZxQxSxN.items():
          more = {**place, 'of': f'words: {name}', 'measure': 'probability'}
          rows += by_layer(values[z, q], 'state', **more)
    num_requests = self.position_QxN.shape[-1]
    notes = {'sets': list(self.words_ZxQxSxN)}
    return {'num_requests': num_requests, 'notes': notes, 'rows': rows}

  def __repr__(self) -> str:
    *_, states, records = self.prob_ZxQxOxSxN.shape
    return f'Contrast({records} records, {states} states)'

  def _repr_html_(self) -> str:
    return figures.page(figures.contrast_figures(self.summary()))


@jax.jit
def _states(
  model: Model, token_NxT: jax.Array, length_N: jax.Array, at_NxQ: jax.Array
) -> jax.Array:
  """Embeddings and block outputs at two tokens, float32 [S, N, Q, D]."""
  taps = [site(layer, 'block_out') for layer in range(model.config.num_layers)]
  embedded, _ = run(model, token_NxT, length_N, stop=0)
  _, seen = run(model, token_NxT, length_N, taps=taps)
  rows_Nx1 = jnp.arange(token_NxT.shape[0])[:, None]
  states = [embedded, *(seen[name] for name in taps)]
  return jnp.stack([x_NxTxD[rows_Nx1, at_NxQ].astype(jnp.float32) for x_NxTxD in states])


@jax.jit
def _read(
  model: Model, state_SxNxQxD: jax.Array, token_NxO: jax.Array, set_GxV: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Probabilities and ranks of tokens [Z, S, N, Q, O] and mean probabilities of sets [.., G]."""
  token_NxQxO = jnp.broadcast_to(
    token_NxO[:, None, :], (*state_SxNxQxD.shape[1:3], token_NxO.shape[1])
  )

  def read(state_NxQxD: jax.Array, norm: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    logits_NxQxV = model.head(state_NxQxD, final_norm=norm == 'normed')
    prob_NxQxV = jax.nn.softmax(logits_NxQxV, axis=-1)
    logit_NxQxO = jnp.take_along_axis(logits_NxQxV, token_NxQxO, axis=-1)
    rank_NxQxO = jnp.stack(
      [
        jnp.sum(logits_NxQxV > logit_NxQxO[..., o : o + 1], axis=-1)
        for o in range(token_NxO.shape[1])
      ],
      axis=-1,
    )
    sets_NxQxG = jnp.einsum('nqv,gv->nqg', prob_NxQxV, set_GxV, precision='highest')
    return jnp.take_along_axis(prob_NxQxV, token_NxQxO, axis=-1), rank_NxQxO, sets_NxQxG

  found = [jax.lax.map(functools.partial(read, norm=norm), state_SxNxQxD) for norm in NORMS]
  return jax.tree.map(lambda *parts: jnp.stack(parts), *found)


def contrast(
  lm: 'LanguageModel',
  requests: Sequence[Request],
  *,
  words: Mapping[str, Sequence[str]] | None = None,
) -> Contrast:
  """Follows the true and the new object of each request through the layers.

  Args:
    lm: the model.
    requests: each with a true object.
    words: additional sets of words, by name.

  Returns:
    The values of every record.

  Raises:
    UserError: for no requests, a request without true object or that cannot be tokenised, or an
      empty set of words.
  """
  model = lm.model
  encoded, at_NxQ, token_NxO = _encode(lm, requests)
  names, set_GxV = _sets(lm, words or {})
  count_N = len(requests)
  shape = (len(NORMS), len(ENDS), len(OBJECTS), lm.config.num_layers + 1, count_N)
  prob, rank = np.zeros(shape), np.zeros(shape, np.int32)
  sets = np.zeros((len(names), *shape[:2], *shape[3:]))
  with Progress('contrast', count_N, 'records') as progress:
    for batch in batches(encoded):
      states = _states(model, batch.token_NxT, batch.length_N, jnp.asarray(batch.pick(at_NxQ)))
      found = _read(model, states, jnp.asarray(batch.pick(token_NxO)), set_GxV)
      kept = slice(0, len(batch.rows))
      prob_ZxSxNxQxO, rank_ZxSxNxQxO, sets_ZxSxNxQxG = (np.asarray(x)[:, :, kept] for x in found)
      prob[..., batch.rows] = prob_ZxSxNxQxO.transpose(0, 3, 4, 1, 2)
      rank[..., batch.rows] = rank_ZxSxNxQxO.transpose(0, 3, 4, 1, 2)
      sets[..., batch.rows] = sets_ZxSxNxQxG.transpose(4, 0, 3, 1, 2)
      progress.update(len(batch.rows))
  by_name = dict(zip(names, sets, strict=True))
  if names:
    # The set 'rest' is kept as a sum; subtract the true object where it is a member.
    total_ZxQxSxN = by_name[REST]
    in_rest_V = np.asarray(set_GxV)[-1]
    leaves_N = in_rest_V[token_NxO[:, 0]]
    left_N = np.maximum(in_rest_V.sum() - leaves_N, 1)
    by_name[REST] = (total_ZxQxSxN - prob[:, :, 0] * leaves_N) / left_N
  return Contrast(prob, rank, at_NxQ.T, token_NxO.T, by_name)


def check_objects(requests: Sequence[Request]) -> None:
  """Raises UserError unless every request has a true and a new object."""
  for number, request in enumerate(requests):
    if request.target_true is None:
      label = number if request.case_id is None else request.case_id
      raise UserError(
        f'Request {label} has no true object to contrast with the new one; choose records that '
        'have both, or other probes.'
      )


def _encode(
  lm: 'LanguageModel', requests: Sequence[Request]
) -> tuple[list[tuple[int, ...]], np.ndarray, np.ndarray]:
  """Token ids of the prompts, their two positions, and the first tokens of both objects."""
  check_objects(requests)
  limit = lm.config.position_limit
  bare = encode_many(lm.tokenizer, [Row(r.prompt, r.subject) for r in requests], limit)
  objects = [
    encode_many(lm.tokenizer, [Row(r.prompt, r.subject, target) for r, target in pairs], limit)
    for pairs in (
      [(r, r.target_true) for r in requests],
      [(r, r.target_new) for r in requests],
    )
  ]
  token_NxO = np.array([[e.target_ids[0] for e in each] for each in objects], np.int32).T
  at_NxQ = np.array([(e.subject_last, e.prompt_last) for e in bare], np.int32)
  return [e.ids for e in bare], at_NxQ, token_NxO


def _sets(lm: 'LanguageModel', words: Mapping[str, Sequence[str]]) -> tuple[list[str], jax.Array]:
  """Names of the sets, 'rest' last, and their weights over the vocabulary, float32 [G, V]."""
  if not words:
    return [], jnp.zeros((0, lm.config.vocab_size), jnp.float32)
  if REST in words:
    raise UserError(f'The name {REST!r} is reserved for all other words; rename that set.')
  weight_GxV = np.zeros((len(words) + 1, lm.config.vocab_size), np.float32)
  for g, (name, members) in enumerate(words.items()):
    if not members:
      raise UserError(f'The set of words {name!r} is empty; add a word or remove the set.')
    tokens = {encode(lm.tokenizer, 'The', target=word).target_ids[0] for word in members}
    weight_GxV[g, sorted(tokens)] = 1 / len(tokens)
  weight_GxV[-1] = ~weight_GxV.any(axis=0)
  return [*words, REST], jnp.asarray(weight_GxV)
