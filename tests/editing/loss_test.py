"""The loss of the target optimisation; `target_test` compares all of it with a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np

from jedit.editing.loss import safe_norm


def test_the_norm_has_a_gradient_at_zero():
  gradient = jax.grad(safe_norm)
  np.testing.assert_array_equal(gradient(jnp.zeros(3)), np.zeros(3))
  x_D = jnp.asarray([3.0, 0.0, -4.0])
  np.testing.assert_allclose(safe_norm(x_D), 5.0)
  np.testing.assert_allclose(gradient(x_D), x_D / 5, rtol=1e-6)
