"""Sides of a benchmark as processes: one call at a time, answers or errors come back."""

import contextlib
import functools
import importlib
import multiprocessing
import os
import traceback
from collections.abc import Iterator
from typing import Any

from jedit.types import UserError


class Process:
  """A side in a process of its own.

  Args:
    target: `module:name` of a class, or of a function that `call(None, ...)` calls.
    arguments, options: of the class.
  """

  def __init__(self, target: str, *arguments: Any, **options: Any):
    context = multiprocessing.get_context('spawn')
    self._connection, theirs = context.Pipe()
    self._process = context.Process(
      target=_serve, args=(theirs, target, arguments, options), daemon=True
    )
    with _environment():
      self._process.start()
    theirs.close()

  def call(self, method: str | None, *arguments: Any) -> Any:
    """Runs a method there and waits for what it returns.

    Raises:
      UserError: what was raised there.
      RuntimeError: if it failed in another way; holds its traceback.
    """
    self._connection.send((method, arguments))
    try:
      kind, value = self._connection.recv()
    except EOFError as error:
      raise RuntimeError(
        'A side ended without a word, most likely for lack of memory; lower --num_edits or '
        '--batch_size.'
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


class Here:
  """As `Process`, in this one: for tests."""

  def __init__(self, target: str, *arguments: Any, **options: Any):
    self._resolve = functools.partial(_resolve, target, arguments, options)
    self._side: Any = None

  def call(self, method: str | None, *arguments: Any) -> Any:
    """Runs a method."""
    if self._side is None:
      self._side = self._resolve()
    return (self._side if method is None else getattr(self._side, method))(*arguments)

  def close(self) -> None:
    """Nothing to end."""


@contextlib.contextmanager
def _environment() -> Iterator[None]:
  """What the libraries of a new process read when they are imported."""
  before = dict(os.environ)
  # Compile seconds from a cache say nothing.
  os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
  # Sides share one accelerator: none may take all of its memory beforehand.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  try:
    yield
  finally:
    os.environ.clear()
    os.environ.update(before)


def _serve(connection, target: str, arguments, options) -> None:
  """Answers calls until the other end closes."""
  side = None
  while True:
    try:
      method, values = connection.recv()
    except EOFError:
      return
    try:
      if side is None:
        side = _resolve(target, arguments, options)
      answer = ('value', (side if method is None else getattr(side, method))(*values))
    except UserError as error:
      answer = ('user error', str(error))
    except Exception:  # told to the parent, which stops
      answer = ('error', traceback.format_exc())
    connection.send(answer)


def _resolve(target: str, arguments, options):
  module, _, name = target.partition(':')
  found = getattr(importlib.import_module(module), name)
  return found(*arguments, **options) if isinstance(found, type) else found
