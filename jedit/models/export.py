"""Parameters to Hugging Face directories, one tensor at a time."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jedit.io import storage, tensors
from jedit.models.decoder import FAMILIES
from jedit.models.load import name_table
from jedit.models.model import Model
from jedit.models.precision import wider
from jedit.models.safetensors_index import (
  COMPANIONS,
  INDEX,
  WEIGHTS,
  Stored,
  count_bytes,
  in_order,
  num_bytes,
  open_tensors,
)
from jedit.parallel.mesh import fetch
from jedit.types import UserError

_SHARD_BYTES = 5_000_000_000


@dataclasses.dataclass(frozen=True)
class Rounding:
  """Rounding errors of a tensor stored in a narrower dtype.

  Attributes:
    weight: L2 norm of the rounding error over the norm of the tensor.
    update: L2 norm of the rounding error over the norm of the edits' update, if the unedited tensor
      is given and differs. Small updates lose far more than small weights.
  """

  weight: float
  update: float | None = None


@dataclasses.dataclass(frozen=True)
class Export:
  """Result of `save_directory`.

  Attributes:
    path: the directory.
    dtype: `dtype` of its config.json.
    rounding: rounded tensors by Hugging Face name; exact ones are omitted.
  """

  path: pathlib.Path
  dtype: str
  rounding: Mapping[str, Rounding]


def save_directory(
  path: str | os.PathLike[str],
  model: Model,
  hf_config: Mapping[str, Any],
  *,
  dtype: str | None = None,
  base: Any = None,
  source: str | os.PathLike[str] | None = None,
  tokenizer: Any = None,
  shard_bytes: int = _SHARD_BYTES,
) -> Export:
  """Writes a model as a Hugging Face directory for transformers, one tensor at a time.

  If the source has the weights, its files, names and buffers are kept, and unchanged parameters are
  written as stored there, bit for bit.

  Args:
    path: a new or empty directory.
    model: the model to write.
    hf_config: its config.json, as returned by `load_directory`.
    dtype: dtype of every stored tensor, to which edited float32 kernels are rounded once. None
      keeps the source's for unchanged tensors, and rounds the rest to the model's dtype, or to the
      source's if that is wider.
    base: the parameters before the edits, to measure the rounding relative to the update as well.
    source: model directory whose weight files, tokenizer and generation files are followed.
    tokenizer: transformers tokenizer to save; not needed with a `source` that has one.
    shard_bytes: largest weight file without such a source; more is sharded, with an index.

  Returns:
    The directory and its rounding errors.

  Raises:
    UserError: if `path` is not empty or cannot be written, or the model has interventions.
  """
  if model.edits:
    raise UserError(
      f'The model has interventions at {", ".join(sorted(model.edits))}, which a Hugging Face '
      'directory cannot hold; revert the patches with interventions and keep them as patch files.'
    )
  config, flat = model.config, traverse_util.flatten_dict(model.params, sep='/')
  base_flat = {} if base is None else traverse_util.flatten_dict(base, sep='/')
  table = name_table(config)
  original = _original(source, table)
  names = {ours: config.stored_name(name) for name, ours, _ in FAMILIES[config.family].names}
  if config.tie_head and names['head/kernel'] in original:  # the stored copy of the embedding
    table[names['head/kernel']] = table[names['embed/embedding']]
  unchanged = {
    name
    for name, (ours, kind, _) in table.items()
    if name in original and _is_unchanged(original[name], kind, flat[ours])
  }
  stored: dict[str, Any] = {name: tensor for name, tensor in original.items() if name not in table}
  for name, (_, _, shape) in table.items():
    known = [original[name].dtype] if name in original else []
    kept = known[0] if name in unchanged else wider(config.dtype, *known)
    stored[name] = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype or kept))
  written = str(wider(*(stored[name].dtype for name in table)))
  rounding: dict[str, Rounding] = {}

  def tensor(name: str) -> np.ndarray:
    if name not in table:
      return original[name].view()
    ours, kind, _ = table[name]
    exact = original[name].view() if name in unchanged else _turned(flat[ours], kind)
    rounded = exact.astype(stored[name].dtype, copy=False)
    if exact.dtype != rounded.dtype:
      before = _turned(base_flat[ours], kind) if ours in base_flat else None
      cost = _rounding(exact, rounded, before)
      if cost.weight:
        rounding[name] = cost
    return rounded

  files = _files(stored, original, shard_bytes)
  with (
    storage.atomic_directory(path) as beside,
    count_bytes('exporting', list(stored.values())) as progress,
  ):
    for file, inside in files.items():
      tensors.stream_tensors(beside / file, {name: stored[name] for name in inside}, tensor)
      for name in inside:
        progress(stored[name])
    if list(files) != [WEIGHTS]:
      index = {
        'metadata': {'total_size': sum(map(num_bytes, stored.values()))},
        'weight_map': {name: file for file, inside in files.items() for name in inside},
      }
      storage.write_json(beside / INDEX, index)
    dtype_fields = dict.fromkeys(('dtype', *({'torch_dtype'} & hf_config.keys())), written)
    storage.write_json(beside / 'config.json', {**hf_config, **dtype_fields})
    _save_companions(beside, source, tokenizer)
  return Export(path=pathlib.Path(path), dtype=written, rounding=rounding)


def _original(
  source: str | os.PathLike[str] | None, table: Mapping[str, tuple[str, str, tuple[int, ...]]]
) -> dict[str, Stored]:
  """The tensors of the source, if it has weights that belong to the model."""
  folder = pathlib.Path(source or '')
  if not source or not any((folder / file).is_file() for file in (WEIGHTS, INDEX)):
    return {}
  tensors = open_tensors(folder)
  same = all(name in tensors and tensors[name].shape == table[name][2] for name in table)
  return tensors if same else {}


def _is_unchanged(stored: Stored, kind: str, leaf: jax.Array) -> bool:
  """True if a parameter equals the stored tensor as read, bit for bit."""
  ours, view = _on_host(leaf), stored.view()
  theirs = in_order(view.T if kind == 'kernel' else view, ours.dtype)
  return np.array_equal(ours.reshape(-1).view(np.uint8), theirs.reshape(-1).view(np.uint8))


def _on_host(leaf: jax.Array) -> np.ndarray:
  # Arrays cache their host copy for life; copy first, so that the cache is freed with the copy.
  return fetch(jnp.copy(leaf))


def _turned(leaf: jax.Array, kind: str) -> np.ndarray:
  """A parameter in its stored orientation."""
  ours = _on_host(leaf)
  return in_order(ours.T, ours.dtype) if kind == 'kernel' else ours


def _files(
  stored: Mapping[str, Any], original: Mapping[str, Stored], limit: int
) -> dict[str, list[str]]:
  """Names by weight file: those of the source, or files of at most `limit` bytes."""
  files: dict[str, list[str]] = {}
  for name, tensor in original.items():
    files.setdefault(tensor.path.name, []).append(name)
  if files:
    return files
  shards: list[list[str]] = [[]]
  filled = 0
  for name, tensor in stored.items():
    if shards[-1] and filled + num_bytes(tensor) > limit:
      shards.append([])
      filled = 0
    shards[-1].append(name)
    filled += num_bytes(tensor)
  if len(shards) == 1:
    return {WEIGHTS: shards[0]}
  return {
    f'model-{number:05d}-of-{len(shards):05d}.safetensors': shard
    for number, shard in enumerate(shards, start=1)
  }


def _rounding(exact: np.ndarray, rounded: np.ndarray, before: Any) -> Rounding:
  wide = exact.astype(np.float64)
  error = float(np.linalg.norm(rounded.astype(np.float64) - wide))
  if not error:
    return Rounding(weight=0.0)
  changed = 0.0
  if before is not None:
    changed = float(np.linalg.norm(wide - before.astype(np.float64)))
  norm = float(np.linalg.norm(wide))
  return Rounding(weight=error / norm, update=error / changed if changed else None)


def _save_companions(
  beside: pathlib.Path, source: str | os.PathLike[str] | None, tokenizer: Any
) -> None:
  copied = False
  if source is not None:
    for name in COMPANIONS:
      if (pathlib.Path(source) / name).is_file():
        shutil.copyfile(pathlib.Path(source) / name, beside / name)
        copied = copied or name != 'generation_config.json'
  if tokenizer is not None and not copied:
    tokenizer.save_pretrained(beside)
