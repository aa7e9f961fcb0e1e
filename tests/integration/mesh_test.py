"""Spread over devices and processes, a run gives the numbers of one device."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from helpers import mesh_program
from jedit.parallel.mesh import make_mesh
from jedit.types import UserError

_PROGRAM = pathlib.Path(mesh_program.__file__)


@pytest.fixture(scope='module')
def alone():
  return mesh_program.results()


def _start(out, *arguments) -> subprocess.Popen:
  command = [sys.executable, str(_PROGRAM), str(out), *map(str, arguments)]
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  return subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
  )


def _check(alone, out):
  with np.load(out) as found:
    assert set(found) == set(alone)
    for name, value in alone.items():
      if value.dtype.kind == 'U':
        assert found[name].tolist() == value.tolist()
      else:
        # Sums over shards round in another order; Adam keeps the difference small for a few steps.
        scale = np.abs(value).max(initial=1e-3)
        if name.startswith(('mend ', 'malmen ')):
          # Nets of an editor have single elements whose gradients are sums that cancel, and Adam
          # divides these by as small roots: 1% of one in the worst of several runs.
          apart = np.abs(found[name] - value) / scale
          assert (apart > 1e-3).mean() < 0.01 and apart.max() < 0.02, name
          continue
        np.testing.assert_allclose(found[name], value, rtol=0, atol=2e-4 * scale, err_msg=name)
  assert not alone['reverted'].any()


@pytest.mark.parametrize(('devices', 'data', 'model'), [(8, 8, 1), (4, 1, 4), (8, 4, 2)])
def test_a_mesh_gives_the_numbers_of_one_device(alone, tmp_path, devices, data, model):
  process = _start(tmp_path / 'found.npz', devices, data, model)
  said, _ = process.communicate(timeout=300)
  assert not process.returncode, said[-3000:]
  _check(alone, tmp_path / 'found.npz')


def test_two_processes_give_the_numbers_of_one(alone, tmp_path):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  out = tmp_path / 'found.npz'
  processes = [_start(out, 2, 2, 2, address, 2, number) for number in range(2)]
  for process in processes:
    said, _ = process.communicate(timeout=300)
    assert not process.returncode, said[-3000:]
  _check(alone, out)


def test_a_mesh_that_does_not_fit_is_a_sentence():
  with pytest.raises(UserError, match='mesh.data=3 and mesh.model=5 does not fit'):
    make_mesh(3, 5)
