"""Attention of long rows, with stored keys and values, and rotary turns against their equations."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jedit.models.config import Rope
from jedit.models.layers import attend
from jedit.models.rotary import Rotary


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


@pytest.mark.parametrize('interleaved', [True, False])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_pairs_turn_by_position_times_frequency(interleaved, dtype):
  rope = Rope(dim=4, interleaved=interleaved, original_positions=16, theta=100.0)
  position = np.array([[0, 3], [7, 1]])
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((2, 2, 1, 6)), dtype)
  turned = Rotary.at(jnp.asarray(position), rope, 6)(x)
  assert turned.dtype == x.dtype
  expected = np.array(x, np.float64)
  for first, second, frequency in (
    ((0, 1, 1.0), (2, 3, 0.1))
    if interleaved
    else (
      (0, 2, 1.0),
      (1, 3, 0.1),
    )
  ):
    pair = expected[..., first] + 1j * expected[..., second]
    pair = pair * np.exp(1j * position * frequency)[..., None]
    expected[..., first], expected[..., second] = pair.real, pair.imag
  tolerance = 1e-6 if dtype == 'float32' else 2e-2
  np.testing.assert_allclose(np.asarray(turned, np.float64), expected, atol=tolerance)
  assert np.array_equal(turned[..., 4:], x[..., 4:])  # units without a rotary angle pass through
