"""PMET's similarity probe: change of the prompt's last state by attention and MLP, per layer.

PMET (arXiv:2308.08742), section 3.1, eq. 7 and figure 2: similarity between the state before a
module and the module's output at the last token of a prompt: cosine of the vectors, and Jaccard of
the k most probable words. The paper and the released notebook differ in the state before the module
and in the projection to words; all combinations are computed.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.io.progress import Progress
from jedit.models import Model, site
from jedit.models.encoding import Row, encode_many
from jedit.probes import figures
from jedit.probes.axes import BEFORE, MODULES, PROJECTIONS
from jedit.probes.logit_lens import batches, project, run
from jedit.probes.rows import by_layer
from jedit.types import Request

if TYPE_CHECKING:
  from jedit.models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Similarity:
  """Per-prompt values; their means over the last axis are the curves of the figure.

  Axes: C state before ('stream': the residual stream entering the block, the paper's h^(l-1);
  'input': the normed state that the module reads, the notebook's form; GPT-J has one for both
  modules), M module ('attn', 'mlp'; outputs before they join the stream), J projection
  (`jedit.probes.axes.PROJECTIONS`, of the state before and the output), L layer, N prompt.

  Attributes:
    top_k: number of words compared.
    cosine_CxMxLxN: cosine similarity.
    jaccard_CxMxJxLxN: shared / (2k - shared) of the sets of token ids.
    jaccard_of_strings_CxMxJxLxN: the same on decoded tokens, as in the notebook: tokens that decode
      to the same text (bytes of a split character) count once in `shared`.
  """

  top_k: int
  cosine_CxMxLxN: np.ndarray
  jaccard_CxMxJxLxN: np.ndarray
  jaccard_of_strings_CxMxJxLxN: np.ndarray

  def summary(self) -> dict[str, Any]:
    """Means of cosines and Jaccard similarities, as `jedit.probes.rows`."""
    rows = []
    for c, before in enumerate(BEFORE):
      for m, module in enumerate(MODULES):
        place = {'before': before, 'module': module}
        rows += by_layer(self.cosine_CxMxLxN[c, m], **place, measure='cosine', projection='')
        for j, projection in enumerate(PROJECTIONS):
          for measure_name in ('jaccard', 'jaccard_of_strings'):
            values_LxN = getattr(self, f'{measure_name}_CxMxJxLxN')[c, m, j]
            more = {**place, 'measure': measure_name, 'projection': projection}
            rows += by_layer(values_LxN, **more)
    num_requests = self.cosine_CxMxLxN.shape[-1]
    return {'num_requests': num_requests, 'notes': {'top_k': self.top_k}, 'rows': rows}

  def __repr__(self) -> str:
    *_, layers, prompts = self.cosine_CxMxLxN.shape
    return f'Similarity({prompts} prompts, {layers} layers)'

  def _repr_html_(self) -> str:
    return figures.page(figures.similarity_figures(self.summary()))


@jax.jit
def _states(
  model: Model, token_NxT: jax.Array, length_N: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Stream, module inputs and module outputs at the last token, float32 [., L, N, D]."""
  layers = range(model.config.num_layers)
  places = [f'{module}_{end}' for end in ('normed', 'out') for module in MODULES] + ['block_out']
  taps = [site(layer, place) for place in places for layer in layers]
  embedded, _ = run(model, token_NxT, length_N, stop=0)
  _, seen = run(model, token_NxT, length_N, taps=taps)
  rows_N = jnp.arange(token_NxT.shape[0])

  def last(states: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack([x_NxTxD[rows_N, length_N - 1].astype(jnp.float32) for x_NxTxD in states])

  def of(place: str) -> jax.Array:
    return last([seen[site(layer, place)] for layer in layers])

  stream = last([embedded, *(seen[site(layer, 'block_out')] for layer in layers[:-1])])
  return (
    stream,
    jnp.stack([of(f'{module}_normed') for module in MODULES]),
    jnp.stack([of(f'{module}_out') for module in MODULES]),
  )


@functools.partial(jax.jit, static_argnames='top_k')
def _top(model: Model, state_SxNxD: jax.Array, top_k: int) -> jax.Array:
  """Ids of the top words of states, [J, S, N, k]."""

  def of(projection: str) -> jax.Array:
    return jax.lax.map(
      lambda state_NxD: jax.lax.top_k(project(model, state_NxD, projection), top_k)[1],
      state_SxNxD,
    )

  return jnp.stack([of(projection) for projection in PROJECTIONS])


@jax.jit
def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
  norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
  return jnp.sum(a * b, axis=-1) / norms


def similarity(lm: 'LanguageModel', requests: Sequence[Request], *, top_k: int = 50) -> Similarity:
  """Compares the states before and after attention and MLP at the last token of each prompt.

  Args:
    lm: the model.
    requests: only their prompts are used, subject filled in.
    top_k: k of eq. 7, at most the size of the vocabulary.

  Raises:
    UserError: without requests, or for a prompt that cannot be tokenised.
  """
  config, model = lm.config, lm.model
  top_k = min(top_k, config.vocab_size)
  rows = [Row(request.prompt, request.subject) for request in requests]
  ids = [encoded.ids for encoded in encode_many(lm.tokenizer, rows, config.position_limit)]
  num_layers, num_prompts = config.num_layers, len(ids)
  cosine = np.zeros((len(BEFORE), len(MODULES), num_layers, num_prompts))
  shape = (len(BEFORE), len(MODULES), len(PROJECTIONS), num_layers, num_prompts)
  jaccard, jaccard_of_strings = np.zeros(shape), np.zeros(shape)
  text_of = _TextNumbers(lm.tokenizer)
  with Progress('similarity', len(ids), 'prompts') as progress:
    for batch in batches(ids):
      stream, inputs, outputs = _states(model, batch.token_NxT, batch.length_N)
      states = jnp.concatenate([stream[None], inputs, outputs])  # 0 | 1, 2 | 3, 4
      flat = states.reshape(-1, *states.shape[2:])
      top = np.asarray(_top(model, flat, top_k))
      top = top.reshape(len(PROJECTIONS), len(states), num_layers, *top.shape[2:])
      texts = text_of(top)
      count = len(batch.rows)
      for c, name in enumerate(BEFORE):
        for m in range(len(MODULES)):
          before, after = 0 if name == 'stream' else 1 + m, 3 + m
          values = np.asarray(_cosine(states[before], states[after]))
          cosine[c, m][:, batch.rows] = values[:, :count]
          for into, words in ((jaccard, top), (jaccard_of_strings, texts)):
            values = _jaccard(words[:, before, :, :count], words[:, after, :, :count])
            into[c, m][:, :, batch.rows] = values
      progress.update(count)
  return Similarity(top_k, cosine, jaccard, jaccard_of_strings)


class _TextNumbers:
  """Numbers token ids by their decoded text: equal texts get equal numbers."""

  def __init__(self, tokenizer: Any):
    self._tokenizer = tokenizer
    self._by_text: dict[str, int] = {}
    self._by_id: dict[int, int] = {}

  def __call__(self, ids: np.ndarray) -> np.ndarray:
    unique, inverse = np.unique(ids, return_inverse=True)
    for token in unique.tolist():
      if token not in self._by_id:
        text = self._tokenizer.decode([token])
        self._by_id[token] = self._by_text.setdefault(text, len(self._by_text))
    return np.array([self._by_id[token] for token in unique.tolist()])[inverse].reshape(ids.shape)


def _jaccard(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Jaccard similarity along the last axis; duplicates count once as shared."""
  top_k = a.shape[-1]
  earlier_KxK = np.tri(top_k, k=-1, dtype=bool)
  is_repeated = ((a[..., :, None] == a[..., None, :]) & earlier_KxK).any(axis=-1)
  is_shared = (a[..., :, None] == b[..., None, :]).any(axis=-1) & ~is_repeated
  shared = is_shared.sum(axis=-1)
  return shared / (2 * top_k - shared)
