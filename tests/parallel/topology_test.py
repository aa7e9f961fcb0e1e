"""Topologies of TPUs that are not here: which are refused, and their memory."""

import importlib.metadata
import importlib.util

import pytest

from jedit.parallel import topology
from jedit.parallel.memory import free_bytes
from jedit.parallel.mesh import make_mesh
from jedit.parallel.topology import CHIPS, find_topology
from jedit.types import UserError

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed (extra tpu)'
)


@pytest.mark.parametrize('name', ['', 'v5e', 'v9x:2x2', 'v5p:2x2', 'v5e:4x400', 'v5e:0x2', '2x2'])
def test_a_topology_that_does_not_exist_is_a_sentence(name):
  with pytest.raises(UserError, match=r"^plan.topology is '.*'; give a chip \(v5e, v5p, v6e\)"):
    find_topology(name)


def test_libtpu_has_to_be_the_one_of_this_jax(monkeypatch):
  def missing(name):
    raise importlib.metadata.PackageNotFoundError(name)

  asked = ['libtpu==0.0.42.*; extra == "tpu"', 'numpy>=2.0']
  monkeypatch.setattr(topology.importlib.metadata, 'requires', lambda name: asked)
  monkeypatch.setattr(topology.importlib.metadata, 'version', missing)
  with pytest.raises(UserError, match='needs libtpu 0.0.42, and no libtpu is installed'):
    find_topology('v5e:2x2')
  monkeypatch.setattr(topology.importlib.metadata, 'version', lambda name: '0.0.420')
  with pytest.raises(UserError, match='and libtpu 0.0.420 is installed; run pip install'):
    find_topology('v5e:2x2')


@needs_libtpu
def test_a_topology_has_devices_with_the_memory_of_their_chip():
  devices = find_topology('v5e:4x4')
  assert len(devices) == 16 and free_bytes(devices[0]) == CHIPS['v5e'].memory
  mesh = make_mesh(0, 4, devices)
  assert mesh is not None and dict(mesh.shape) == {'data': 4, 'model': 4}
  assert make_mesh(devices=find_topology('v6e:1x1')) is None
  with pytest.raises(UserError, match='A mesh of mesh.data=3 and mesh.model=1 does not fit 16'):
    make_mesh(3, 1, devices)
  with pytest.raises(UserError, match='which the TPU compiler does not know'):
    find_topology('v5e:3x3')
