"""LoRA adapters in PEFT's format, from the updates of a patch and back to them.

LoRA (arXiv:2106.09685) adds (α / r) · B A to a weight stored [out, in]. Kernels here are [in, out],
so an update `left @ right` of rank r is the adapter A = leftᵀ, B = rightᵀ with α = r: nothing is
trained, and without a `max_rank` nothing is lost. Every kernel has its own rank, and α follows it,
so that the factor α / r is 1 for all of them, also in servers that read `r` and `lora_alpha` alone.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pydantic

from jedit.io import schema, storage
from jedit.io.progress import Progress
from jedit.io.tensors import read_others, read_tensors, write_tensors
from jedit.models.config import Family
from jedit.models.decoder import FAMILIES
from jedit.models.update import Update
from jedit.types import UserError

_FORMAT = 'jedit lora 1'
_CONFIG, _WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'  # PEFT's names
_FACTOR = re.compile(r'(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight')


@dataclasses.dataclass(frozen=True)
class LoraExport:
  """Result of `Patch.to_lora`.

  Attributes:
    path: the directory.
    ranks: by parameter path.
    errors: by parameter path, the Frobenius norm of what the truncation to `max_rank` leaves out,
      over that of the update; 0 for kernels that keep their factors.
  """

  path: pathlib.Path
  ranks: Mapping[str, int]
  errors: Mapping[str, float]

  def __repr__(self) -> str:
    ranks, error = self.ranks.values(), max(self.errors.values())
    lost = f'at most {100 * error:.2g}% of an update left out' if error else 'exact'
    return f'LoraExport({self.path}: {len(ranks)} kernels, rank {max(ranks)} or less, {lost})'


class _Adapter(schema.Fields):
  """The fields of adapter_config.json that decide what an adapter computes."""

  peft_type: str
  r: schema.Positive
  lora_alpha: schema.Finite
  rank_pattern: dict[str, schema.Positive] | None = None
  alpha_pattern: dict[str, schema.Finite] | None = None
  base_model_name_or_path: str | None = None
  # Forms of LoRA that a patch cannot hold; PEFT writes them with an empty value if unused.
  bias: str = 'none'
  use_rslora: Any = None
  use_dora: Any = None
  use_qalora: Any = None
  lora_bias: Any = None
  modules_to_save: Any = None
  layer_replication: Any = None
  target_parameters: Any = None
  trainable_token_indices: Any = None
  alora_invocation_tokens: Any = None
  arrow_config: Any = None

  @pydantic.field_validator('bias')
  @classmethod
  def _none_is_empty(cls, bias: str) -> str:
    return '' if bias == 'none' else bias

  def unsupported(self) -> list[str]:
    """Names of the forms in use."""
    known = {'peft_type', 'r', 'lora_alpha', 'rank_pattern', 'alpha_pattern'}
    extras = type(self).model_fields.keys() - known - {'base_model_name_or_path'}
    return sorted(name for name in extras if getattr(self, name))

  def rank(self, module: str) -> int:
    """Rank of a module."""
    return _of_pattern(self.rank_pattern, module, self.r)

  def scale(self, module: str) -> float:
    """Factor α / r of a module."""
    return _of_pattern(self.alpha_pattern, module, self.lora_alpha) / self.rank(module)


def _of_pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
  """PEFT's rule: the first key, a regular expression, that matches the end of the name counts."""
  for key, value in (pattern or {}).items():
    if re.match(rf'(.*\.)?({key})$', module):
      return value
  return default


def _modules(family: Family) -> dict[str, str]:
  """Parameter paths of kernels to modules of transformers, '{}' for the layer."""
  return {
    ours: name.removesuffix('.weight') for name, ours, _ in family.names if ours.endswith('/kernel')
  }


def _stored_in_out(family: Family) -> bool:
  """True for a family whose modules store kernels [in, out], as transformers' Conv1D."""
  return any(ours.endswith('/kernel') and kind == 'plain' for _, ours, kind in family.names)


def write_adapter(
  path: str | os.PathLike[str],
  updates: Mapping[str, Update],
  family: str,
  max_rank: int | None,
  facts: Mapping[str, Any],
) -> LoraExport:
  """Writes an adapter directory that PEFT loads; see `Patch.to_lora`.

  Args:
    path: a new or empty directory.
    updates: by parameter path.
    family: `model_type` of the model, whose modules PEFT names.
    max_rank: the largest rank of a kernel; None keeps every update whole.
    facts: JSON values that `read_adapter` gives back.
  """
  modules = {ours: _module(ours, family) for ours in updates}
  _check_ranks(updates, max_rank)
  tensors: dict[str, np.ndarray] = {}
  ranks, errors = {}, {}
  with Progress('adapter', len(updates), 'kernels') as progress:
    for ours, update in updates.items():
      left_FxR, right_RxD, errors[ours] = update.factors(max_rank)
      ranks[ours] = left_FxR.shape[1]
      tensors[f'base_model.model.{modules[ours]}.lora_A.weight'] = left_FxR.T
      tensors[f'base_model.model.{modules[ours]}.lora_B.weight'] = right_RxD.T
      progress.update()
  rank = max(ranks.values())
  others = {modules[ours]: each for ours, each in ranks.items() if each != rank}
  config = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': None,
    'inference_mode': True,
    'target_modules': list(modules.values()),
    'fan_in_fan_out': _stored_in_out(FAMILIES[family]),
    'r': rank,
    'lora_alpha': rank,
    'rank_pattern': others,
    'alpha_pattern': others,
    'lora_dropout': 0.0,
    'bias': 'none',
    'use_rslora': False,
    'use_dora': False,
    'modules_to_save': None,
  }
  with storage.atomic_directory(path) as beside:
    write_tensors(
      beside / _WEIGHTS, _FORMAT, tensors, {**facts, 'errors': errors}, header={'format': 'pt'}
    )
    storage.write_json(beside / _CONFIG, config)
  return LoraExport(pathlib.Path(path), ranks, errors)


