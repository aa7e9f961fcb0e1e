"""Settings for the whole suite: a CPU, and no silent broadcasting or promotion."""

import atexit
import importlib.metadata
import os
import pathlib
import shutil
import tempfile

# Before they are imported: a CPU, programs that are compiled quickly rather than run quickly and
# shared by all processes of a run, and no network.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  # The former code generator takes a third of the time; later versions end at this flag.
  os.environ.setdefault('XLA_FLAGS', '--xla_cpu_use_fusion_emitters=false')
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='jedit-programs-')
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
os.environ['HF_HUB_OFFLINE'] = '1'

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')

ROOT = pathlib.Path(__file__).parents[1]
_MEMORY_MAPS = pathlib.Path('/proc/self/maps')


@pytest.fixture(scope='module', autouse=True)
def _few_memory_maps():
  """Every compiled program maps memory; Linux ends a process that has more than 65,530 maps."""
  yield
  if _MEMORY_MAPS.is_file() and _MEMORY_MAPS.read_bytes().count(b'\n') > 25_000:
    jax.clear_caches()


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
  """Directory with reference numbers, real records and tokenizers; tests skip without it."""
  path = pathlib.Path(os.environ.get('JEDIT_SHARED', ROOT.parent / 'shared'))
  if not path.is_dir():
    pytest.skip(f'{path} is absent; JEDIT_SHARED names the directory with the reference data')
  return path


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> pathlib.Path:
  """Model, records and corpus of a tiny run."""
  from helpers import tiny_run

  return tiny_run.make(tmp_path_factory.mktemp('made'))


@pytest.fixture(scope='module')
def finished(made) -> pathlib.Path:
  """The workdir of a tiny run from beginning to end; tests leave it as it is."""
  from helpers import tiny_run
  from jedit import experiments

  experiments.run(tiny_run.config(made), made / 'finished')
  return made / 'finished'
