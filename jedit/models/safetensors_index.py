"""The tensors of a Hugging Face directory: all metadata at once, values on access.

Values are memory-mapped: a slice of a tensor reads the bytes of that slice only.
"""

import contextlib
import dataclasses
import fnmatch
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from jax.typing import DTypeLike

from jedit.io import schema, tensors
from jedit.io.progress import Progress, quiet
from jedit.types import UserError

WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
_OTHER_FORMATS = ('pytorch_model*.bin', '*.pth', '*.pt', '*.msgpack', '*.h5')
_SHOWN_BYTES = 500_000_000  # show progress from here on, where reading and writing take seconds
_MB = 1_000_000
_STRIP = 64  # columns: their cache lines are still cached for the next ones
# Files of a model besides its config and weights.
COMPANIONS = (
  'tokenizer.json', 'tokenizer_config.json', 'tokenizer.model', 'vocab.json', 'merges.txt',
  'special_tokens_map.json', 'added_tokens.json', 'chat_template.jinja', 'chat_template.json',
  'generation_config.json',
)  # fmt: skip
_DTYPES = {stored: jnp.dtype(name) for name, stored in tensors.DTYPES.items()}
_BLOBS = ('snapshots', 'blobs')  # a snapshot of the hub links to files of its neighbour
_LISTED = 10  # names of each kind in an error message


class _Index(schema.Fields):
  """The index of a sharded model."""

  weight_map: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Stored:
  """Location of a tensor.

  Attributes:
    path: of its safetensors file.
    name: in that file.
    kind: its dtype in safetensors' notation.
    shape: as stored.
    offset: of its first byte in the file.
  """

  path: pathlib.Path
  name: str
  kind: str
  shape: tuple[int, ...]
  offset: int

  @property
  def dtype(self) -> np.dtype:
    return _DTYPES.get(self.kind, np.dtype(np.uint8))  # others are never read

  def view(self) -> np.ndarray:
    """The tensor, memory-mapped read-only."""
    if not np.prod(self.shape):
      return np.zeros(self.shape, self.dtype)
    return np.memmap(self.path, self.dtype, 'r', self.offset, self.shape)


def open_tensors(path: pathlib.Path) -> dict[str, Stored]:
  """The tensors of a directory by name, in file order.

  Raises:
    UserError: for a directory without weights, with weights in other formats, or with files that
      are absent, truncated or different from its index.
  """
  check_inside(path, (WEIGHTS, INDEX))
  if (path / WEIGHTS).is_file():
    return _read_header(path / WEIGHTS)
  if not (path / INDEX).is_file():
    refuse_other_formats(path, os.listdir(path))
    raise UserError(f'{path} has neither {WEIGHTS} nor {INDEX}; download the weights.')
  shard_of = schema.read_json(path / INDEX, _Index).weight_map
  shards = sorted(set(shard_of.values()))
  check_inside(path, shards)
  absent = [shard for shard in shards if not (path / shard).is_file()]
  if absent:
    raise UserError(
      f'{path} lacks {len(absent)} of {len(shards)} weight files ({some(absent)}); '
      'download the rest.'
    )
  tensors: dict[str, Stored] = {}
  misplaced: list[str] = []
  for shard in shards:
    present = _read_header(path / shard)
    listed = {name for name, of in shard_of.items() if of == shard}
    misplaced += sorted(present.keys() ^ listed)
    tensors.update({name: tensor for name, tensor in present.items() if name in listed})
  if misplaced:
    raise UserError(
      f'{path / INDEX} does not match its weight files: {len(misplaced)} tensors are in other '
      f'files ({some(misplaced)}); download index and files again.'
    )
  return tensors


def check_inside(path: pathlib.Path, files: Iterable[str]) -> None:
  """Checks that files of a model lie in its directory, or in the hub's cache of its repository.

  Raises:
    UserError: for names of other places and links to them.
  """
  here = path.resolve()
  roots = [here]
  if here.parent.name == _BLOBS[0]:
    roots.append(here.parents[1] / _BLOBS[1])
  for file in files:
    if file in ('', '..') or pathlib.PurePath(file).name != file or '\\' in file or '\0' in file:
      raise UserError(
        f'{path} names the file {file!r}; its files must lie in the directory itself.'
      )
    try:
      target = (path / file).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
      raise UserError(f'{path / file} cannot be followed ({error}); replace it.') from error
    if target.parent not in roots:
      raise UserError(
        f'{path / file} is a link to {target}, outside the directory of the model; copy the file '
        'there.'
      )


def refuse_other_formats(model: str | os.PathLike[str], files: Iterable[str]) -> None:
  """Explains how to convert a model whose weights are in an unsupported format only.

  Raises:
    UserError: if one of the files holds weights in another format.
  """
  for file in sorted(files):
    if any(fnmatch.fnmatch(file, pattern) for pattern in _OTHER_FORMATS):
      raise UserError(
        f'{model} has its weights only as {file}; convert them once with transformers (and '
        f"PyTorch): AutoModelForCausalLM.from_pretrained('{model}').save_pretrained('DIRECTORY'), "
        "AutoTokenizer.from_pretrained(...).save_pretrained('DIRECTORY')."
      )


def some(names: Sequence[str]) -> str:
  """The first few names, and the number of the rest."""
  more = f' and {len(names) - _LISTED} more' if len(names) > _LISTED else ''
  return ', '.join(names[:_LISTED]) + more


def _read_header(path: pathlib.Path) -> dict[str, Stored]:
  try:
    with safetensors.safe_open(os.fspath(path), framework='numpy'):
      pass  # checks the header, and the length of the file against it
    with open(path, 'rb') as file:
      size = int.from_bytes(file.read(8), 'little')
      header = json.loads(file.read(size))
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise UserError(
      f'{path} is not a whole safetensors file ({error}); download it again.'
    ) from error
  header.pop('__metadata__', None)
  rows = sorted(header.items(), key=lambda item: item[1]['data_offsets'])
  return {
    name: Stored(path, name, row['dtype'], tuple(row['shape']), 8 + size + row['data_offsets'][0])
    for name, row in rows
  }


@contextlib.contextmanager
def count_bytes(label: str, tensors: Sequence[Any]) -> Iterator[Callable[[Any], None]]:
  """Shows progress over the bytes of tensors, if they take some time."""
  total, done = sum(map(num_bytes, tensors)), 0
  with contextlib.ExitStack() as stack:
    if total < _SHOWN_BYTES:
      stack.enter_context(quiet())
    shown = stack.enter_context(Progress(label, total // _MB, 'MB'))

    def finish(tensor: Any) -> None:
      nonlocal done
      done += num_bytes(tensor)
      shown.update(done // _MB - shown.done)

    yield finish


def num_bytes(tensor: Any) -> int:
  """Bytes of anything with a shape and a dtype."""
  return math.prod(tensor.shape) * tensor.dtype.itemsize


def in_order(x: np.ndarray, dtype: DTypeLike) -> np.ndarray:
  """A copy in 'C' order; a transposed matrix is copied in strips, in a third of the time."""
  if x.ndim != 2 or x.flags.c_contiguous:
    return np.array(x, dtype=jnp.dtype(dtype), order='C')
  copy = np.empty(x.shape, jnp.dtype(dtype))
  for first in range(0, x.shape[1], _STRIP):
    copy[:, first : first + _STRIP] = x[:, first : first + _STRIP]
  return copy
