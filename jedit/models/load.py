"""Hugging Face directories to parameters.

A family's name table (`Family.names`) maps stored tensor names to paths of parameters; matrices are
stored [out, in], parameters are [in, out]. Tensors are read one at a time, and all unknown, missing
and mis-shaped names are reported in one error.
"""

import collections
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from jedit.io import schema
from jedit.models.config import HfConfig, ModelConfig
from jedit.models.decoder import FAMILIES
from jedit.models.model import Model
from jedit.models.precision import check_dtype
from jedit.models.safetensors_index import (
  COMPANIONS,
  Stored,
  check_inside,
  count_bytes,
  in_order,
  open_tensors,
  some,
)
from jedit.models.sharding import param_shapes, param_shardings
from jedit.parallel.checksum import checksum
from jedit.parallel.memory import free_bytes
from jedit.parallel.mesh import fetch
from jedit.types import UserError


def _expected(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """Shapes of the parameters by path, without computing any."""
  flat = traverse_util.flatten_dict(param_shapes(config), sep='/')
  return {path: leaf.shape for path, leaf in flat.items()}


def name_table(config: ModelConfig) -> dict[str, tuple[str, str, tuple[int, ...]]]:
  """Contents of a directory of this config: Hugging Face name to (path, kind, stored shape)."""
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
) -> tuple[Model, dict[str, Any]]:
  """Reads the config and the weights of a Hugging Face directory, one tensor at a time.

  Args:
    path: directory with config.json and model.safetensors, whole or sharded with its index.
    dtype: of weights and activations.
    mesh: devices to shard the model over by its family's rules; each process reads only its own
      parts. None loads all on the default device.

  Returns:
    The model, and config.json unchanged.

  Raises:
    UserError: for an unusable directory or config, for tensors that are unknown, missing or
      mis-shaped (all in one message), and for a model larger than the free memory.
  """
  path = pathlib.Path(path)
  config, hf_config, tensors = _read_metadata(path, dtype)
  check_fits(str(path), config, dtype, mesh)
  table = name_table(config)
  shardings = {} if mesh is None else param_shardings(config, mesh)
  placed = traverse_util.flatten_dict(shardings, sep='/')
  flat = {}
  with count_bytes('loading', list(tensors.values())) as progress:
    for name, stored in tensors.items():
      if name in table:
        ours, kind, _ = table[name]
        flat[ours] = _to_param(stored, kind, dtype, placed.get(ours))
      progress(stored)
  return Model(traverse_util.unflatten_dict(flat, sep='/'), config=config), hf_config


def _check_sizes(path: pathlib.Path, config: ModelConfig, tensors: Mapping[str, Stored]) -> None:
  """Refuses sizes that no tensor has, before anything is made of them."""
  largest = max((size for stored in tensors.values() for size in stored.shape), default=0)
  sizes = {
    'layers': (config.num_layers, len(tensors)),
    'tokens in the vocabulary': (config.vocab_size, largest),
    'units in its hidden states': (config.width, largest),
    'units in its MLP': (config.ffn_width, largest),
    'units in its heads': (config.num_heads * config.head_dim, largest),
    'positions': (config.position_limit or 0, largest),
  }
  for name, (size, bound) in sizes.items():
    if size > bound:
      raise UserError(
        f'The config.json of {path} has {size} {name}, and its weights have no more than {bound}; '
        'correct it or download the model again.'
      )


def check_directory(path: str | os.PathLike[str], dtype: str = 'float32') -> ModelConfig:
  """The config of a directory that `load_directory` can read; no weights are read.

  Raises:
    UserError: as `load_directory`, except for the memory.
  """
  return _read_metadata(pathlib.Path(path), dtype)[0]


def _read_metadata(
  path: pathlib.Path, dtype: str
) -> tuple[ModelConfig, dict[str, Any], dict[str, Stored]]:
  """The config in both forms, and the places of all tensors."""
  check_dtype(dtype)
  hf_config = _read_hf_config(path)
  config = read_config(hf_config, dtype, path)
  tensors = open_tensors(path)
  config = _with_renames(config, tensors)
  _check_sizes(path, config, tensors)
  config, hf_config = _untie_if_different(config, hf_config, tensors)
  _check_names(path, config, name_table(config), tensors)
  return config, hf_config, tensors


def bytes_per_device(
  config: ModelConfig, dtype: str, mesh: Mesh | None = None, device: jax.Device | None = None
) -> dict[jax.Device, int]:
  """Bytes of the parameters on each device of this process; without mesh and device the default."""
  here = jax.sharding.SingleDeviceSharding(jnp.zeros(()).device if device is None else device)
  shardings = {} if mesh is None else param_shardings(config, mesh)
  placed = traverse_util.flatten_dict(shardings, sep='/')
  needed: collections.Counter[jax.Device] = collections.Counter()
  for ours, shape in _expected(config).items():
    sharding = placed.get(ours, here)
    for device in sharding.addressable_devices:
      needed[device] += math.prod(sharding.shard_shape(shape)) * jnp.dtype(dtype).itemsize
  return dict(needed)


