"""Out of memory: one more try with half the batch, then a sentence with the field to lower."""

from collections.abc import Callable
from typing import TypeVar

import jax

from jedit.io.progress import note
from jedit.types import UserError

_Result = TypeVar('_Result')


def is_out_of_memory(error: BaseException) -> bool:
  """True for the errors of a device and of the host that has no memory left."""
  if isinstance(error, jax.errors.JaxRuntimeError):
    return 'RESOURCE_EXHAUSTED' in str(error)
  return isinstance(error, MemoryError)


def halve_once(
  run: Callable[[int], _Result], size: int, *, stage: str, field: str, most: int, least: int = 1
) -> _Result:
  """`run(size)`; where that takes too much memory, once more with half the size.

  Args:
    run: the work of a stage with a batch of this size, from its beginning.
    size: of the batch.
    stage: its name, for people.
    field: of the config, to lower.
    most: a larger batch than this is not filled.
    least: a smaller batch than this takes no less memory.

  Raises:
    UserError: if half the size is too much as well, or there is no half. Several processes do not
      try again, since the others may not have failed.
  """
  half = min(size, most) // 2
  try:
    return run(size)
  except Exception as error:
    if not is_out_of_memory(error):
      raise
    if half < least or jax.distributed.is_initialized():
      raise _sentence(stage, field, min(size, most)) from error
  # Behind the handler: its error holds the arrays of the first try.
  note(f'{stage}: out of memory with a batch of {min(size, most)}; once more with {half}.')
  try:
    return run(half)
  except Exception as error:
    if not is_out_of_memory(error):
      raise
    raise _sentence(stage, field, half) from error


def _sentence(stage: str, field: str, size: int) -> UserError:
  return UserError(
    f'The stage {stage} runs out of memory with a batch of {size}; lower {field}, split the model '
    'over more devices with mesh.model, or use a machine with more memory.'
  )
