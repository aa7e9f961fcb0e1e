"""Hugging Face directories to parameters and back.

A family's name table (`Family.names`) says what every tensor is called there and where it lives
here; matrices are stored [out, in] there and [in, out] here. Tensors are read one at a time, and
every name has to be accounted for: unknown, missing and mis-shaped ones end in one error.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util

from jedit import checkpoint
from jedit.models.config import ModelConfig
from jedit.models.decoder import FAMILIES, init_params
from jedit.models.layers import wider
from jedit.types import UserError

DTYPES = ('float32', 'bfloat16', 'float16', 'float64')
_WEIGHTS, _INDEX = 'model.safetensors', 'model.safetensors.index.json'
_OTHER_FORMATS = ('pytorch_model*.bin', '*.pth', '*.pt', '*.msgpack', '*.h5')
# What travels with a model besides its config and weights.
_COMPANIONS = (
  'tokenizer.json', 'tokenizer_config.json', 'tokenizer.model', 'vocab.json', 'merges.txt',
  'special_tokens_map.json', 'added_tokens.json', 'chat_template.jinja', 'chat_template.json',
  'generation_config.json',
)  # fmt: skip
_SHARD_BYTES = 5_000_000_000
_LISTED = 10  # names an error message shows of each sort


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
  tree = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep='/').items()}


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
  path: str | os.PathLike[str], dtype: str = 'float32'
) -> tuple[ModelConfig, dict[str, Any], dict[str, Any]]:
  """Reads the config and the weights of a Hugging Face directory.

  Args:
    path: directory with config.json and model.safetensors, whole or sharded with its index.
    dtype: what weights are converted to and activations are computed in.

  Returns:
    The config, the parameters as a nested dict of arrays, and config.json as it stands.

  Raises:
    UserError: for a directory or config that cannot be used, and for tensors that are unknown,
      missing or mis-shaped (all of them in one message).
  """
  if dtype not in DTYPES or jax.dtypes.canonicalize_dtype(dtype) != dtype:  # float64 needs x64
    raise UserError(f'Cannot load a model as {dtype!r}; choose float32, bfloat16 or float16.')
  path = pathlib.Path(path)
  hf_config = _read_hf_config(path)
  config = FAMILIES[hf_config['model_type']].read_config(hf_config, dtype)
  with contextlib.ExitStack() as stack:
    tensors = _open_tensors(path, stack)
    config = _with_renames(config, tensors)
    config, hf_config = _untie_if_different(config, hf_config, tensors)
    table = name_table(config)
    _check_names(path, config, table, tensors)
    flat = {
      ours: _to_param(tensors[name].get_tensor(name), kind, dtype)
      for name, (ours, kind, _) in table.items()
    }
  return config, traverse_util.unflatten_dict(flat, sep='/'), hf_config


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


def _open_tensors(path: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Any]:
  """Open safetensors file by tensor name; nothing is read yet."""
  if (path / _WEIGHTS).is_file():
    file = _open(path / _WEIGHTS, stack)
    return dict.fromkeys(file.keys(), file)
  if not (path / _INDEX).is_file():
    others = sorted(found.name for glob in _OTHER_FORMATS for found in path.glob(glob))
    if others:
      raise UserError(
        f'{path} has its weights only as {others[0]}; convert them once with transformers: '
        "AutoModelForCausalLM.from_pretrained('...').save_pretrained('...')."
      )
    raise UserError(f'{path} has neither {_WEIGHTS} nor {_INDEX}; download the weights.')
  index = checkpoint.read_json(path / _INDEX)
  shard_of = index.get('weight_map') if isinstance(index, dict) else None
  if not isinstance(shard_of, dict) or not all(isinstance(s, str) for s in shard_of.values()):
    raise UserError(f'{path / _INDEX} has no weight_map; download the index again.')
  shards = sorted(set(shard_of.values()))
  absent = [shard for shard in shards if not (path / shard).is_file()]
  if absent:
    raise UserError(
      f'{path} lacks {len(absent)} of {len(shards)} weight files ({_some(absent)}); '
      'download the rest.'
    )
  tensors, misplaced = {}, []
  for shard in shards:
    file = _open(path / shard, stack)
    present = set(file.keys())
    listed = {name for name, of in shard_of.items() if of == shard}
    misplaced += sorted(present ^ listed)
    tensors.update(dict.fromkeys(present & listed, file))
  if misplaced:
    raise UserError(
      f'{path / _INDEX} does not match its weight files: {len(misplaced)} tensors are not where '
      f'it says ({_some(misplaced)}); download index and files again.'
    )
  return tensors


def _open(path: pathlib.Path, stack: contextlib.ExitStack) -> Any:
  try:
    return stack.enter_context(safetensors.safe_open(os.fspath(path), framework='numpy'))
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(
      f'{path} is not a whole safetensors file ({error}); download it again.'
    ) from error


def _with_renames(config: ModelConfig, tensors: Mapping[str, Any]) -> ModelConfig:
  """Follows the file where it begins names in another way than the family's table."""
  renames = FAMILIES[config.family].renames
  used = tuple((ours, _) for ours, _ in renames if not any(n.startswith(ours) for n in tensors))
  return dataclasses.replace(config, renames=used)


