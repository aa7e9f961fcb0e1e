"""Files that are either whole or absent: JSON, safetensors, and directories built beside.

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
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors

from jedit.parallel.mesh import is_first_process, wait_for_all
from jedit.types import UserError

# Names of the dtypes of numpy and ml_dtypes in safetensors.
DTYPES = {
  'float64': 'F64', 'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16', 'bool': 'BOOL',
  **{f'int{bits}': f'I{bits}' for bits in (8, 16, 32, 64)},
  **{f'uint{bits}': f'U{bits}' for bits in (8, 16, 32, 64)},
}  # fmt: skip
# Key of our metadata in a safetensors header. One entry, because the library writes several in
# random order, and equal content should give equal bytes.
_HEADER_KEY = 'jedit'


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
def _write_errors(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise UserError(
      f'Cannot write {path} ({error.strerror or error}); '
      'choose a place that is writable and has space.'
    ) from error


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
  with _write_errors(path):
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
  with _write_errors(path):
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
  """Writes `value` as indented JSON; nan and infinities become null.

  Raises:
    UserError: where the file cannot be written.
  """
  text = json.dumps(to_json(value), indent=2, ensure_ascii=False) + '\n'
  write_text(path, text)


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes `text` as UTF-8.

  Raises:
    UserError: where the file cannot be written.
  """
  with atomic_file(path) as beside:
    beside.write_bytes(text.encode())


def read_json(path: str | os.PathLike[str]) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: where it cannot be read or is not JSON.
  """
  try:
    return json.loads(pathlib.Path(path).read_bytes())
  except OSError as error:
    raise UserError(f'Cannot read {path} ({error.strerror}); check the path.') from error
  except ValueError as error:
    raise UserError(f'{path} is not JSON ({error}); repair it or give another file.') from error


def write_tensors(
  path: str | os.PathLike[str],
  tensors: Mapping[str, Any],
  metadata: Mapping[str, Any] | None = None,
) -> None:
  """Writes named arrays and metadata as one safetensors file.

  Args:
    path: the file.
    tensors: arrays by name, of any dtype of safetensors (bfloat16 and float64 included).
    metadata: any JSON values. None writes the header of a PyTorch weight file, which
      transformers requires.

  Raises:
    UserError: where the file cannot be written.
  """
  arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
  stream_tensors(path, arrays, arrays.__getitem__, metadata)


def stream_tensors(
  path: str | os.PathLike[str],
  shapes: Mapping[str, Any],
  tensor: Callable[[str], np.ndarray],
  metadata: Mapping[str, Any] | None = None,
) -> None:
  """As `write_tensors`, for arrays that are made one at a time.

  Args:
    path: the file.
    shapes: by name, anything with the `shape` and `dtype` of the array.
    tensor: makes the array of a name.
    metadata: as of `write_tensors`.

  Raises:
    UserError: where the file cannot be written.
  """
  if metadata is None:
    about = {'format': 'pt'}
  else:
    about = {_HEADER_KEY: json.dumps(to_json(metadata), ensure_ascii=False)}
  header: dict[str, Any] = {'__metadata__': about}
  # The widest first, so that every array begins at a multiple of its item size.
  names = sorted(shapes, key=lambda name: (-np.dtype(shapes[name].dtype).itemsize, name))
  end = 0
  for name in names:
    shape, dtype = tuple(shapes[name].shape), np.dtype(shapes[name].dtype)
    start, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {'dtype': DTYPES[dtype.name], 'shape': shape, 'data_offsets': (start, end)}
  text = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  # Every process makes every array, which may take all of them; one keeps the bytes.
  with (
    atomic_file(path) as beside,
    open(beside if is_first_process() else os.devnull, 'wb') as file,
  ):
    file.write(len(text).to_bytes(8, 'little') + text)
    for name in names:
      # Order 'C' because the format has no strides.
      array = np.asarray(tensor(name), order='C')
      file.write(array.reshape(-1).view(np.uint8).data)


def read_tensors(
  path: str | os.PathLike[str], names: Collection[str] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Reads a file of `write_tensors`.

  Args:
    path: the file.
    names: the arrays to read; all of them by default, none for `()`, which reads only the metadata.

  Returns:
    The arrays by name, and the metadata (empty for a file of another program).

  Raises:
    UserError: where the file cannot be read, is no safetensors file or lacks a name.
  """
  try:
    with safetensors.safe_open(os.fspath(path), framework='numpy') as file:
      present = list(file.keys())
      absent = sorted(set(names or ()) - set(present))
      if absent:
        raise UserError(f'{path} lacks {", ".join(absent)}; give another file.')
      metadata = json.loads((file.metadata() or {}).get(_HEADER_KEY, '{}'))
      wanted = present if names is None else names
      return {name: file.get_tensor(name) for name in wanted}, metadata
  except UserError:
    raise
  except OSError as error:
    raise UserError(
      f'Cannot read {path} ({error.strerror or "no such file"}); check the path.'
    ) from error
  except (safetensors.SafetensorError, ValueError) as error:
    raise UserError(
      f'{path} is not a whole safetensors file ({error}); write or download it again.'
    ) from error
