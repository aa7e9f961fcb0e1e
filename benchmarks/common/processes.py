"""Implementations as processes: one call at a time, whose result or error comes back."""

import contextlib
import importlib
import multiprocessing
import os
import traceback
from collections.abc import Iterator
from typing import Any

from jedit.types import UserError


class Here:
  """An implementation in this process, for tests.

  Args:
    target: `module:name` of a class, or of a function that `call(None, ...)` calls.
    arguments: of the class.
  """

  def __init__(self, target: str, *arguments: Any):
    self._target, self._arguments = target, arguments
    self._instance: Any = None

  def call(self, method: str | None, *arguments: Any) -> Any:
    """Runs a method; the first call makes the instance."""
    if self._instance is None:
      module, _, name = self._target.partition(':')
      found = getattr(importlib.import_module(module), name)
      self._instance = found(*self._arguments) if isinstance(found, type) else found
    return (self._instance if method is None else getattr(self._instance, method))(*arguments)

  def close(self) -> None:
    """Does nothing."""


class Process:
  """An implementation in a process of its own.

  Args:
    target, arguments: as of `Here`.
    environment: variables of the process.
  """

  def __init__(self, target: str, *arguments: Any, **environment: str):
    self._target, context = target, multiprocessing.get_context('spawn')
    self._connection, theirs = context.Pipe()
    self._process = context.Process(target=_serve, args=(theirs, target, arguments), daemon=True)
    with _environment(environment):
      self._process.start()
    theirs.close()

  def call(self, method: str | None, *arguments: Any) -> Any:
    """Runs a method there and waits for its result.

    Raises:
      UserError: if the method raised one.
      RuntimeError: for any other exception, with its traceback, and if the process died.
    """
    self._connection.send((method, arguments))
    try:
      kind, value = self._connection.recv()
    except EOFError as error:
      self._process.join(timeout=10)
      raise RuntimeError(
        f'The process of {self._target} died with exit code {self._process.exitcode}; if memory '
        'ran out (-9), lower the amount of work, such as --num_edits, or --target_batch_size.'
      ) from error
    if kind == 'user error':
      raise UserError(value)
    if kind == 'error':
      raise RuntimeError(value)
    return value

  def close(self) -> None:
    """Ends the process."""
    self._connection.close()
    self._process.join(timeout=10)
    if self._process.is_alive():
      self._process.terminate()
      self._process.join()


@contextlib.contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
  """Variables that the libraries of a new process read on import."""
  before = dict(os.environ)
  # Compile seconds are those of compiling, not of reading a cache.
  os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
  # Implementations share one accelerator: none may reserve all of its memory.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  os.environ.update(more)
  try:
    yield
  finally:
    os.environ.clear()
    os.environ.update(before)


def _serve(connection, target: str, arguments) -> None:
  """Answers calls until the other end closes."""
  here = Here(target, *arguments)
  while True:
    try:
      method, values = connection.recv()
    except EOFError:
      return
    try:
      answer = ('value', here.call(method, *values))
    except UserError as error:
      answer = ('user error', str(error))
    except Exception:  # the parent raises it
      answer = ('error', traceback.format_exc())
    connection.send(answer)
