"""Imports point one way, and importing does no work."""

import ast
import configparser
import graphlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# From the bottom up: a module imports only from lines above its own. A name stands for itself
# and everything below it; names on one line may import each other, without cycles.
ROOMS = (
  'jedit.types jedit.units jedit.compat jedit.configs',
  'jedit.parallel',
  'jedit.io',
  'jedit.solvers',
  'jedit.models',
  'jedit.data',
  'jedit.moments',
  'jedit.editing',
  'jedit.hypernetworks',
  'jedit.methods',
  'jedit.evals',
  'jedit.probes',
  'jedit.testbeds',
  'jedit.reports',
  'jedit.experiments',
  'jedit',
  'jedit.main',
)


def _modules() -> dict[str, pathlib.Path]:
  """Every module of the package by name."""
  found = {}
  for path in sorted((ROOT / 'jedit').rglob('*.py')):
    parts = path.relative_to(ROOT).with_suffix('').parts
    found['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
  return found


MODULES = _modules()


def _imports(module: str) -> set[str]:
  """Names that `module` imports, lazily or not; `from a import b` is a.b where that is a module."""
  found = set()
  for node in ast.walk(ast.parse(MODULES[module].read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{module} has a relative import in line {node.lineno}'
      for alias in node.names:
        full = f'{node.module}.{alias.name}'
        found.add(full if full in MODULES else str(node.module))
  return found


def _floor(module: str) -> int:
  """Line of `ROOMS` with the longest name that `module` is or lies in."""
  floors = {name: floor for floor, line in enumerate(ROOMS) for name in line.split()}
  name = module
  while name not in floors:
    name = name.rpartition('.')[0]
  if name == 'jedit' != module:
    pytest.fail(f'{module} has no place in ROOMS; give it one')
  return floors[name]


@pytest.mark.parametrize('module', MODULES)
def test_imports_point_down(module):
  for other in _imports(module) & set(MODULES):
    assert _floor(other) <= _floor(module), f'{module} imports {other} from a room above it'


def test_imports_have_no_cycles():
  graph = {module: (_imports(module) & set(MODULES)) - {module} for module in MODULES}
  graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize('module', MODULES)
def test_only_the_rooms_made_for_it_import_a_library(module):
  heads = {'.'.join(name.split('.')[:n]) for name in _imports(module) for n in (1, 2)}
  assert 'torch' not in heads, 'PyTorch is for parity tests'
  if not module.startswith('jedit.models'):
    assert 'flax.linen' not in heads, 'modules live in jedit/models'
  if module != 'jedit.main':
    assert not heads & {'absl.flags', 'absl.app', 'argparse'}, 'only main reads flags'


@pytest.mark.parametrize('module', MODULES)
def test_public_functions_say_their_types(module):
  tree = ast.parse(MODULES[module].read_text())
  classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
  for node in [*tree.body, *(node for cls in classes for node in cls.body)]:
    if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
      arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
      bare = [a.arg for a in arguments if not a.annotation and a.arg not in ('self', 'cls')]
      assert not bare, f'{module}.{node.name} has no types for {bare}'


def test_importing_does_no_device_work_and_needs_no_torch():
  code = (
    'import sys; sys.modules["torch"] = None\n'
    + ''.join(f'import {module}\n' for module in MODULES)
    + 'from jax._src import xla_bridge\n'
    + 'assert not xla_bridge.backends_are_initialized(), "an import started a device"\n'
  )
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, env=environment
  )
  assert not done.returncode, done.stderr


def test_every_package_and_config_is_installed():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  packages = {
    '.'.join(path.parent.relative_to(ROOT).parts)
    for path in (ROOT / 'jedit').rglob('*.py')
    if not {'assets', '__pycache__'} & set(path.parts)
  }
  packages |= {
    '.'.join(('jedit', *path.parent.relative_to(ROOT).parts))
    for path in (ROOT / 'configs').rglob('*.py')
  }
  assert set(setup['options']['packages'].split()) == packages


def test_readme_and_ci_run_the_same_test_command():
  commands = re.findall(
    r'^pip install .* && python -m pytest$', (ROOT / 'README.md').read_text(), re.MULTILINE
  )
  assert len(commands) == 1, '.ci/run takes this line apart'
