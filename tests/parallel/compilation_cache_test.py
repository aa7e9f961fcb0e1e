"""One call keeps compiled programs on disk, even after others were compiled."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

import jedit

_FIELDS = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')


@pytest.fixture(autouse=True)
def _as_before():
  before = {name: getattr(jax.config, name) for name in _FIELDS}
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def test_programs_compiled_after_the_call_are_kept(tmp_path, monkeypatch):
  monkeypatch.delenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', raising=False)
  jax.config.update('jax_compilation_cache_dir', None)
  compilation_cache.reset_cache()
  jax.jit(lambda x: x * 3 + 1)(jnp.ones(3)).block_until_ready()  # JAX looks for a directory once
  assert jedit.cache_compilations(tmp_path / 'programs') == tmp_path / 'programs'
  jax.jit(lambda x: x * 5 + 2)(jnp.ones(3)).block_until_ready()
  assert any((tmp_path / 'programs').iterdir())


def test_the_environment_names_the_directory_unless_the_call_does(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'a'))
  assert jedit.cache_compilations() == tmp_path / 'a'
  assert jedit.cache_compilations(tmp_path / 'b') == tmp_path / 'b'
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  assert jedit.cache_compilations() == pathlib.Path('~/.cache/jedit/xla').expanduser()
  assert jax.config.jax_compilation_cache_dir.endswith('.cache/jedit/xla')
