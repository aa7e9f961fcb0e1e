"""The devices of a run, and accelerators of this machine that JAX does not use.

JAX falls back to the CPU where the plugin of a GPU or the library of a TPU is absent or of another
version; a run there would take days without a word. `announce_devices` says so, with the command
that mends it.
"""

import functools
import glob
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

import jax
from packaging.requirements import Requirement

from jedit.types import UserError
from jedit.units import visible

_NVIDIA, _TPU, _VFIO = '/dev/nvidia[0-9]*', '/dev/accel[0-9]*', '/dev/vfio/[0-9]*'
_PCI_VENDORS, _GOOGLE = '/sys/bus/pci/devices/*/vendor', '0x1ae0'
# NVIDIA's drivers that CUDA 13 needs begin with this one; older ones run CUDA 12.
_CUDA13_DRIVER = 580


def find_devices() -> list[jax.Device]:
  """All devices of all processes.

  Raises:
    UserError: if JAX cannot start one of its platforms.
  """
  try:
    return jax.devices()
  except (RuntimeError, AssertionError) as error:
    # JAX asserts that one of several platforms starts.
    lines = str(error).splitlines() or [f'JAX_PLATFORMS is {os.environ.get("JAX_PLATFORMS")!r}']
    reason = lines[0].rstrip('.')
    raise UserError(
      f'JAX cannot use the devices of this machine ({reason}); repair its driver or plugin, or set '
      'JAX_PLATFORMS=cpu to run on the processor.'
    ) from error


def count_kinds(devices: Sequence[jax.Device]) -> dict[str, int]:
  """Number of devices by platform and kind, such as {'gpu (NVIDIA H200)': 8}."""
  kinds = [f'{device.platform} ({device.device_kind})' for device in devices]
  return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


@functools.cache
def announce_devices() -> None:
  """Prints the devices in use and warns of unused accelerators, once per process, on stderr.

  Raises:
    UserError: if JAX cannot start one of its platforms.
  """
  devices = find_devices()
  lines = [f'WARNING: {warning}' for warning in unused_accelerators(devices)]
  if jax.process_index() == 0:
    kinds = ', '.join(f'{count} x {kind}' for kind, count in count_kinds(devices).items())
    lines.insert(0, f'Devices: {kinds}; jax {jax.__version__}.')
  for line in lines:
    print(visible(line), file=sys.stderr, flush=True)


def unused_accelerators(devices: Sequence[jax.Device]) -> list[str]:
  """Sentences about accelerators of this machine that JAX does not use, with the remedy.

  Args:
    devices: those that JAX uses. Nothing is said if one of them is no CPU, or if the user chose the
      CPU by JAX_PLATFORMS or hid the GPUs by CUDA_VISIBLE_DEVICES.
  """
  if any(device.platform != 'cpu' for device in devices):
    return []
  if 'cpu' in (jax.config.values['jax_platforms'] or '').split(','):
    return []
  found = []
  if os.environ.get('CUDA_VISIBLE_DEVICES') not in ('', '-1'):
    drivers = _nvidia_drivers()
    if drivers or glob.glob(_NVIDIA):
      found.append(f'this machine has an NVIDIA GPU, but {_gpu_remedy(drivers)}')
  if _has_tpu():
    found.append(f'this machine has a TPU, but {_tpu_remedy()}')
  return [
    f'{sentence} Everything runs on the CPU until then; JAX_PLATFORMS=cpu says that this is meant.'
    for sentence in found
  ]


def _nvidia_drivers() -> list[str]:
  """Driver versions by GPU; empty where nvidia-smi is absent or finds no GPU."""
  if shutil.which('nvidia-smi') is None:
    return []
  command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
  except (OSError, subprocess.TimeoutExpired):
    return []
  return re.findall(r'^\d[\d.]*$', done.stdout, re.MULTILINE) if done.returncode == 0 else []


def _has_tpu() -> bool:
  """True if this machine shows a TPU: older ones as /dev/accel0, later ones through VFIO."""
  if glob.glob(_TPU):
    return True
  vendors = (pathlib.Path(file).read_text().strip() for file in glob.glob(_PCI_VENDORS))
  return bool(glob.glob(_VFIO)) and _GOOGLE in vendors


def _gpu_remedy(drivers: Sequence[str]) -> str:
  """The state of JAX's CUDA plugin and the command that mends it."""
  found = {extra: _installed(extra) for extra in ('cuda12', 'cuda13')}
  installed = {extra: plugin for extra, plugin in found.items() if plugin}
  runs_13 = not drivers or int(drivers[0].split('.')[0]) >= _CUDA13_DRIVER
  usable = [extra for extra in installed if extra == 'cuda12' or runs_13]
  extra = usable[-1] if usable else 'cuda13' if runs_13 else 'cuda12'
  command = _command(extra)
  if not installed:
    return f'no CUDA plugin of JAX is installed; install it with {command}.'
  if not usable:
    return (
      f'its driver {drivers[0]} is older than {_CUDA13_DRIVER}, which CUDA 13 needs; update it, or '
      f'replace the plugin: pip uninstall -y jax-cuda13-plugin jax-cuda13-pjrt && {command}.'
    )
  name, version, fits = installed[extra]
  if not fits:
    return f'{name} {version} does not fit jax {jax.__version__}; mend it with {command}.'
  return (
    f'{name} {version} cannot start it ({_failure("cuda")}); update the driver, or mend the '
    f'libraries with {command}.'
  )


def _tpu_remedy() -> str:
  """The state of libtpu and the command that mends it."""
  command, installed = _command('tpu'), _installed('tpu')
  if not installed:
    return f'libtpu is not installed; install it with {command}.'
  name, version, fits = installed
  if not fits:
    return f'{name} {version} does not fit jax {jax.__version__}; mend it with {command}.'
  return (
    f'{name} {version} cannot start it ({_failure("tpu")}); end the programs that use it, or mend '
    f'the library with {command}.'
  )


def _command(extra: str) -> str:
  """The installation of what this version of jax needs; jax itself stays as it is."""
  return f'`pip install "jax[{extra}]=={jax.__version__}"`'


def _installed(extra: str) -> tuple[str, str, bool] | None:
  """Name and version of the package behind an extra of jax, and if jax accepts that version.

  None if it is absent. jax's own metadata names the package.
  """
  for line in importlib.metadata.requires('jax') or ():
    needed = Requirement(line)
    is_package = needed.name.startswith(('jax-cuda', 'libtpu'))
    if is_package and needed.marker and needed.marker.evaluate({'extra': extra}):
      try:
        version = importlib.metadata.version(needed.name)
      except importlib.metadata.PackageNotFoundError:
        return None
      return needed.name, version, needed.specifier.contains(version, prereleases=True)
  return None


def _failure(platform: str) -> str:
  """JAX's reason for not starting a platform."""
  try:
    jax.devices(platform)
  except (RuntimeError, AssertionError) as error:
    return ' '.join(str(error).split()).rstrip('.')
  return 'JAX finds it on a second attempt'
