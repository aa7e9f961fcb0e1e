"""The wheel: every module, config and asset is inside, and nothing else."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
_IGNORED = shutil.ignore_patterns('__pycache__', '*.egg-info')


@pytest.fixture(scope='module', name='names')
def _names(tmp_path_factory):
  """Files of a wheel built from a copy of the sources, without their folder of metadata."""
  source = tmp_path_factory.mktemp('source')
  for folder in ('jedit', 'configs'):
    shutil.copytree(ROOT / folder, source / folder, ignore=_IGNORED)
  for file in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / file, source)
  build = 'import setuptools.build_meta as b; b.build_wheel("dist")'
  environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
  command = [sys.executable, '-c', build]
  done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
  assert not done.returncode, done.stderr
  (wheel,) = (source / 'dist').glob('*.whl')
  with zipfile.ZipFile(wheel) as archive:
    return {name for name in archive.namelist() if '.dist-info/' not in name}


def _files(folder, *, under):
  found = (path for path in (ROOT / folder).rglob('*') if path.is_file())
  relative = (path.relative_to(ROOT / folder).as_posix() for path in found)
  return {f'{under}/{name}' for name in relative if '__pycache__' not in name}


def test_the_wheel_holds_the_package_the_assets_and_the_configs(names):
  expected = _files('jedit', under='jedit') | _files('configs', under='jedit/configs')
  # In a clone this file leads to configs/; in a wheel the configs lie beside the other packages.
  assert names == expected - {'jedit/configs/__init__.py'}
  assert {'jedit/py.typed', 'jedit/configs/quickstart.py', 'jedit/configs/paper/common.py'} <= names
