"""Dry runs: the calls of jitted functions, without arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jedit.parallel.mesh import fetch
from jedit.parallel.program import dry_run, jit


@functools.partial(jit, static_argnames='times')
def scaled(x, *, times):
  return times * x @ x


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_calls_of_one_program_are_one():
  with dry_run() as run:
    with run.stage('targets'), run.repeated(4):
      assert scaled(shape(8, 8), times=2).shape == (8, 8)
      with run.repeated(2.5):
        scaled(shape(8, 8), times=2)
    scaled(shape(8, 8), times=3)
    scaled(shape(4, 4), times=3)
  assert [(each.name, each.stage, each.calls) for each in run.programs] == [
    ('scaled', 'targets', 4 + 4 * 2.5),
    ('scaled', '', 1),
    ('scaled', '', 1),
  ]
  assert run.programs[0].product_flop() == 2 * 8**3
  with pytest.raises(TypeError):  # behind a dry run functions need arrays again
    scaled(shape(8, 8), times=2)
  np.testing.assert_allclose(scaled(jnp.ones((2, 2)), times=3), 6.0)


def test_results_are_fetched_as_zeros():
  with dry_run():
    found = fetch({'x': scaled(shape(8, 8), times=2)})
  assert found['x'].shape == (8, 8) and not found['x'].any() and found['x'].strides == (0, 0)