def _untie_if_different(
  config: ModelConfig, hf_config: dict[str, Any], tensors: Mapping[str, Any]
) -> tuple[ModelConfig, dict[str, Any]]:
  """Believes the file where the config says tied but the stored head is another matrix.

  transformers does the same. A stored head that equals the embedding is the usual case.
  """
  names = {path: config.stored_name(name) for name, path, _ in FAMILIES[config.family].names}
  head, embedding = names['head/kernel'], names['embed/embedding']
  if not config.tie_head or head not in tensors or embedding not in tensors:
    return config, hf_config
  if np.array_equal(tensors[head].get_tensor(head), tensors[embedding].get_tensor(embedding)):
    return config, hf_config
  untied = {**hf_config, 'tie_word_embeddings': False}
  return dataclasses.replace(config, tie_head=False), untied


def _check_names(
  path: pathlib.Path,
  config: ModelConfig,
  table: Mapping[str, tuple[str, str, tuple[int, ...]]],
  tensors: Mapping[str, Any],
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
    stored = tensors[name].get_slice(name)
    shape, want = tuple(stored.get_shape()), table[name][2]
    if shape != want:
      wrong.append(f'{name} is {list(shape)}, not {list(want)}')
    elif stored.get_dtype() not in ('F16', 'BF16', 'F32', 'F64'):
      wrong.append(f'{name} is stored as {stored.get_dtype()}')
  parts = [
    f'{len(found)} {sort} ({_some(found)})'
    for sort, found in (('unknown', unknown), ('missing', missing), ('mis-shaped', wrong))
    if found
  ]
  if parts:
    raise UserError(
      f'The tensors in {path} are not those of its config.json: {"; ".join(parts)}. '
      'Download the model again or correct config.json.'
    )


def _some(names: Sequence[str]) -> str:
  more = f' and {len(names) - _LISTED} more' if len(names) > _LISTED else ''
  return ', '.join(names[:_LISTED]) + more


def _to_param(tensor: np.ndarray, kind: str, dtype: str) -> jax.Array:
  # Cast and copied on the host: the device sees each tensor once, in its final form, and no array
  # keeps the file mapped.
  tensor = tensor.T if kind == 'kernel' else tensor
  return jnp.asarray(np.array(tensor, dtype=jnp.dtype(dtype), order='C'))


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


def fingerprint(params: Any) -> str:
  """Sixteen hexadecimal digits that change with any weight, name, shape or dtype."""
  flat = sorted(traverse_util.flatten_dict(params, sep='/').items())
  sums = jax.device_get([_checksum(jnp.asarray(leaf)) for _, leaf in flat])
  digest = hashlib.sha256()
  for (path, leaf), pair in zip(flat, sums, strict=True):
    digest.update(json.dumps([path, list(leaf.shape), str(leaf.dtype), pair.tolist()]).encode())
  return digest.hexdigest()[:16]


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
  """Writes a model as a Hugging Face directory that transformers loads.

  Args:
    path: the directory to be; it must not hold anything yet.
    config: sizes of the model.
    params: its parameters.
    hf_config: its config.json, as `load_directory` returned it.
    dtype: dtype of every stored tensor, to which edited float32 kernels are rounded once; None
      keeps each tensor's own.
    base: the parameters before the edits; with them the rounding is also measured against what
      the edits changed.
    source: model directory whose tokenizer and generation files are copied.
    tokenizer: transformers tokenizer to save; not needed with a `source` that has one.
    shard_bytes: largest weight file; more is written as shards with an index.

  Returns:
    What was written, and what rounding cost.

  Raises:
    UserError: where `path` holds something already or cannot be written.
  """
  flat = traverse_util.flatten_dict(params, sep='/')
  base_flat = {} if base is None else traverse_util.flatten_dict(base, sep='/')
  rows = [(name, ours, kind) for name, (ours, kind, _) in name_table(config).items()]
  stored = {name: jnp.dtype(dtype or flat[ours].dtype) for name, ours, _ in rows}
  written = str(wider(*stored.values()))
  sizes = {name: flat[ours].size * stored[name].itemsize for name, ours, _ in rows}
  shards = list(_shards(rows, sizes, shard_bytes))
  rounding: dict[str, Rounding] = {}
  weight_map: dict[str, str] = {}
  with checkpoint.atomic_directory(path) as beside:
    for number, shard in enumerate(shards, start=1):
      file = _WEIGHTS
      if len(shards) > 1:
        file = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
      tensors = {}
      for name, ours, kind in shard:
        exact = np.asarray(flat[ours])
        rounded = exact.astype(stored[name])
        if exact.dtype != rounded.dtype:
          cost = _rounding(exact, rounded, base_flat.get(ours))
          if cost.weight:
            rounding[name] = cost
        tensors[name] = rounded.T if kind == 'kernel' else rounded
        weight_map[name] = file
      checkpoint.write_tensors(beside / file, tensors)
    if len(shards) > 1:
      index = {'metadata': {'total_size': sum(sizes.values())}, 'weight_map': weight_map}
      checkpoint.write_json(beside / _INDEX, index)
    dtype_fields = dict.fromkeys(('dtype', *({'torch_dtype'} & hf_config.keys())), written)
    checkpoint.write_json(beside / 'config.json', {**hf_config, **dtype_fields})
    _save_companions(beside, source, tokenizer)
  return Export(path=pathlib.Path(path), dtype=written, rounding=rounding)


def _shards(
  rows: Iterable[tuple[str, str, str]], sizes: Mapping[str, int], limit: int
) -> Iterator[list[tuple[str, str, str]]]:
  shard: list[tuple[str, str, str]] = []
  filled = 0
  for row in rows:
    if shard and filled + sizes[row[0]] > limit:
      yield shard
      shard, filled = [], 0
    shard.append(row)
    filled += sizes[row[0]]
  yield shard


def _rounding(exact: np.ndarray, rounded: np.ndarray, before: Any) -> Rounding:
  wide = exact.astype(np.float64)
  error = float(np.linalg.norm(rounded.astype(np.float64) - wide))
  if not error:
    return Rounding(weight=0.0)
  changed = 0.0
  if before is not None:
    changed = float(np.linalg.norm(wide - np.asarray(before).astype(np.float64)))
  norm = float(np.linalg.norm(wide))
  return Rounding(weight=error / norm, update=error / changed if changed else None)


def _save_companions(
  beside: pathlib.Path, source: str | os.PathLike[str] | None, tokenizer: Any
) -> None:
  copied = False
  if source is not None:
    for name in _COMPANIONS:
      if (pathlib.Path(source) / name).is_file():
        shutil.copyfile(pathlib.Path(source) / name, beside / name)
        copied = copied or name != 'generation_config.json'
  if tokenizer is not None and not copied:
    tokenizer.save_pretrained(beside)
