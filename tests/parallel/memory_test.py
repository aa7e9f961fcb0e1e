"""Free memory of the host and of containers."""

import types

import psutil
import pytest

from jedit.parallel import memory


@pytest.fixture(name='cgroup')
def _cgroup(tmp_path, monkeypatch):
  """A container of 1000 bytes, 700 of them in use, on a machine with 5000 free ones."""
  monkeypatch.setattr(memory, '_CGROUP', tmp_path)
  available = types.SimpleNamespace(available=5000)
  monkeypatch.setattr(psutil, 'virtual_memory', lambda: available)
  (tmp_path / 'memory.max').write_text('1000\n')
  (tmp_path / 'memory.current').write_text('700\n')
  (tmp_path / 'memory.stat').write_text('anon 500\nfile 200\n')
  return tmp_path


def test_a_container_has_what_is_below_its_limit_and_its_cached_files(cgroup):
  assert memory.free_host_bytes() == 1000 - 700 + 200
  (cgroup / 'memory.max').write_text('9000')
  assert memory.free_host_bytes() == 5000, 'the machine has less'


def test_without_a_limit_the_machine_counts(cgroup):
  (cgroup / 'memory.max').write_text('max\n')
  assert memory.free_host_bytes() == 5000
  (cgroup / 'memory.max').unlink()
  assert memory.free_host_bytes() == 5000


class _Device:
  def __init__(self, platform, stats):
    self.platform, self.memory_stats = platform, lambda: stats


def test_a_device_reports_its_own_memory(cgroup):
  assert memory.free_bytes(_Device('gpu', {'bytes_limit': 100, 'bytes_in_use': 30})) == 70
  assert memory.free_bytes(_Device('gpu', {'bytes_limit': 100})) == 100
  assert memory.free_bytes(_Device('tpu', None)) is None
  assert memory.free_bytes(_Device('cpu', None)) == 500
