"""Rotations, norms and attention against their formulas in NumPy."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from jedit.models import Model
from jedit.models.config import Rope, attention_scale
from jedit.models.layers import LayerNorm, RMSNorm, attend


def _draw(*shape, scale=1.0):
  return (scale * np.random.default_rng(0).normal(size=shape)).astype(np.float32)


def _frequencies(rope, length):
  """1 / θ^(2r / dim) with the extension of each kind, pair by pair."""
  found = []
  for r in range(rope.dim // 2):
    theta = rope.theta
    if rope.kind == 'dynamic' and length > rope.original_positions:
      stretch = rope.factor * length / rope.original_positions - (rope.factor - 1)
      theta *= stretch ** (rope.dim / (rope.dim - 2))
    frequency = theta ** (-2 * r / rope.dim)
    if rope.kind == 'linear':
      frequency /= rope.factor
    if rope.kind == 'llama3':
      turns = rope.original_positions * frequency / (2 * math.pi)
      if turns < rope.low_freq_factor:
        frequency /= rope.factor
      elif turns < rope.high_freq_factor:
        share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        frequency = (1 - share) * frequency / rope.factor + share * frequency
    found.append(frequency)
  return np.array(found)


@pytest.mark.parametrize(
  ('kind', 'interleaved'),
  [('default', True), ('default', False), ('linear', False), ('dynamic', False), ('llama3', False)],
)
def test_keys_turn_counterclockwise_by_position_times_frequency(kind, interleaved):
  """As complex numbers: (a + ib) e^{iφ}. The same vector stands at every position."""
  rope = Rope(6, interleaved, theta=50.0, kind=kind, factor=8.0, original_positions=64)
  model = tiny.model('gptj')
  model = Model(model.params, config=dataclasses.replace(model.config, rope=rope))
  position_NxT = np.array([[0, 1, 2, 40], [0, 5, 90, 90]], np.int32)
  hidden_NxTxD = jnp.tile(_draw(1, 1, model.config.width), (2, 4, 1))
  _, seen = jax.jit(lambda model, **given: model(stop=1, taps=['0/attn_key'], **given))(
    model, hidden_NxTxD=hidden_NxTxD, position_NxT=position_NxT
  )
  key_NxTxKxDh = np.asarray(seen['0/attn_key'])
  for n, position_T in enumerate(position_NxT):
    for r, frequency in enumerate(_frequencies(rope, position_T.max() + 1)):
      a, b = (2 * r, 2 * r + 1) if interleaved else (r, r + 3)
      number_TxK = key_NxTxKxDh[n, :, :, a] + 1j * key_NxTxKxDh[n, :, :, b]
      expected_TxK = number_TxK[0] * np.exp(1j * frequency * position_T)[:, None]
      np.testing.assert_allclose(number_TxK, expected_TxK, atol=1e-4)
    np.testing.assert_array_equal(
      key_NxTxKxDh[n, :, :, 6:], key_NxTxKxDh[n, :1, :, 6:].repeat(4, 0)
    )


def test_attention_is_a_mean_of_the_values_that_are_seen():
  query_NxTxHxDh, key_NxKxSxDh, value_NxKxSxDh = (
    _draw(2, 3, 4, 5),
    _draw(2, 2, 6, 5),
    _draw(2, 2, 6, 5),
  )
  mask_NxTxS = np.random.default_rng(1).random((2, 3, 6)) < 0.6
  mask_NxTxS[..., 0] = True
  out = attend(query_NxTxHxDh, key_NxKxSxDh, value_NxKxSxDh, mask_NxTxS, scale=0.3)
  for n, t, h in np.ndindex(2, 3, 4):
    seen_S, k = mask_NxTxS[n, t], h // 2  # two query heads share one key/value head
    score_S = np.exp(0.3 * key_NxKxSxDh[n, k, seen_S] @ query_NxTxHxDh[n, t, h])
    expected = score_S / score_S.sum() @ value_NxKxSxDh[n, k, seen_S]
    np.testing.assert_allclose(out[n, t, 5 * h : 5 * h + 5], expected, rtol=1e-4, atol=1e-6)


def test_scores_are_divided_by_the_root_of_the_head_size():
  config = dataclasses.replace(tiny.model('gptj').config, head_dim=64)
  assert attention_scale(config) == 0.125


@pytest.mark.parametrize('norm', [LayerNorm, RMSNorm])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_norms_divide_by_root_of_variance_and_epsilon(norm, dtype):
  """Of small values, which the ε keeps small, computed in float32 whatever their dtype."""
  x_NxD = jnp.asarray(_draw(3, 40, scale=1e-3) + 1e-3, dtype)
  params = {'scale': jnp.full(40, 2.0, dtype), 'bias': jnp.full(40, 0.5, dtype)}
  if norm is RMSNorm:
    del params['bias']
  ours = norm(eps=1e-6).apply({'params': params}, x_NxD)
  assert ours.dtype == dtype
  wide_NxD = np.asarray(x_NxD.astype('float32'), np.float64)
  centred_NxD = wide_NxD - (norm is LayerNorm) * wide_NxD.mean(-1, keepdims=True)
  divisor_Nx1 = np.sqrt(np.square(centred_NxD).mean(-1, keepdims=True) + 1e-6)
  expected_NxD = 2 * centred_NxD / divisor_Nx1 + (0.5 if norm is LayerNorm else 0.0)
  rtol = 1e-5 if dtype == 'float32' else 2**-8  # bfloat16 is rounded once
  np.testing.assert_allclose(ours.astype('float32'), expected_NxD, rtol=rtol, atol=1e-6)


def test_a_token_sees_as_many_tokens_as_the_window_holds():
  model = tiny.make_model('mistral', num_hidden_layers=1, sliding_window=4)
  tokens_1xT = tiny.tokens(1, 9)
  changed_1xT = tokens_1xT.at[0, 2].set((tokens_1xT[0, 2] + 1) % tiny.VOCAB)
  hidden_2xTxD, _ = jax.jit(Model.__call__)(model, jnp.concatenate([tokens_1xT, changed_1xT]))
  moved_T = np.any(hidden_2xTxD[0] != hidden_2xTxD[1], axis=-1)
  assert np.flatnonzero(moved_T).tolist() == [2, 3, 4, 5]
