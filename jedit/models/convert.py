"""Hugging Face directories to parameters and back.

A family's name table (`Family.names`) says what every tensor is called there and where it lives
here; matrices are stored [out, in] there and [in, out] here. Tensors are read one at a time, and
every name has to be accounted for: unknown, missing and mis-shaped ones end in one error.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jedit import checkpoint
from jedit.log import Progress, quiet
from jedit.memory import free_bytes
from jedit.mesh import fetch
from jedit.models.config import ModelConfig
from jedit.models.decoder import FAMILIES
from jedit.models.layers import wider
from jedit.models.stored import COMPANIONS, INDEX, WEIGHTS, Stored, open_tensors, some
from jedit.sharding import param_shapes, param_shardings
from jedit.types import UserError

DTYPES = ('float32', 'bfloat16', 'float16', 'float64')
_SHARD_BYTES = 5_000_000_000
_SHOWN_BYTES = 500_000_000  # from here on loading takes seconds
_MB = 1_000_000
_STRIP = 64  # columns: their cache lines are still there when the next ones come


@dataclasses.dataclass(frozen=True)
class Rounding:
  """What storing a tensor in a narrower dtype cost.

  Attributes:
    weight: L2 norm of the rounding error over the norm of the tensor.
    update: L2 norm of the rounding error over the norm of what the edits changed, where the
      unedited tensor was given and differs. Small updates lose far more than small weights.
  """

  weight: float
  update: float | None = None


@dataclasses.dataclass(frozen=True)
class Export:
  """What `save_directory` wrote.

  Attributes:
    path: the directory.
    dtype: `dtype` of its config.json.
    rounding: by Hugging Face name, the tensors that had to be rounded; exact ones are left out.
  """

  path: pathlib.Path
  dtype: str
  rounding: Mapping[str, Rounding]


def _expected(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Shapes of the parameters by path, without making any."""
  flat = traverse_util.flatten_dict(param_shapes(config), sep='/')
  return {path: leaf.shape for path, leaf in flat.items()}


def name_table(config: ModelConfig) -> dict[str, tuple[str, str, tuple[int, ...]]]:
  """What a directory of this config holds: Hugging Face name to (path, kind, stored shape)."""
  expected, table = _expected(config), {}
  for name, path, kind in FAMILIES[config.family].names:
    for layer in range(config.num_layers) if '{}' in name else (0,):
      ours = path.replace('{}', str(layer))
      if ours in expected:
        shape = expected[ours][::-1] if kind == 'kernel' else expected[ours]
        table[config.stored_name(name.replace('{}', str(layer)))] = (ours, kind, shape)
  nameless = sorted(expected.keys() - {path for path, _, _ in table.values()})
  if nameless:
    raise ValueError(f'The name table of {config.family} lacks {", ".join(nameless)}.')
  return table


def load_directory(
  path: str | os.PathLike[str], dtype: str = 'float32', mesh: Mesh | None = None
) -> tuple[ModelConfig, dict[str, Any], dict[str, Any]]:
  """Reads the config and the weights of a Hugging Face directory, one tensor at a time.

  Args:
    path: directory with config.json and model.safetensors, whole or sharded with its index.
    dtype: what weights are converted to and activations are computed in.
    mesh: devices that share the model by its family's rules; each process reads the parts of its
      own only. None puts all on the default device.

  Returns:
    The config, the parameters as a nested dict of arrays, and config.json as it stands.

  Raises:
    UserError: for a directory or config that cannot be used, for tensors that are unknown,
      missing or mis-shaped (all of them in one message), and for a model that does not fit.
  """
  if dtype not in DTYPES or jax.dtypes.canonicalize_dtype(dtype) != dtype:  # float64 needs x64
    raise UserError(f'Cannot load a model as {dtype!r}; choose float32, bfloat16 or float16.')
  path = pathlib.Path(path)
  hf_config = _read_hf_config(path)
  config = FAMILIES[hf_config['model_type']].read_config(hf_config, dtype)
  tensors = open_tensors(path)
  config = _with_renames(config, tensors)
  config, hf_config = _untie_if_different(config, hf_config, tensors)
  table = name_table(config)
  _check_names(path, config, table, tensors)
  shardings = {} if mesh is None else param_shardings(config, mesh)
  placed = traverse_util.flatten_dict(shardings, sep='/')
  _check_fits(path, table, dtype, placed)
  flat = {}
  with _progress('loading', list(tensors.values())) as progress:
    for name, stored in tensors.items():
      if name in table:
        ours, kind, _ = table[name]
        flat[ours] = _to_param(stored, kind, dtype, placed.get(ours))
      progress(stored)
  return config, traverse_util.unflatten_dict(flat, sep='/'), hf_config


