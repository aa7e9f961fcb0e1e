"""Safetensors files: those of jedit, which are sealed (`jedit.io.sealed`), and weight files."""

import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from jedit.io import storage
from jedit.io.sealed import ZEROS, StaleFile, check_about, damaged, digest, digest_of, start_digest
from jedit.io.storage import to_json
from jedit.parallel.mesh import is_first_process
from jedit.types import UserError

# Names of the dtypes of numpy and ml_dtypes in safetensors.
DTYPES = {
  'float64': 'F64', 'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16', 'bool': 'BOOL',
  **{f'int{bits}': f'I{bits}' for bits in (8, 16, 32, 64)},
  **{f'uint{bits}': f'U{bits}' for bits in (8, 16, 32, 64)},
}  # fmt: skip
_NUMPY = {stored: jnp.dtype(name) for name, stored in DTYPES.items()}
_HEAD = b'{"__metadata__":{"digest":"'
_START = 8 + len(_HEAD)  # of the digest; the length of the header comes first
_END = _START + len(ZEROS)


def write_tensors(
  path: str | os.PathLike[str],
  format: str,
  tensors: Mapping[str, Any],
  facts: Mapping[str, Any],
  key: Any = None,
  header: Mapping[str, str] | None = None,
) -> None:
  """Writes named arrays and facts as one sealed safetensors file.

  Args:
    path: the file.
    format: name and version.
    tensors: arrays by name, of any dtype of safetensors (bfloat16 and float64 included).
    facts: any JSON values, by name.
    key: everything that the file was made of; None for a file that is used anywhere.
    header: entries of the metadata for other programs.

  Raises:
    UserError: where the file cannot be written.
  """
  arrays = {name: np.asarray(tensor) for name, tensor in tensors.items()}
  about = {**facts, 'format': format} | ({} if key is None else {'key': digest(key)})
  # The digest first; the library would write several entries in random order, and equal content
  # should give equal bytes.
  metadata = {'digest': ZEROS.decode(), 'jedit': json.dumps(to_json(about), ensure_ascii=False)}
  metadata |= header or {}
  _write(path, arrays, arrays.__getitem__, metadata)


def stream_tensors(
  path: str | os.PathLike[str], shapes: Mapping[str, Any], tensor: Callable[[str], np.ndarray]
) -> None:
  """Writes a weight file as transformers reads it, from arrays that are made one at a time.

  Args:
    path: the file.
    shapes: by name, anything with the `shape` and `dtype` of the array.
    tensor: makes the array of a name.

  Raises:
    UserError: where the file cannot be written.
  """
  _write(path, shapes, tensor, {'format': 'pt'})


def _write(
  path: str | os.PathLike[str],
  shapes: Mapping[str, Any],
  tensor: Callable[[str], np.ndarray],
  metadata: Mapping[str, str],
) -> None:
  header: dict[str, Any] = {'__metadata__': metadata}
  # The widest first, so that every array begins at a multiple of its item size.
  names = sorted(shapes, key=lambda name: (-np.dtype(shapes[name].dtype).itemsize, name))
  end = 0
  for name in names:
    shape, dtype = tuple(shapes[name].shape), np.dtype(shapes[name].dtype)
    start, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {'dtype': DTYPES[dtype.name], 'shape': shape, 'data_offsets': (start, end)}
  text = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  text = len(text).to_bytes(8, 'little') + text
  hasher = start_digest(text)
  # Every process makes every array, which may take all of them; one keeps the bytes.
  with (
    storage.atomic_file(path) as beside,
    open(beside if is_first_process() else os.devnull, 'wb') as file,
  ):
    file.write(text)
    for name in names:
      # Order 'C' because the format has no strides.
      data = np.asarray(tensor(name), order='C').reshape(-1).view(np.uint8).data
      file.write(data)
      if 'digest' in metadata:
        hasher.update(data)
    if 'digest' in metadata:
      file.seek(_START)
      file.write(hasher.hexdigest().encode())


def read_tensors(
  path: str | os.PathLike[str], format: str | None, key: Any = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Reads a file of `write_tensors`, once, and checks every byte.

  Args:
    path: the file.
    format: that it must have; None takes any, where the key says it all.
    key: what it must be made of; None takes any.

  Returns:
    The arrays by name, and the facts.

  Raises:
    StaleFile: for a file that is damaged or of another format or key.
    UserError: for one that cannot be read.
  """
  with storage.read_errors(path):
    data = np.fromfile(path, np.uint8)
  start = 8 + int.from_bytes(data[:8].tobytes(), 'little')
  if data[8:_START].tobytes() != _HEAD:
    raise StaleFile(f'{path} was not written by this version of jedit; give a file that was.')
  if data[_START:_END].tobytes() != digest_of(data[:_START], ZEROS, data[_END:]):
    raise damaged(path, 'its content does not match its digest')
  header = json.loads(data[8:start].tobytes())
  facts = json.loads(header.pop('__metadata__')['jedit'])
  check_about(path, facts, format, key)
  tensors = {}
  for name, row in header.items():
    first, last = row['data_offsets']
    array = data[start + first : start + last].view(_NUMPY[row['dtype']])
    tensors[name] = array.reshape(row['shape'])
  return tensors, {name: fact for name, fact in facts.items() if name not in ('format', 'key')}


def read_others(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Arrays and metadata of a safetensors file of another program, which has no digest.

  Raises:
    UserError: if it cannot be read or is not whole.
  """
  try:
    with storage.read_errors(path), safetensors.safe_open(os.fspath(path), 'numpy') as file:
      return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
  except safetensors.SafetensorError as error:
    raise UserError(
      f'{path} is not a whole safetensors file ({error}); write or download it again.'
    ) from error
