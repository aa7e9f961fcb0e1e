"""Devices that a run uses, and what it says of those that JAX leaves unused."""

import importlib.metadata
import types

import jax
import pytest

from jedit.parallel import devices

REQUIRED = [
  f'jaxlib<={jax.__version__},>={jax.__version__}',
  f'jax-cuda12-plugin[with-cuda]<={jax.__version__},>={jax.__version__}; extra == "cuda12"',
  f'jax-cuda13-plugin[with-cuda]<={jax.__version__},>={jax.__version__}; extra == "cuda13"',
  'libtpu==0.0.42.*; extra == "tpu"',
]
CPU = types.SimpleNamespace(platform='cpu', device_kind='cpu')
GPU = types.SimpleNamespace(platform='gpu', device_kind='NVIDIA H200')
CUDA12, CUDA13, TPU = (
  f'`pip install "jax[{extra}]=={jax.__version__}"`' for extra in ('cuda12', 'cuda13', 'tpu')
)


class Machine:
  """A made-up machine: device files, a driver, installed packages."""

  def __init__(self, root, installed):
    self.root, self.installed = root, installed

  def has(self, *files):
    for file in files:
      path = self.root / file
      path.parent.mkdir(parents=True, exist_ok=True)
      path.touch()

  def has_driver(self, version):
    script = self.root / 'bin' / 'nvidia-smi'
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho {version}\n')
    script.chmod(0o755)

  def warnings(self):
    return devices.unused_accelerators([CPU])


@pytest.fixture(name='machine')
def _machine(tmp_path, monkeypatch):
  """Without accelerators, and with a jax that may choose its platform."""
  installed = {}

  def version(name):
    if name not in installed:
      raise importlib.metadata.PackageNotFoundError(name)
    return installed[name]

  monkeypatch.setattr(importlib.metadata, 'version', version)
  monkeypatch.setattr(importlib.metadata, 'requires', {'jax': REQUIRED}.get)
  for name in ('_NVIDIA', '_TPU', '_VFIO', '_PCI_VENDORS'):
    monkeypatch.setattr(devices, name, f'{tmp_path}{getattr(devices, name)}')
  monkeypatch.setenv('PATH', f'{tmp_path}/bin')
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  chosen = jax.config.jax_platforms
  jax.config.update('jax_platforms', None)
  yield Machine(tmp_path, installed)
  jax.config.update('jax_platforms', chosen)


def test_a_machine_without_accelerators_has_no_warning(machine):
  assert not machine.warnings()
  machine.has_driver('No devices were found')
  assert not machine.warnings()


def test_a_gpu_without_a_plugin_names_the_command(machine):
  machine.has('dev/nvidia0')
  (warning,) = machine.warnings()
  assert f'no CUDA plugin of JAX is installed; install it with {CUDA13}.' in warning
  assert warning.endswith('JAX_PLATFORMS=cpu says that this is meant.')


@pytest.mark.parametrize(
  ('driver', 'installed', 'words'),
  [
    ('580.82.07', {}, f'install it with {CUDA13}.'),
    ('550.54.15', {}, f'install it with {CUDA12}.'),
    (
      '550.54.15',
      {'jax-cuda12-plugin': '0.6.0'},
      f'0.6.0 does not fit jax {jax.__version__}; mend',
    ),
    ('580.82.07', {'jax-cuda12-plugin': '0.6.0'}, f'mend it with {CUDA12}.'),
    ('550.54.15', {'jax-cuda13-plugin': jax.__version__}, 'driver 550.54.15 is older than 580'),
    ('580.82.07', {'jax-cuda13-plugin': jax.__version__}, 'cannot start it (Unknown backend'),
  ],
)
def test_the_command_fits_the_driver_and_the_plugin(machine, driver, installed, words):
  machine.has_driver(driver)
  machine.installed.update(installed)
  (warning,) = machine.warnings()
  assert words in warning


@pytest.mark.parametrize(
  ('installed', 'words'),
  [
    ({}, f'libtpu is not installed; install it with {TPU}.'),
    (
      {'libtpu': '0.0.23'},
      f'libtpu 0.0.23 does not fit jax {jax.__version__}; mend it with {TPU}.',
    ),
    ({'libtpu': '0.0.42.1'}, 'libtpu 0.0.42.1 cannot start it ('),
  ],
)
def test_a_tpu_without_its_library_names_the_command(machine, installed, words):
  machine.has('dev/accel0')
  machine.installed.update(installed)
  (warning,) = machine.warnings()
  assert 'has a TPU' in warning and words in warning


def test_a_tpu_behind_vfio_is_one_of_google(machine):
  machine.has('dev/vfio/0', 'sys/bus/pci/devices/0/vendor')
  vendor = machine.root / 'sys/bus/pci/devices/0/vendor'
  vendor.write_text('0x8086\n')
  assert not machine.warnings()
  vendor.write_text('0x1ae0\n')
  assert 'has a TPU' in machine.warnings()[0]


def test_a_choice_of_the_user_is_no_warning(machine, monkeypatch):
  machine.has('dev/nvidia0')
  assert not devices.unused_accelerators([GPU]), 'it is used'
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
  assert not machine.warnings()
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
  jax.config.update('jax_platforms', 'cpu')
  assert not machine.warnings()


def test_devices_and_warnings_are_printed_once_per_process(machine, monkeypatch, capsys):
  machine.has('dev/nvidia0')
  monkeypatch.setattr(devices, 'find_devices', lambda: [CPU, CPU])
  announce = devices.announce_devices.__wrapped__
  announce()
  first, second = capsys.readouterr().err.splitlines()
  assert first == f'Devices: 2 x cpu (cpu); jax {jax.__version__}.'
  assert second.startswith('WARNING: this machine has an NVIDIA GPU, but no CUDA plugin')
  devices.announce_devices()
  devices.announce_devices()
  assert len(capsys.readouterr().err.splitlines()) in (0, 2), 'another test may have been first'


def test_loading_a_model_announces_the_devices(monkeypatch):
  from jedit.models import language_model

  def stop():
    raise InterruptedError

  monkeypatch.setattr(language_model, 'announce_devices', stop)
  with pytest.raises(InterruptedError):
    language_model.load('anything')