@contextlib.contextmanager
def _progress(label: str, tensors: Sequence[Any]) -> Iterator[Callable[[Any], None]]:
  """Counts the bytes of tensors that are done, where that takes some time."""
  total, done = sum(map(_size, tensors)), 0
  with contextlib.ExitStack() as stack:
    if total < _SHOWN_BYTES:
      stack.enter_context(quiet())
    shown = stack.enter_context(Progress(label, total // _MB, 'MB'))

    def finish(tensor: Any) -> None:
      nonlocal done
      done += _size(tensor)
      shown.update(done // _MB - shown.done)

    yield finish


def _size(tensor: Any) -> int:
  return math.prod(tensor.shape) * tensor.dtype.itemsize


def _check_fits(
  path: pathlib.Path,
  table: Mapping[str, tuple[str, str, tuple[int, ...]]],
  dtype: str,
  shardings: Mapping[str, jax.sharding.Sharding],
) -> None:
  """Refuses a model that is larger than the free memory of a device that is to hold it."""
  here = jax.sharding.SingleDeviceSharding(jnp.zeros(()).device)
  needed: collections.Counter[jax.Device] = collections.Counter()
  for ours, kind, stored in table.values():
    sharding = shardings.get(ours, here)
    part = sharding.shard_shape(stored[::-1] if kind == 'kernel' else stored)
    for device in sharding.addressable_devices:
      needed[device] += math.prod(part) * jnp.dtype(dtype).itemsize
  for platform in {device.platform for device in needed}:
    devices = [device for device in needed if device.platform == platform]
    # Devices of a CPU share its memory.
    groups = [devices] if platform == 'cpu' else [[device] for device in devices]
    for group in groups:
      wanted, free = sum(needed[device] for device in group), free_bytes(group[0])
      if free is not None and wanted > free:
        raise UserError(
          f'{path} takes {wanted / 1e9:.1f} GB as {dtype} and {group[0]} has {free / 1e9:.1f} GB '
          'free; load it in a narrower dtype, over more devices or where there is more memory.'
        )


def _read_hf_config(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_dir():
    raise UserError(f'There is no model directory {path}; check the path.')
  if not (path / 'config.json').is_file():
    raise UserError(f'{path} has no config.json; give a directory in Hugging Face format.')
  hf_config = checkpoint.read_json(path / 'config.json')
  if not isinstance(hf_config, dict):
    raise UserError(f'{path / "config.json"} is not an object; give a Hugging Face config.')
  model_type = hf_config.get('model_type')
  if model_type not in FAMILIES:
    supported = ', '.join(sorted(FAMILIES))
    raise UserError(f'{path} has model_type {model_type!r}; supported are {supported}.')
  if hf_config.get('quantization_config'):
    raise UserError(f'{path} holds quantised weights; give the unquantised model.')
  return hf_config


def _with_renames(config: ModelConfig, tensors: Mapping[str, Any]) -> ModelConfig:
  """Follows the file where it begins names in another way than the family's table."""
  renames = FAMILIES[config.family].renames
  used = tuple((ours, _) for ours, _ in renames if not any(n.startswith(ours) for n in tensors))
  return dataclasses.replace(config, renames=used)


def _untie_if_different(
  config: ModelConfig, hf_config: dict[str, Any], tensors: Mapping[str, Stored]
) -> tuple[ModelConfig, dict[str, Any]]:
  """Believes the file where the config says tied but the stored head is another matrix.

  transformers does the same. A stored head that equals the embedding is the usual case.
  """
  names = {path: config.stored_name(name) for name, path, _ in FAMILIES[config.family].names}
  head, embedding = names['head/kernel'], names['embed/embedding']
  if not config.tie_head or head not in tensors or embedding not in tensors:
    return config, hf_config
  if np.array_equal(tensors[head].view(), tensors[embedding].view()):
    return config, hf_config
  untied = {**hf_config, 'tie_word_embeddings': False}
  return dataclasses.replace(config, tie_head=False), untied


def _check_names(
  path: pathlib.Path,
  config: ModelConfig,
  table: Mapping[str, tuple[str, str, tuple[int, ...]]],
  tensors: Mapping[str, Stored],
) -> None:
  family = FAMILIES[config.family]
  ignored = [re.compile(pattern) for pattern in family.ignored]
  if config.tie_head:  # stored as well as tied, and equal to the embedding
    heads = [config.stored_name(name) for name, ours, _ in family.names if ours == 'head/kernel']
    ignored += [re.compile(re.escape(name)) for name in heads]
  strangers = [name for name in tensors if name not in table]
  unknown = sorted(n for n in strangers if not any(rule.fullmatch(n) for rule in ignored))
  missing = sorted(table.keys() - tensors.keys())
  wrong = []
  for name in sorted(table.keys() & tensors.keys()):
    stored, want = tensors[name], table[name][2]
    if stored.shape != want:
      wrong.append(f'{name} is {list(stored.shape)}, not {list(want)}')
    elif stored.kind not in ('F16', 'BF16', 'F32', 'F64'):
      wrong.append(f'{name} is stored as {stored.kind}')
  parts = [
    f'{len(found)} {sort} ({some(found)})'
    for sort, found in (('unknown', unknown), ('missing', missing), ('mis-shaped', wrong))
    if found
  ]
  if parts:
    raise UserError(
      f'The tensors in {path} are not those of its config.json: {"; ".join(parts)}. '
      'Download the model again or correct config.json.'
    )


def _to_param(stored: Stored, kind: str, dtype: str, sharding: Any) -> jax.Array:
  """A stored tensor as a parameter: each device gets its part once, in its final form."""
  view = stored.view()
  whole = view.T if kind == 'kernel' else view
  if sharding is None:
    return jnp.asarray(_in_order(whole, dtype)).block_until_ready()
  return jax.make_array_from_callback(
    whole.shape, sharding, lambda index: _in_order(whole[index], dtype)
  ).block_until_ready()


def _in_order(x: np.ndarray, dtype: DTypeLike) -> np.ndarray:
  """A copy in 'C' order; a turned matrix is copied in strips, in a third of the time."""
  if x.ndim != 2 or x.flags.c_contiguous:
    return np.array(x, dtype=jnp.dtype(dtype), order='C')
  copy = np.empty(x.shape, jnp.dtype(dtype))
  for first in range(0, x.shape[1], _STRIP):
    copy[:, first : first + _STRIP] = x[:, first : first + _STRIP]
  return copy


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
  """Two 32-bit sums over the bits of an array, each bit pattern mixed with its index.

  Sums modulo 2^32 do not depend on the order of addition, so every device and every sharding
  gives the same ones; only eight bytes leave the device.
  """
  unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  index = jnp.zeros(bits.shape, jnp.uint32)
  for axis, size in enumerate(bits.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  sums = []
  for salt in (0x9E3779B9, 0x85EBCA6B):
    mixed = bits ^ (index * jnp.uint32(salt))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # a well-tried integer hash
      mixed = (mixed ^ (mixed >> jnp.uint32(shift))) * jnp.uint32(factor)
    sums.append((mixed ^ (mixed >> jnp.uint32(16))).sum(dtype=jnp.uint32))
  return jnp.stack(sums)


def fingerprint(params: Any, config: ModelConfig | None = None) -> str:
  """Sixteen hexadecimal digits that change with any weight, name, shape or dtype.

  With the config they change with what it says about heads, positions, norms and so on, too:
  equal weights do another thing there.
  """
  flat = sorted(traverse_util.flatten_dict(params, sep='/').items())
  sums = fetch([_checksum(jnp.asarray(leaf)) for _, leaf in flat])
  digest = hashlib.sha256(b'' if config is None else json.dumps(_given(config)).encode())
  for (path, leaf), pair in zip(flat, sums, strict=True):
    digest.update(json.dumps([path, list(leaf.shape), str(leaf.dtype), pair.tolist()]).encode())
  return digest.hexdigest()[:16]


def _given(settings: Any) -> dict[str, Any]:
  """The fields that differ from their defaults, so that a new one changes nothing for old models.

  The dtype of the activations is left out, since parameters have their own, and so is how a file
  spells their names.
  """
  values = {f.name: (getattr(settings, f.name), f.default) for f in dataclasses.fields(settings)}
  return {
    name: _given(value) if dataclasses.is_dataclass(value) else value
    for name, (value, default) in values.items()
    if value != default and name not in ('dtype', 'renames')
  }


def save_directory(
  path: str | os.PathLike[str],
  config: ModelConfig,
  params: Any,
  hf_config: Mapping[str, Any],
  *,
  dtype: str | None = None,
  base: Any = None,
  source: str | os.PathLike[str] | None = None,
  tokenizer: Any = None,
  shard_bytes: int = _SHARD_BYTES,
) -> Export:
  """Writes a model as a Hugging Face directory that transformers loads, one tensor at a time.

  Where the source has the weights, its files, names and buffers are kept, and parameters that
  are still what was read there are written as they stand there, bit for bit.

  Args:
    path: the directory to be; it must not hold anything yet.
    config: sizes of the model.
    params: its parameters.
    hf_config: its config.json, as `load_directory` returned it.
    dtype: dtype of every stored tensor, to which edited float32 kernels are rounded once. None
      keeps that of the source for what did not change, and rounds the rest to the model's dtype,
      or to the source's where that is wider.
    base: the parameters before the edits; with them the rounding is also measured against what
      the edits changed.
    source: model directory whose weight files, tokenizer and generation files are followed.
    tokenizer: transformers tokenizer to save; not needed with a `source` that has one.
    shard_bytes: largest weight file without such a source; more is written as shards with an index.

  Returns:
    What was written, and what rounding cost.

  Raises:
    UserError: where `path` holds something already or cannot be written.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  base_flat = {} if base is None else traverse_util.flatten_dict(base, sep='/')
  table = name_table(config)
  original = _original(source, table)
  names = {ours: config.stored_name(name) for name, ours, _ in FAMILIES[config.family].names}
  if config.tie_head and names['head/kernel'] in original:  # the embedding once more
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
    checkpoint.atomic_directory(path) as beside,
    _progress('exporting', list(stored.values())) as progress,
  ):
    for file, inside in files.items():
      checkpoint.stream_tensors(beside / file, {name: stored[name] for name in inside}, tensor)
      for name in inside:
        progress(stored[name])
    if list(files) != [WEIGHTS]:
      index = {
        'metadata': {'total_size': sum(map(_size, stored.values()))},
        'weight_map': {name: file for file, inside in files.items() for name in inside},
      }
      checkpoint.write_json(beside / INDEX, index)
    dtype_fields = dict.fromkeys(('dtype', *({'torch_dtype'} & hf_config.keys())), written)
    checkpoint.write_json(beside / 'config.json', {**hf_config, **dtype_fields})
    _save_companions(beside, source, tokenizer)
  return Export(path=pathlib.Path(path), dtype=written, rounding=rounding)


def _original(
  source: str | os.PathLike[str] | None, table: Mapping[str, tuple[str, str, tuple[int, ...]]]
) -> dict[str, Stored]:
  """The tensors of the source, if it has weights and they are those of the model."""
  folder = pathlib.Path(source or '')
  if not source or not any((folder / file).is_file() for file in (WEIGHTS, INDEX)):
    return {}
  tensors = open_tensors(folder)
  same = all(name in tensors and tensors[name].shape == table[name][2] for name in table)
  return tensors if same else {}


def _is_unchanged(stored: Stored, kind: str, leaf: jax.Array) -> bool:
  """Whether a parameter is, bit for bit, what reading the stored tensor gives."""
  ours, view = _on_host(leaf), stored.view()
  theirs = _in_order(view.T if kind == 'kernel' else view, ours.dtype)
  return np.array_equal(ours.reshape(-1).view(np.uint8), theirs.reshape(-1).view(np.uint8))


def _on_host(leaf: jax.Array) -> np.ndarray:
  # An array keeps what was fetched from it as long as it lives; the copy's goes with the copy.
  return fetch(jnp.copy(leaf))


def _turned(leaf: jax.Array, kind: str) -> np.ndarray:
  """A parameter as it is stored."""
  ours = _on_host(leaf)
  return _in_order(ours.T, ours.dtype) if kind == 'kernel' else ours


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
    if shards[-1] and filled + _size(tensor) > limit:
      shards.append([])
      filled = 0
    shards[-1].append(name)
    filled += _size(tensor)
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
