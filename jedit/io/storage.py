"""Files that are either whole or absent: bytes, text, JSON, and directories built beside.

Everything is written under a temporary name in its own directory and renamed when it is complete
and on disk, so that a killed run leaves nothing half-written. Of several processes the first one
writes; the others write to a scratch place, and all wait.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jedit.parallel.mesh import is_first_process, wait_for_all
from jedit.types import UserError


def _beside(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.tmp')


def _sync(path: pathlib.Path) -> None:
  """Waits until a file's bytes, or a directory's entries, are on disk."""
  try:
    descriptor = os.open(path, os.O_RDONLY)
  except PermissionError:  # Windows opens no directories
    return
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
  """Raises errors of the operating system as UserError about writing `path`."""
  try:
    yield
  except OSError as error:
    raise UserError(
      f'Cannot write {path} ({error.strerror or error}); '
      'choose a place that is writable and has space.'
    ) from error


@contextlib.contextmanager
def read_errors(path: str | os.PathLike[str]) -> Iterator[None]:
  """Raises errors of the operating system as UserError about reading `path`."""
  try:
    yield
  except OSError as error:
    raise UserError(f'Cannot read {path} ({error.strerror or error}); check the path.') from error


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Yields a temporary path to write, which becomes `path` when the block succeeds.

  Args:
    path: the final file; its directory is made, an older file is replaced.

  Yields:
    The path to write to, in the same directory.

  Raises:
    UserError: where the file cannot be written.
  """
  path = pathlib.Path(path)
  if not is_first_process():
    with tempfile.TemporaryDirectory() as scratch:
      yield pathlib.Path(scratch) / path.name
    wait_for_all()
    return
  beside = _beside(path)
  with write_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      yield beside
      _sync(beside)
      os.replace(beside, path)
      _sync(path.parent)
    finally:
      beside.unlink(missing_ok=True)
  wait_for_all()


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Yields an empty directory to fill, which becomes `path` when the block succeeds.

  Args:
    path: the final directory; it must be absent or empty, since its content is not ours to delete.

  Yields:
    The directory to fill, beside `path`.

  Raises:
    UserError: where `path` holds something already or cannot be written.
  """
  path = pathlib.Path(path).absolute()
  if not is_first_process():
    with tempfile.TemporaryDirectory() as scratch:
      yield pathlib.Path(scratch)
    wait_for_all()
    return
  beside = _beside(path)
  with write_errors(path):
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
      raise UserError(f'{path} exists already; remove it or choose another directory.')
    beside.mkdir(parents=True)
    try:
      yield beside
      for entry in sorted(beside.rglob('*')):
        _sync(entry)
      if path.exists():
        path.rmdir()
      os.replace(beside, path)
      _sync(path.parent)
    finally:
      shutil.rmtree(beside, ignore_errors=True)
  wait_for_all()


def to_json(value: Any) -> Any:
  """Converts results to plain JSON values.

  Infinities and nan, which JSON lacks, become null, so that every reader accepts the file.

  Args:
    value: nested mappings, sequences, dataclasses, arrays, scalars, strings, paths and None.

  Returns:
    Dicts with string keys, lists, floats, ints, bools, strings and None.

  Raises:
    TypeError: for anything else.
  """
  if value is None or isinstance(value, (str, bool, int)):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if hasattr(value, 'to_dict'):  # ml_collections.ConfigDict is no Mapping
    return to_json(value.to_dict())
  if isinstance(value, Mapping):
    return {str(key): to_json(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_json(item) for item in value]
  if isinstance(value, (set, frozenset)):
    return sorted(to_json(item) for item in value)
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if hasattr(value, 'tolist'):  # numpy and jax arrays and scalars, bfloat16 too
    return to_json(np.asarray(value).tolist())
  raise TypeError(f'{type(value).__name__} has no JSON form: {value!r}')


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes `value` as indented JSON for other programs; nan and infinities become null.

  Raises:
    UserError: where the file cannot be written.
  """
  write_text(path, json.dumps(to_json(value), indent=2, ensure_ascii=False) + '\n')


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes `text` as UTF-8.

  Raises:
    UserError: where the file cannot be written.
  """
  write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
  """Writes a whole file.

  Raises:
    UserError: where the file cannot be written.
  """
  with atomic_file(path) as beside:
    beside.write_bytes(data)


def remove(path: str | os.PathLike[str]) -> None:
  """Removes a file that every process has looked at, if it is there."""
  wait_for_all()
  if is_first_process():
    pathlib.Path(path).unlink(missing_ok=True)
  wait_for_all()


def read_bytes(path: str | os.PathLike[str]) -> bytes:
  """Reads a whole file.

  Raises:
    UserError: where it cannot be read.
  """
  with read_errors(path):
    return pathlib.Path(path).read_bytes()
