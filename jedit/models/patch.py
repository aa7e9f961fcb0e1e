"""Patch: what an edit did to a model, apart from the model it was made on.

Parameters never change in place. A patch keeps, per kernel, the update, as a pair of factors where
these are smaller than the kernel, and per site, for methods that change activations instead, an
intervention, with the provenance that made them. A model with patches is recomputed from its base
kernels, so reverting one restores the bits.
"""

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.io import html
from jedit.io.memo import Stored
from jedit.io.tensors import read_tensors, write_tensors
from jedit.models.lora import LoraExport, read_adapter, write_adapter
from jedit.models.sites import KINDS, PLACES, Chain, Intervention, chained, steps_of
from jedit.models.update import Update
from jedit.parallel.mesh import fetch
from jedit.types import UserError

_FORMAT = 'jedit patch 3'
LISTED = 5  # kernels, sites or patches that a repr names
SHOWN = 40  # parameters that a notebook shows


@dataclasses.dataclass(frozen=True, eq=False)
class Patch:
  """Updates by parameter path ('block_3/mlp/down/kernel') and where they come from.

  Attributes:
    updates: by parameter path.
    provenance: JSON-able description: method, fingerprint of the base model, seeds, requests.
    interventions: by site ('3/mlp_out'); empty for methods that write weights.
  """

  updates: Mapping[str, Update]
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  interventions: Mapping[str, Intervention] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    if not self.updates and not self.interventions:
      raise UserError('The patch changes no kernel and no site; give an update or intervention.')

  @property
  def title(self) -> str:
    """One line: id, method and number of edits."""
    method = self.provenance.get('method', {}).get('name', 'an unknown method')
    count = self.provenance.get('num_edits')
    edits = 'edits' if count is None else f'{count} edit{"s" if count != 1 else ""}'
    return f'Patch {self.id}: {edits} by {method}'

  def __repr__(self) -> str:
    lines = [self.title, f'  base model {self.provenance.get("model", "unknown")}']
    if self.before:
      earlier = f' and {len(self.before) - 1} earlier' if len(self.before) > 1 else ''
      lines.append(f'  on top of {self.before[-1]}{earlier}')
    changes = [*self.updates.items(), *self.interventions.items()]
    for name, change in changes[:LISTED]:
      kind = repr(change) if isinstance(change, Update) else type(change).__name__
      lines.append(f'  {name}: {kind}')
    more = len(changes) - LISTED
    return '\n'.join([*lines, *([f'  and {more} more'] if more > 0 else [])])

  def _repr_html_(self) -> str:
    return html.block(self.to_html())

  def to_html(self) -> str:
    """Kernels with rank and norm as bars, and interventions, for notebooks."""
    about = f'base model {self.provenance.get("model", "unknown")}'
    if self.before:
      about += f', on top of {", ".join(self.before)}'
    parts = [html.paragraph(self.title), html.paragraph(about, 'note')]
    shown = dict(list(self.updates.items())[:SHOWN])
    if shown:
      norms = html.bars([each.norm() if each.is_small else math.nan for each in shown.values()])
      cells = [
        [path, ' x '.join(map(str, each.shape)), str(each.rank or 'dense'), norm]
        for (path, each), norm in zip(shown.items(), norms, strict=True)
      ]
      parts.append(html.rows(['parameter', 'size', 'rank', 'norm of the update'], cells, 'bars'))
    if len(self.updates) > SHOWN:
      parts.append(html.paragraph(f'and {len(self.updates) - SHOWN} more', 'note'))
    if self.interventions:
      kinds = [[name, type(each).__name__] for name, each in self.interventions.items()]
      parts.append(html.rows(['site', 'intervention'], kinds))
    return ''.join(parts)

  @functools.cached_property
  def id(self) -> str:
    """Hash of updates and interventions: two patches with the same id do the same."""
    digest = hashlib.sha256()

    def add(name: str, array: np.ndarray) -> None:
      digest.update(f'{name}{array.shape}'.encode())
      digest.update(np.ascontiguousarray(array).tobytes())

    for path in sorted(self.updates):
      for name, array in sorted(self.updates[path].tensors().items()):
        add(f'{path}/{name}', array)
    for place in sorted(self.interventions):
      for number, step in enumerate(steps_of(self.interventions[place])):
        for name, value in sorted(vars(step).items()):
          for leaf in jax.tree.leaves(value):
            add(f'{place}/{number}/{type(step).__name__}/{name}', np.asarray(fetch(leaf)))
    return digest.hexdigest()[:16]

  @property
  def names(self) -> tuple[str, ...]:
    """Its id and, of a merged patch, before it those of its parts."""
    return (*self.provenance.get('patches', ()), self.id)

  @property
  def before(self) -> Sequence[str]:
    """Ids of the patches that the model had when this one was made."""
    return tuple(self.provenance.get('patches_before', ()))

  def anywhere(self) -> 'Patch':
    """The same changes for any model of these shapes, on top of any patches."""
    provenance = {
      name: value
      for name, value in self.provenance.items()
      if name not in ('model', 'patches_before')
    }
    return dataclasses.replace(self, provenance=provenance)

  def pack(self) -> Stored:
    """Arrays and facts of the file.

    Raises:
      UserError: for an intervention of a kind that files do not hold.
    """
    tensors = {
      f'{key}:{name}': array
      for key, update in self.updates.items()
      for name, array in update.tensors().items()
    }
    interventions = {}
    for name, intervention in self.interventions.items():
      interventions[name], arrays = _pack_steps(name, intervention)
      tensors |= arrays
    facts = {'id': self.id, 'provenance': dict(self.provenance), 'interventions': interventions}
    return Stored(tensors, facts, _FORMAT)

  @classmethod
  def unpack(cls, stored: Stored) -> 'Patch':
    """The patch that `pack` stored.

    Raises:
      UserError: if it has another id than the facts say.
    """
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in stored.tensors.items():
      key, _, part = name.rpartition(':')
      if part in ('left', 'right', 'dense'):  # the file of a batch has its keys besides
        parts.setdefault(key, {})[part] = array
    updates = {
      key: Update(left_FxR=p.get('left'), right_RxD=p.get('right'), dense=p.get('dense'))
      for key, p in parts.items()
    }
    interventions = {
      name: _unpack_steps(name, kinds, stored.tensors)
      for name, kinds in stored.facts['interventions'].items()
    }
    patch = cls(updates, stored.facts['provenance'], interventions)
    if patch.id != stored.facts['id']:
      raise UserError(
        f'The patch stored as {stored.facts["id"]} has the id {patch.id}; restore its file, or '
        'make the edit again.'
      )
    return patch

  def save(self, path: str | os.PathLike[str], key: Any = None) -> None:
    """Writes a safetensors file with id and provenance in its header.

    Args:
      path: the file.
      key: everything that the patch was made of, for a file that a run reads again.
    """
    stored = self.pack()
    write_tensors(path, stored.format, stored.tensors, stored.facts, key)

  @classmethod
  def load(cls, path: str | os.PathLike[str], key: Any = None) -> 'Patch':
    """Reads what `save` wrote.

    Args:
      path: the file.
      key: what it must be made of; None takes any.

    Raises:
      UserError: if the file is missing, damaged, not a patch or of another key.
    """
    return cls.unpack(Stored(*read_tensors(path, _FORMAT, key)))

  def to_lora(
    self,
    path: str | os.PathLike[str],
    max_rank: int | None = None,
    family: str | None = None,
  ) -> LoraExport:
    """Writes the updates as a LoRA adapter that PEFT loads onto the unedited model.

    Args:
      path: a new or empty directory.
      max_rank: the largest rank of a kernel: larger ones keep their largest singular values. None
        writes the exact update, of rank 100 for 100 edits.
      family: `model_type` of the model, such as 'gptj'; None takes that of the provenance.

    Returns:
      Ranks and truncation errors by kernel.

    Raises:
      UserError: for a patch that no adapter can hold (interventions, biases, norms, embeddings), a
        rank above a kernel's size, and a patch on top of others, which the adapter would lack.
    """
    if self.interventions:
      raise UserError(
        f'The patch has interventions at {", ".join(sorted(self.interventions))}, which a LoRA '
        'adapter cannot hold; keep it as a patch file.'
      )
    if self.before:
      raise UserError(
        f'Patch {self.id} was made on top of {", ".join(self.before)}, which its adapter would '
        'lack; write that of jedit.models.patch.merge of all of them, or that of patch.anywhere().'
      )
    family = family or self.provenance.get('family')
    if family is None:
      raise UserError("The patch does not name its model's family; give one, such as 'gptj'.")
    facts = {'patch': self.id, 'provenance': {**self.provenance, 'family': family}}
    return write_adapter(path, self.updates, family, max_rank, facts)

  @classmethod
  def from_lora(cls, path: str | os.PathLike[str]) -> 'Patch':
    """Reads a LoRA adapter of `to_lora` or PEFT as a patch.

    Only an adapter of `to_lora`, unchanged, keeps its provenance; one made elsewhere does not say
    which weights it was trained on, and goes onto any model of its shapes.

    Args:
      path: directory with adapter_config.json and adapter_model.safetensors.

    Raises:
      UserError: for another kind of adapter, modules that no family has, and damaged files.
    """
    updates, facts, about = read_adapter(path)
    if facts is None:
      return cls(updates, {'method': {'name': 'lora'}, 'adapter': about})
    lost = {name: error for name, error in facts['errors'].items() if error}
    truncated = {'truncated': {'patch': facts['patch'], 'errors': lost}} if lost else {}
    return cls(updates, {**facts['provenance'], **truncated})


