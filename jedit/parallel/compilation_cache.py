"""The directory in which JAX keeps compiled programs."""

import os
import pathlib

import jax
from jax.experimental.compilation_cache import compilation_cache

_DEFAULT = '~/.cache/jedit/xla'


def cache_compilations(path: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """Keeps compiled programs on disk, so that later processes do not compile them again.

  The command line does this by itself; in a notebook call it once, at the beginning. Programs that
  are compiled already stay where they are.

  Args:
    path: directory of the programs. None takes JAX_COMPILATION_CACHE_DIR, or ~/.cache/jedit/xla
      where that is not set.

  Returns:
    The directory, which JAX makes with the first program.
  """
  if path is None:
    path = os.environ.get('JAX_COMPILATION_CACHE_DIR') or _DEFAULT
  directory = pathlib.Path(path).expanduser()
  jax.config.update('jax_compilation_cache_dir', os.fspath(directory))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)  # many small programs
  compilation_cache.reset_cache()  # JAX otherwise keeps what the first compilation found
  return directory
