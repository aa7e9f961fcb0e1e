"""Programs that JAX compiles, as it reports them: names with the shapes of their arguments."""

import contextlib
import logging
import re

import jax

_LINE = re.compile(r'Compiling jit\((\w+)\) with global shapes and types (.*)\. Argument mapping')
_LOGGER = logging.getLogger('jax._src.interpreters.pxla')


@contextlib.contextmanager
def compilations(names):
  """A set that fills with (name, shapes) of what is compiled in the block, of these functions."""
  found = set()

  class Handler(logging.Handler):
    def emit(self, record):
      if (line := _LINE.search(record.getMessage())) and line[1] in names:
        found.add((line[1], line[2].replace(', weak_type=True', '')))

  handler, level, spreads = Handler(), _LOGGER.level, _LOGGER.propagate
  jax.clear_caches()
  _LOGGER.addHandler(handler)
  _LOGGER.setLevel(logging.DEBUG)
  _LOGGER.propagate = False
  try:
    yield found
  finally:
    _LOGGER.removeHandler(handler)
    _LOGGER.setLevel(level)
    _LOGGER.propagate = spreads


def of_dry_run(run):
  """The same of the programs of a dry run."""
  names = {each.name for each in run.programs}
  with compilations(names) as found:
    for program in run.programs:
      program.function.lower(*program.arguments, **program.keywords)
  return names, found