def _module(ours: str, family: str) -> str:
  """The module of a kernel."""
  if family not in FAMILIES:
    raise UserError(f'Unknown family {family!r}; choose from {", ".join(sorted(FAMILIES))}.')
  pattern, layer = _without_layer(ours, r'(?<=block_)\d+')
  if not layer or not ours.endswith('/kernel'):  # releases of transformers differ in heads' names
    raise UserError(
      f'The patch changes {ours}, and a LoRA adapter holds kernels of blocks alone; edit only '
      "these (fine-tuning: parameters='mlp_kernel'), or export the whole edited model."
    )
  module = _modules(FAMILIES[family]).get(pattern)
  if module is None:
    raise UserError(
      f'The patch changes {ours}, which models of the family {family} lack; give the family of the '
      'model that it was made on.'
    )
  return module.replace('{}', layer)


def _without_layer(name: str, number: str) -> tuple[str, str]:
  """A name with '{}' for its first layer number, and the number; '' for a name without one."""
  found = re.search(number, name)
  return (name, '') if found is None else (re.sub(number, '{}', name, count=1), found[0])


def _check_ranks(updates: Mapping[str, Update], max_rank: int | None) -> None:
  for ours, update in updates.items():
    if not all(np.isfinite(array).all() for array in update.tensors().values()):
      raise UserError(f'The change of {ours} is not finite; make the edit again.')
    if max_rank is None:
      continue
    if not 1 <= max_rank <= min(update.shape):
      raise UserError(
        f'max_rank is {max_rank} and {ours} of {" x ".join(map(str, update.shape))} has ranks from '
        f'1 to {min(update.shape)}; give one of these, or none for the exact adapter.'
      )


def read_adapter(
  path: str | os.PathLike[str],
) -> tuple[dict[str, Update], dict[str, Any] | None, dict[str, Any]]:
  """Reads an adapter directory; see `Patch.from_lora`.

  Returns:
    Updates by parameter path; the facts that `write_adapter` stored, or None for an adapter of
    another program or with another factor α / r; what the config says of the adapter.
  """
  folder = pathlib.Path(path)
  for name in (_CONFIG, _WEIGHTS):
    if not (folder / name).is_file():
      raise UserError(f'{folder} has no {name}; give the directory of a LoRA adapter of PEFT.')
  config = schema.read_json(folder / _CONFIG, _Adapter)
  if config.peft_type != 'LORA' or config.unsupported():
    form = ', '.join(config.unsupported()) if config.peft_type == 'LORA' else config.peft_type
    raise UserError(
      f'The adapter in {folder} uses {form}, which a patch cannot hold; merge it into its model '
      "with PEFT's merge_and_unload and load that model."
    )
  tensors, metadata = read_others(folder / _WEIGHTS)
  facts = None
  if 'jedit' in metadata:
    tensors, facts = read_tensors(folder / _WEIGHTS, _FORMAT)
  factors: dict[str, dict[str, np.ndarray]] = {}
  for name, tensor in tensors.items():
    found = _FACTOR.fullmatch(name)
    if found is None:
      raise UserError(
        f'The adapter in {folder} holds {name}, which is no factor of a linear layer; merge it '
        "into its model with PEFT's merge_and_unload and load that model."
      )
    factors.setdefault(found[1], {})[found[2]] = tensor.astype(np.float32)
  paths, updates, scales = _paths(), {}, set()
  for module, sides in factors.items():
    pattern, layer = _without_layer(module, r'(?<=\.)\d+(?=\.)')
    if pattern not in paths:
      raise UserError(
        f'The adapter in {folder} changes {module}, which no supported family has; give one for '
        f'a model of the families {", ".join(sorted(FAMILIES))}.'
      )
    rank, shapes = config.rank(module), [sides[side].shape for side in sides]
    if len(sides) != 2 or sides['A'].shape[:1] != (rank,) or sides['B'].shape[1:] != (rank,):
      raise UserError(
        f'The adapter in {folder} has factors of shapes {shapes} for {module} and rank {rank} in '
        f'its {_CONFIG}; write or download it again.'
      )
    scales.add(scale := config.scale(module))
    right_RxD = (scale * sides['B'].T.astype(np.float64)).astype(np.float32)
    updates[paths[pattern].replace('{}', layer)] = Update.from_factors(sides['A'].T, right_RxD)
  if not updates:
    raise UserError(f'The adapter in {folder} is empty; give one that changes a layer.')
  about = {'base_model_name_or_path': config.base_model_name_or_path, 'rank': config.r}
  return updates, facts if scales == {1.0} else None, about


def _paths() -> dict[str, str]:
  """Modules of transformers to parameter paths, of all families, '{}' for the layer.

  Families that share the name of a module share its path. Models without a head lack the prefix
  of those with one, as in `Family.renames`.
  """
  paths: dict[str, str] = {}
  for family in FAMILIES.values():
    for ours, module in _modules(family).items():
      names = [module]
      for prefix, other in family.renames:
        names += [other + module.removeprefix(prefix)] * module.startswith(prefix)
      for name in names:
        assert paths.setdefault(name, ours) == ours, f'{name} stands for two kernels'
  return paths