def check_fits(
  label: str,
  config: ModelConfig,
  dtype: str,
  mesh: Mesh | None = None,
  device: jax.Device | None = None,
) -> None:
  """Raises a UserError for a model larger than the free memory of its devices."""
  needed = bytes_per_device(config, dtype, mesh, device)
  for platform in {device.platform for device in needed}:
    devices = [device for device in needed if device.platform == platform]
    # CPU devices share their memory.
    groups = [devices] if platform == 'cpu' else [[device] for device in devices]
    for group in groups:
      wanted, free = sum(needed[device] for device in group), free_bytes(group[0])
      if free is not None and wanted > free:
        raise UserError(
          f'{label} takes {wanted / 1e9:.1f} GB as {dtype} and {group[0]} has {free / 1e9:.1f} GB '
          'free; choose a narrower model.dtype, split it over more devices with mesh.model, or use '
          'a machine with more memory.'
        )


def read_sizes(path: str | os.PathLike[str], dtype: str) -> ModelConfig:
  """The config of a directory, which need not hold weights.

  Raises:
    UserError: for a missing or unusable config.json.
  """
  check_dtype(dtype)
  return read_config(_read_hf_config(pathlib.Path(path)), dtype, path)


def read_config(
  hf_config: Mapping[str, Any], dtype: str, label: str | os.PathLike[str]
) -> ModelConfig:
  """The sizes in a config.json; `label` names the model in errors.

  Raises:
    UserError: for a family or a form of weights that is not supported.
  """
  model_type = hf_config.get('model_type')
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    supported = ', '.join(sorted(FAMILIES))
    raise UserError(f'{label} has model_type {model_type!r}; supported are {supported}.')
  schema.check(HfConfig, hf_config, f'The config.json of {label}')
  if hf_config.get('quantization_config'):
    raise UserError(f'{label} holds quantised weights; give the unquantised model.')
  return FAMILIES[model_type].read_config(hf_config, dtype)


def _read_hf_config(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_dir():
    raise UserError(f'There is no model directory {path}; check the path.')
  if not (path / 'config.json').is_file():
    raise UserError(f'{path} has no config.json; give a directory in Hugging Face format.')
  check_inside(path, ('config.json', *COMPANIONS))
  hf_config = schema.read_json(path / 'config.json')
  if not isinstance(hf_config, dict):
    raise UserError(f'{path / "config.json"} is not an object; give a Hugging Face config.')
  return hf_config


def _with_renames(config: ModelConfig, tensors: Mapping[str, Any]) -> ModelConfig:
  """Takes the file's prefixes of tensor names where they differ from the family's table."""
  renames = FAMILIES[config.family].renames
  used = tuple((ours, _) for ours, _ in renames if not any(n.startswith(ours) for n in tensors))
  return dataclasses.replace(config, renames=used)


def _untie_if_different(
  config: ModelConfig, hf_config: dict[str, Any], tensors: Mapping[str, Stored]
) -> tuple[ModelConfig, dict[str, Any]]:
  """Unties the head if the stored head differs from the embedding, even if the config ties it.

  As in transformers. A stored head that equals the embedding is the usual case.
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
  if config.tie_head:  # stored although tied, and equal to the embedding
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
    return jnp.asarray(in_order(whole, dtype)).block_until_ready()
  return jax.make_array_from_callback(
    whole.shape, sharding, lambda index: in_order(whole[index], dtype)
  ).block_until_ready()


def fingerprint(model: Model) -> str:
  """Sixteen hexadecimal digits that change with any weight, name, shape, dtype or config field.

  The config counts because equal weights with other heads, positions or norms are another model.

  Raises:
    UserError: for a weight that is not finite.
  """
  flat = sorted(traverse_util.flatten_dict(model.params, sep='/').items())
  sums = fetch([checksum(jnp.asarray(leaf)) for _, leaf in flat])
  for (path, _), (*_, num_bad) in zip(flat, sums, strict=True):
    if num_bad:
      raise UserError(
        f'{num_bad} numbers of {path} are not finite; download the model again, or load it in a '
        'wider dtype.'
      )
  digest = hashlib.sha256(json.dumps(_given(model.config)).encode())
  for (path, leaf), found in zip(flat, sums, strict=True):
    about = [path, list(leaf.shape), str(leaf.dtype), found[:2].tolist()]
    digest.update(json.dumps(about).encode())
  return digest.hexdigest()[:16]


def _given(settings: Any) -> dict[str, Any]:
  """The fields that differ from their defaults, so that a new one changes nothing for old models.

  Omits the dtype of the activations, since parameters have their own, and a file's tensor names.
  """
  values = {f.name: (getattr(settings, f.name), f.default) for f in dataclasses.fields(settings)}
  return {
    name: _given(value) if dataclasses.is_dataclass(value) else value
    for name, (value, default) in values.items()
    if value != default and name not in ('dtype', 'renames')
  }
