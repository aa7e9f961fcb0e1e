"""Causal tracing: where in a model the name of a subject turns into what is known about it.

The embeddings of the subject's tokens are spoilt with noise, then the outputs that some layers
had at the subject's last token in the clean run are put back. Where that brings the answer back,
the facts are recalled. ROME (arXiv:2202.05262), section 2, with ranges of layers.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jedit.models import ModelConfig, ReplaceAt, forward, head, site
from jedit.testbeds.world import Prompt

_PLACES = {'mlp': 'mlp_out', 'attn': 'attn_out'}


@dataclasses.dataclass(frozen=True)
class Trace:
  """Mean probabilities of the answer's first token.

  Attributes:
    clean: with the subject as it is.
    corrupted: with noise on the subject's embeddings.
    restored: with noise, and one kind of output of one range put back; by (kind, layers).
  """

  clean: float
  corrupted: float
  restored: dict[tuple[str, tuple[int, ...]], float]

  def recovered(self, kind: str, layers: Sequence[int]) -> float:
    """Share of the probability lost to the noise that putting these outputs back brings back."""
    gain = self.restored[kind, tuple(layers)] - self.corrupted
    return gain / (self.clean - self.corrupted)


@struct.dataclass
class _Texts:
  """Prompts as arrays.

  Attributes:
    token_NxT: token ids, padded.
    is_subject_NxT: which of them the noise spoils.
    last_N: the subject's last token.
    ask_N: the prompt's last token.
    answer_N: id of the answer's first token.
  """

  token_NxT: jax.Array
  is_subject_NxT: jax.Array
  last_N: jax.Array
  ask_N: jax.Array
  answer_N: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def _trace(
  config: ModelConfig, params: Any, texts: _Texts, noise_NxTxD: jax.Array, plan: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Answer probabilities: clean, corrupted and one per row of `plan`, 0/1 by (kind, layer)."""
  places = [site(layer, p) for p in _PLACES.values() for layer in range(config.num_layers)]
  rows_N = jnp.arange(texts.token_NxT.shape[0])
  embedding_NxTxD = params['embed']['embedding'][texts.token_NxT].astype(jnp.float32)
  spoilt_NxTxD = embedding_NxTxD + jnp.where(texts.is_subject_NxT[..., None], noise_NxTxD, 0.0)

  def probability_N(hidden_NxTxD: jax.Array) -> jax.Array:
    logits_NxV = head(config, params, hidden_NxTxD[rows_N, texts.ask_N])
    return jax.nn.softmax(logits_NxV)[rows_N, texts.answer_N]

  hidden, seen = forward(config, params, hidden_NxTxD=embedding_NxTxD, taps=places)
  clean_N = probability_N(hidden)
  kept = {name: seen[name][rows_N, texts.last_N] for name in places}

  def restore(row: jax.Array) -> jax.Array:
    # A position outside of the row restores nothing.
    edits = {
      name: ReplaceAt(jnp.where(row[i] > 0, texts.last_N, -1), kept[name])
      for i, name in enumerate(places)
    }
    return probability_N(forward(config, params, hidden_NxTxD=spoilt_NxTxD, edits=edits)[0]).mean()

  return clean_N.mean(), jax.lax.map(restore, plan)


def trace(
  config: ModelConfig,
  params: Any,
  tokenizer: Any,
  prompts: Sequence[Prompt],
  ranges: Sequence[Sequence[int]],
  *,
  noise: float = 3.0,
  num_noises: int = 4,
  seed: int = 0,
) -> Trace:
  """Traces MLP and attention outputs of ranges of layers at the subject's last token.

  Args:
    config: sizes of the model.
    params: its parameters.
    tokenizer: its transformers tokenizer, a fast one.
    prompts: questions the model can answer.
    ranges: layers whose outputs are put back together.
    noise: standard deviation of the noise, in those of the embeddings.
    num_noises: draws per prompt, averaged.
    seed: draws the noise.

  Returns:
    Mean probabilities over prompts and draws.
  """
  texts = _encode(tokenizer, prompts)
  rows, length = texts.token_NxT.shape
  keys = [(kind, tuple(layers)) for layers in ranges for kind in _PLACES]
  plan = np.zeros((1 + len(keys), len(_PLACES) * config.num_layers), np.int32)
  for i, (kind, layers) in enumerate(keys):
    offset = list(_PLACES).index(kind) * config.num_layers
    plan[1 + i, [offset + layer for layer in layers]] = 1
  scale = noise * float(jnp.std(params['embed']['embedding'].astype(jnp.float32)))
  cleans, others = [], []
  for draw in range(num_noises):
    key = jax.random.fold_in(jax.random.key(seed), draw)
    noise_NxTxD = scale * jax.random.normal(key, (rows, length, config.width))
    clean, rest = _trace(config, params, texts, noise_NxTxD, jnp.asarray(plan))
    cleans.append(float(clean))
    others.append(np.asarray(rest))
  mean = np.mean(others, axis=0)
  restored = {key: float(mean[1 + i]) for i, key in enumerate(keys)}
  return Trace(float(np.mean(cleans)), float(mean[0]), restored)


def _encode(tokenizer: Any, prompts: Sequence[Prompt]) -> _Texts:
  full = [f'{prompt.text} {prompt.answer}' for prompt in prompts]
  bare = tokenizer([prompt.text for prompt in prompts])['input_ids']
  encoded = tokenizer(full, return_offsets_mapping=True)
  rows, length = len(prompts), max(map(len, bare))
  token_NxT = np.zeros((rows, length), np.int32)
  is_subject_NxT = np.zeros((rows, length), bool)
  ask_N, answer_N = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
  for n, prompt in enumerate(prompts):
    first = prompt.template.index('{}')
    last = first + len(prompt.subject)
    token_NxT[n, : len(bare[n])] = bare[n]
    spans = np.array(encoded['offset_mapping'][n][: len(bare[n])])
    is_subject_NxT[n, : len(bare[n])] = (spans[:, 1] > first) & (spans[:, 0] < last)
    ask_N[n] = len(bare[n]) - 1
    answer_N[n] = encoded['input_ids'][n][len(bare[n])]
  last_N = length - 1 - is_subject_NxT[:, ::-1].argmax(axis=1)
  arrays = (token_NxT, is_subject_NxT, last_N, ask_N, answer_N)
  return _Texts(*map(jnp.asarray, arrays))
