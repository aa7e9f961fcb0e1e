"""Settings for the whole suite: a CPU, and no silent broadcasting or promotion."""

import os
import pathlib

# Before they are imported: a CPU, programs that are compiled quickly rather than run quickly, and
# no network.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
os.environ['HF_HUB_OFFLINE'] = '1'

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='session')
def shared() -> pathlib.Path:
  """Directory with reference numbers, real records and tokenizers; tests skip without it."""
  path = pathlib.Path(os.environ.get('JEDIT_SHARED', ROOT.parent / 'shared'))
  if not path.is_dir():
    pytest.skip(f'{path} is absent; JEDIT_SHARED names the directory with the reference data')
  return path
