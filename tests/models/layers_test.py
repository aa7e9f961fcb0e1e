"""Attention of long rows and with stored keys and values, against plain loops."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from jedit.models.layers import attend


def _expected(query, key, value, mask, scale):
  """Plain attention in float64; [N, T, H, Dh] and [N, K, S, Dh]."""
  num_rows, num_tokens, num_heads, _ = query.shape
  out = np.zeros(query.shape)
  for n in range(num_rows):
    for h in range(num_heads):
      group = h // (num_heads // key.shape[1])
      score = query[n, :, h] @ key[n, group].T * scale
      score = np.where(mask[n], score, -np.inf)
      weight = np.exp(score - score.max(-1, keepdims=True))
      out[n, :, h] = weight / weight.sum(-1, keepdims=True) @ value[n, group]
  return out.reshape(num_rows, num_tokens, -1)


@pytest.mark.parametrize('num_past', [0, 5])
@pytest.mark.parametrize('num_tokens', [7, 256, 600])
def test_attention_is_softmax_over_what_the_mask_shows(num_tokens, num_past):
  rng = np.random.default_rng(num_tokens + num_past)
  draw = functools.partial(rng.standard_normal, dtype=np.float32)
  query, key, value = draw((2, num_tokens, 4, 8)), *(draw((2, 2, num_tokens, 8)) for _ in 'kv')
  past_key, past_value = draw((2, num_past, 2, 8)), draw((2, num_past, 2, 8))
  segment = np.sort(rng.integers(0, 3, (2, num_tokens)))
  mask = np.tril(segment[:, :, None] == segment[:, None, :])
  mask = np.concatenate([np.ones((2, num_tokens, num_past), bool), mask], axis=-1)
  past = (jnp.asarray(past_key), jnp.asarray(past_value)) if num_past else None
  ours = attend(*map(jnp.asarray, (query, key, value, mask)), 0.3, past)
  key = np.concatenate([past_key.swapaxes(1, 2), key], axis=2)
  value = np.concatenate([past_value.swapaxes(1, 2), value], axis=2)
  np.testing.assert_allclose(ours, _expected(query, key, value, mask, 0.3), atol=2e-6)


def test_documents_of_long_packed_rows_are_as_if_alone():
  model = tiny.make_model('gptj', n_positions=600)
  rng = np.random.default_rng(0)
  lengths = [300, 150, 120, 20]
  documents = [rng.integers(0, model.config.vocab_size, length) for length in lengths]
  token, segment, position = (np.zeros((1, 600), np.int32) for _ in range(3))
  at = 0
  for number, document in enumerate(documents, start=1):
    part = np.s_[0, at : at + len(document)]
    token[part], segment[part], position[part] = document, number, np.arange(len(document))
    at += len(document)
  packed, _ = model(token, segment_NxT=segment, position_NxT=position)
  at = 0
  for document in documents:
    alone, _ = model(document[None])
    np.testing.assert_allclose(packed[0, at : at + len(document)], alone[0], atol=1e-5)
    at += len(document)