def _pack_steps(name: str, intervention: Intervention) -> tuple[list[str], dict[str, Any]]:
  """The kinds of the interventions at a site, and their arrays by name in the file."""
  kinds, arrays = [], {}
  for number, step in enumerate(steps_of(intervention)):
    kind = type(step).__name__
    if KINDS.get(kind) is not type(step):
      raise UserError(
        f'The intervention at {name} is of kind {kind}, and patch files hold those of kind '
        f'{" and ".join(KINDS)} alone; keep the patch in memory or add its kind to '
        'jedit.models.sites.KINDS.'
      )
    kinds.append(kind)
    for field in dataclasses.fields(step):  # type: ignore[arg-type]
      arrays[f'{name}:{number}:{field.name}'] = fetch(getattr(step, field.name))
  return kinds, arrays


def _unpack_steps(
  name: str, kinds: Sequence[str], tensors: Mapping[str, np.ndarray]
) -> Intervention:
  """The interventions that `_pack_steps` stored; only classes of `KINDS` are called."""
  steps = []
  for number, kind in enumerate(kinds):
    fields = [field.name for field in dataclasses.fields(KINDS[kind])] if kind in KINDS else None
    if fields is None or any(f'{name}:{number}:{field}' not in tensors for field in fields):
      raise UserError(
        f'The patch has an intervention of kind {kind} at {name} that this version does not read; '
        'use the version of jedit that wrote it.'
      )
    steps.append(KINDS[kind](**{field: tensors[f'{name}:{number}:{field}'] for field in fields}))
  return steps[0] if len(steps) == 1 else Chain(tuple(steps))


