"""Rotary turns against their equation."""

import jax.numpy as jnp
import numpy as np
import pytest

from jedit.models.config import Rope
from jedit.models.rotary import Rotary


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
