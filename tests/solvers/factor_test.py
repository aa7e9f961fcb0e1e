"""Scales and sizes of factors, and factors over several devices, in a process that has eight."""

import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from jedit.solvers.budget import fits
from jedit.solvers.matrix import equilibration

ROOT = pathlib.Path(__file__).parents[2]

_ON_EIGHT_DEVICES = """
import json
import jax
import numpy as np
from jedit.compat import enable_x64
from jedit.solvers import Covariance, EqualityConstrained, FactorCache, LeastSquares
from jedit.solvers import block_cholesky, block_factor, budget, devices, factor, factor_cache

rng = np.random.default_rng(0)
found = {'devices': jax.device_count(), 'bytes': {}, 'errors': {}}


def moment(size):
  root = rng.normal(size=(3 * size, size))
  return (root.T @ root / len(root)).astype(np.float32)


def solve(solver, cov, key_BxF, earlier=None):
  return solver.solve(solver.init(cov, len(key_BxF), earlier), key_BxF, key_BxF)


def factors_of(covs):
  return [cov.kept[factor.Factor][1] for cov in covs if factor.Factor in cov.kept]


# Whole layers, each on a device of its own; started ahead of their solves.
cache, key_BxF = FactorCache({layer: moment(40) for layer in range(3)}), rng.normal(size=(3, 40))
covs = [cache[layer] for layer in range(3)]
for cov in covs:
  LeastSquares(1.0).init(cov, 3, None)
started = factors_of(covs)
found['used'] = [sorted(device.id for device in each.devices) for each in started]
for cov in covs:
  solve(LeastSquares(1.0), cov, key_BxF)
found['prepared'] = sum(one is other for one, other in zip(started, factors_of(covs), strict=True))

# The same in blocks over all devices; 90 rows fill no whole number of blocks.
cov, key_BxF, earlier = moment(90), rng.normal(size=(5, 90)), rng.normal(size=(20, 90))
solver = EqualityConstrained(2.0, 0.1, 0.1)
whole = solve(solver, Covariance(cov), key_BxF, earlier)
budget.fits = factor_cache.fits = lambda device, size, num_devices=1: num_devices > 1
sharded = Covariance(cov)
with jax.set_mesh(jax.make_mesh((8,), ('model',))):  # as a caller with a sharded model has
  state = solver.init(sharded, len(key_BxF), earlier)
  left = solver.solve(state, key_BxF, key_BxF)
found['errors']['float64'] = float(abs(left - whole).max() / abs(left).max())
found['errors']['residual'] = solver.residual(state, key_BxF, left)
found['sharded over'] = len(factors_of([sharded])[0].devices)
try:
  solve(solver, Covariance(cov - 9 * np.eye(90, dtype=np.float32)), key_BxF, earlier)
except ArithmeticError as error:
  found['refused'] = str(error)
many = rng.normal(size=(600, 90))  # several chunks of keys
left = solve(LeastSquares(0.5), Covariance(cov), many)
expected = np.linalg.solve(0.5 * cov.astype(np.float64) + many.T @ many, many.T)
found['errors']['many'] = float(abs(left - expected).max() / abs(expected).max())
for module in (block_factor, budget, factor_cache):
  module.working_dtype = lambda device: np.float32
narrow = Covariance(cov)
left = solve(solver, narrow, key_BxF, earlier)
found['narrow'] = str(factors_of([narrow])[0].root_FxF.dtype)
found['errors']['float32'] = float(abs(left - whole).max() / abs(left).max())

# A device without float64, as a TPU is: C and its factor lie there, the rest on the host.
tpu = jax.devices()[1]
for module in (block_factor, budget, devices, factor_cache):
  module.working_dtype = lambda device: np.float32 if device == tpu else np.float64
budget.fits = factor_cache.fits = lambda device, size, num_devices=1: True
jax.local_devices = lambda **where: jax.devices()[:1] if where else [tpu]
alone = Covariance(cov)
state = solver.init(alone, len(key_BxF), earlier)
left = solver.solve(state, key_BxF, key_BxF)
(kept,) = factors_of([alone])
found['tpu'] = [each.id for each in (*kept.devices, *kept.matrix.cov_FxF.devices(), kept.device)]
found['refined'] = 'in_float64' not in vars(kept)
found['errors']['integers'] = float(abs(left - whole).max() / abs(left).max())
found['errors']['integer residual'] = solver.residual(state, key_BxF, left)

# What one device needs, from the compiled programs; 192 rows stand for 28,672.
size = 192
with enable_x64(True):
  matrix = moment(size).astype(np.float64)
  for num in (4, 8):
    layout = block_cholesky.Layout.of(size, jax.devices()[:num])
    rows = layout.shard(matrix)
    program = block_cholesky.factorise.lower(rows, layout).compile()
    memory = program.memory_analysis()
    found['bytes'][num] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    lower = np.tril(layout.in_order(np.asarray(program(rows))))
    for first in range(0, size, layout.block):  # the inverses of diagonal blocks
      block = np.s_[first : first + layout.block]
      lower[block, block] = np.linalg.inv(lower[block, block])
    found['errors'][f'factor {num}'] = float(abs(lower @ lower.T - matrix).max())
  found['bytes']['matrix'] = matrix.nbytes
print(json.dumps(found))
"""


@pytest.fixture(scope='module')
def found():
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8',
    'PYTHONPATH': os.fspath(ROOT),
  }
  done = subprocess.run(
    [sys.executable, '-c', _ON_EIGHT_DEVICES], capture_output=True, text=True, env=environment
  )
  assert not done.returncode, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_layers_lie_on_devices_of_their_own(found):
  assert found['devices'] == 8 and found['prepared'] == 3
  assert found['used'] == [[0], [1], [2]]


def test_a_factor_over_all_devices_gives_the_same_solutions(found):
  assert found['sharded over'] == 8 and found['narrow'] == 'float32'
  bounds = {'float32': 1e-9, 'integers': 1e-9}
  for name, error in found['errors'].items():
    assert error < bounds.get(name, 1e-11), name
  assert 'not positive definite' in found['refused']


def test_second_moments_stay_on_a_device_without_float64(found):
  assert found['tpu'] == [1, 1, 0] and found['refined']


def test_a_device_never_holds_the_whole_matrix(found):
  """Its rows, and at most twice as much while it works; a gathered matrix would show at once."""
  for num in ('4', '8'):
    assert found['bytes'][num] < 3 * found['bytes']['matrix'] / int(num)


def test_powers_of_two_bring_the_diagonal_near_one():
  diagonal_F = np.append(np.logspace(-12, 12, 9), [0.0, np.nan])
  key_NxF = np.full((2, 11), 1e-3)
  key_NxF[:, -2] = 0
  scale_F = equilibration(diagonal_F, 0.0, key_NxF)
  np.testing.assert_array_equal(scale_F, np.exp2(np.round(np.log2(scale_F))))
  scaled_F = scale_F**2 * (diagonal_F + 2e-6)
  assert np.all((scaled_F[:-2] >= 0.5) & (scaled_F[:-2] <= 2))
  assert scale_F[-2:].tolist() == [1, 1]


@pytest.mark.parametrize(('platform', 'itemsize'), [('gpu', 8), ('tpu', 4)])
def test_three_matrices_fit_the_free_memory_of_a_device(platform, itemsize):
  stats = {'bytes_limit': 7e9, 'bytes_in_use': 7e9 - 3 * 100**2 * itemsize}
  device = types.SimpleNamespace(platform=platform, memory_stats=lambda: stats)
  assert fits(device, 100) and not fits(device, 101)