def check_sites(interventions: Mapping[str, Intervention], num_layers: int) -> None:
  """Raises a UserError for numbers that are not finite and sites that so many layers lack."""
  for name, intervention in interventions.items():
    if not all(np.isfinite(fetch(leaf)).all() for leaf in jax.tree.leaves(intervention)):
      raise UserError(f'The change at {name} is not finite; make the edit again.')
    layer, _, place = name.partition('/')
    if not layer.isdecimal() or int(layer) >= num_layers or place not in PLACES:
      raise UserError(
        f'The patch changes {name}, but the model has no such site; apply it to the model it was '
        'made on.'
      )


def patch_of(result: Any) -> Patch:
  """A patch, or that of an edit's result.

  Raises:
    UserError: for separate batches, which have none in common, and for anything else.
  """
  patch = getattr(result, 'patch', result)
  if patch is None:
    raise UserError(
      'The batches were edited separately and have no common patch; take those of result.batches.'
    )
  if not isinstance(patch, Patch):
    raise UserError(f'{type(result).__name__} is not a patch; give what jedit.edit returns.')
  return patch


def merge(patches: Sequence[Patch]) -> Patch:
  """One patch that does what several do one after the other.

  Args:
    patches: made on one model, each on top of those before it; at least one.
  """
  updates: dict[str, Update] = {}
  for path in dict.fromkeys(path for patch in patches for path in patch.updates):
    parts = [patch.updates[path] for patch in patches if path in patch.updates]
    if all(part.left_FxR is not None for part in parts):
      updates[path] = Update.from_factors(
        np.concatenate([part.left_FxR for part in parts], axis=1),
        np.concatenate([part.right_RxD for part in parts]),
      )
    else:
      total = sum(part.value().astype(np.float64) for part in parts)
      updates[path] = Update(dense=np.asarray(total, np.float32))
  provenances = [dict(patch.provenance) for patch in patches]
  return Patch(
    updates,
    interventions=chained(*(patch.interventions for patch in patches)),
    provenance={
      'model': provenances[0].get('model'),
      'family': provenances[0].get('family'),
      'patches_before': provenances[0].get('patches_before', []),
      'patches': [patch.id for patch in patches],
      'method': provenances[0].get('method', {}),
      'num_edits': sum(each.get('num_edits', 0) for each in provenances),
      'targets': [stage for each in provenances for stage in each.get('targets', ())],
      'merged': provenances,
    },
  )


def patched(params: Any, updates: Mapping[str, Update]) -> Any:
  """Parameters with updates added; everything else is shared with `params`.

  The changed arrays become float32 (bfloat16 would store a 1% update with 17% error).

  Args:
    params: nested dict of arrays.
    updates: by path.

  Raises:
    UserError: for a path or shape that the model does not have, and a change that is not finite.
  """
  for path, update in updates.items():
    keys = path.split('/')
    leaf: Any = params
    for key in keys:
      leaf = leaf.get(key) if isinstance(leaf, Mapping) else None
    if leaf is None or leaf.shape != update.shape:
      has = 'no such parameter' if leaf is None else f'shape {leaf.shape}'
      raise UserError(
        f'The patch changes {path} of shape {update.shape}, but the model has {has}; '
        'apply it to the model it was made on.'
      )
    change = update.value()
    if not np.isfinite(change).all():
      raise UserError(
        f'The change of {path} is not finite; make the edit again with other settings.'
      )
    params = _with_leaf(params, keys, _add(leaf, change))
  return params


@jax.jit
def _add(kernel: jax.Array, change: jax.Array) -> jax.Array:
  return kernel.astype(jnp.float32) + change


def _with_leaf(tree: Mapping[str, Any], keys: list[str], leaf: Any) -> dict[str, Any]:
  """A copy of the nested dict with one leaf changed; siblings are shared."""
  head, *rest = keys
  return {**tree, head: _with_leaf(tree[head], rest, leaf) if rest else leaf}
