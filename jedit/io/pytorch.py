"""Tensors of PyTorch checkpoints, read without running what is pickled in them.

A checkpoint is a zip archive with a pickle of nested containers, whose tensors refer to raw files.
Of the classes that the pickle names only dictionaries and tensors are made; every other becomes an
inert placeholder, so no code of the file is called.
"""

import collections
import os
import pickle
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from jedit.types import UserError

_STORAGES = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
}


class _Inert:
  """Takes the place of any object of the pickle; whatever it is given is dropped."""

  def __init__(self, *unused: Any, **unused_too: Any) -> None:
    pass

  def __call__(self, *unused: Any, **unused_too: Any) -> '_Inert':
    return self

  def __setstate__(self, state: Any) -> None:
    del state

  def __setitem__(self, key: Any, value: Any) -> None:
    del key, value

  def append(self, value: Any) -> None:
    """Drops the value."""

  def extend(self, values: Any) -> None:
    """Drops the values."""


def read_checkpoint(path: str | os.PathLike[str]) -> Any:
  """The nested dictionaries and lists of a checkpoint, with NumPy arrays for its tensors.

  Raises:
    UserError: for a file of another format, or one whose tensors are damaged.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      [data] = [name for name in archive.namelist() if name.rpartition('/')[2] == 'data.pkl']
      with archive.open(data) as file:
        return _Reader(file, archive, data.removesuffix('data.pkl')).load()
  except OSError as error:
    raise UserError(f'Cannot read {path} ({error.strerror}); check the path.') from error
  except (ValueError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError, EOFError) as error:
    raise UserError(
      f'{path} is not a checkpoint that can be read without running code ({error}); where PyTorch '
      'is installed, load it and write its state dict with safetensors.torch.save_file.'
    ) from error


class _Reader(pickle.Unpickler):
  """Makes dictionaries and arrays; see the module."""

  def __init__(self, file: Any, archive: zipfile.ZipFile, root: str):
    super().__init__(file)
    self._archive, self._root = archive, root

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return _tensor
    if (module, name) == ('torch._utils', '_rebuild_parameter'):
      return _parameter
    if module == 'torch' and name in _STORAGES:
      return np.dtype(_STORAGES[name])
    return _Inert

  def persistent_load(self, pid: Any) -> np.ndarray:
    _, dtype, key, _, count = pid
    if not isinstance(dtype, np.dtype):
      raise ValueError('a tensor of an unknown dtype')
    return np.frombuffer(self._archive.read(f'{self._root}data/{key}'), dtype, count)


def _tensor(storage: np.ndarray, offset: int, size: Any, stride: Any, *unused: Any) -> np.ndarray:
  """The elements of a flat storage that a tensor shows."""
  last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
  if offset < 0 or min(stride, default=0) < 0 or (0 not in size and last >= len(storage)):
    raise ValueError('a tensor outside its storage')
  strides = tuple(step * storage.itemsize for step in stride)
  return np.lib.stride_tricks.as_strided(storage[offset:], tuple(size), strides).copy()


def _parameter(data: np.ndarray, *unused: Any) -> np.ndarray:
  return data
