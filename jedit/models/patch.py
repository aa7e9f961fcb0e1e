"""Patch: what an edit did to the kernels, apart from the model it was made on.

Parameters never change in place. A patch keeps, per kernel, the update, as a pair of factors where
these are smaller than the kernel, with the provenance that made it. A model with patches is
recomputed from its base kernels, so reverting one restores the bits.
"""

import dataclasses
import hashlib
import html
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.io.memo import Stored
from jedit.io.storage import read_tensors, write_tensors
from jedit.types import UserError

_FORMAT = 'jedit-patch-1'


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
  """Change of one parameter: `left @ right`, or `dense`; float32.

  Attributes:
    left_FxR, right_RxD: low-rank factors, for kernels [in, out].
    dense: the change itself, of any shape.
  """

  left_FxR: np.ndarray | None = None
  right_RxD: np.ndarray | None = None
  dense: np.ndarray | None = None

  @classmethod
  def from_factors(cls, left_FxR: np.ndarray, right_RxD: np.ndarray) -> 'Update':
    """Keeps the factors where they are smaller than their product, which is made in float64."""
    (rows, rank), columns = left_FxR.shape, right_RxD.shape[1]
    if rank * (rows + columns) < rows * columns:
      return cls(left_FxR=left_FxR.astype(np.float32), right_RxD=right_RxD.astype(np.float32))
    return cls(dense=(left_FxR.astype(np.float64) @ right_RxD).astype(np.float32))

  @property
  def shape(self) -> tuple[int, ...]:
    if self.dense is not None:
      return self.dense.shape
    assert self.left_FxR is not None and self.right_RxD is not None
    return self.left_FxR.shape[0], self.right_RxD.shape[1]

  def value(self) -> np.ndarray:
    """The change as one float32 array."""
    if self.dense is not None:
      return self.dense
    assert self.left_FxR is not None and self.right_RxD is not None
    return (self.left_FxR.astype(np.float64) @ self.right_RxD.astype(np.float64)).astype(np.float32)

  def norm(self) -> float:
    """Frobenius norm; of factors as tr(LᵀL RRᵀ), without their product."""
    if self.dense is not None:
      return float(np.linalg.norm(self.dense.astype(np.float64)))
    assert self.left_FxR is not None and self.right_RxD is not None
    left_FxR, right_RxD = self.left_FxR.astype(np.float64), self.right_RxD.astype(np.float64)
    square = np.sum((left_FxR.T @ left_FxR) * (right_RxD @ right_RxD.T))
    return float(np.sqrt(max(square, 0.0)))

  def tensors(self) -> dict[str, np.ndarray]:
    """The arrays that are stored, by field name."""
    fields = {'left': self.left_FxR, 'right': self.right_RxD, 'dense': self.dense}
    return {name: array for name, array in fields.items() if array is not None}


@dataclasses.dataclass(frozen=True, eq=False)
class Patch:
  """Updates by parameter path ('block_3/mlp/down/kernel') and where they come from.

  Attributes:
    updates: by parameter path.
    provenance: JSON-able description: method, fingerprint of the base model, seeds, requests.
  """

  updates: Mapping[str, Update]
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    if not self.updates:
      raise UserError('The patch changes no kernel; write at least one.')

  def __repr__(self) -> str:
    method, num_edits = self.provenance.get('method', {}), self.provenance.get('num_edits', '?')
    paths = list(self.updates)
    more = f' and {len(paths) - 6} more' if len(paths) > 6 else ''
    return (
      f'Patch {self.id}: {num_edits} edits by {method.get("name", "an unknown method")}\n'
      f'  updates {", ".join(paths[:6])}{more}'
    )

  def _repr_html_(self) -> str:
    return f'<pre>{html.escape(repr(self))}</pre>'

  @property
  def id(self) -> str:
    """Hash of the updates: two patches with the same id do the same."""
    digest = hashlib.sha256()
    for path in sorted(self.updates):
      for name, array in sorted(self.updates[path].tensors().items()):
        digest.update(f'{path}/{name}{array.shape}'.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]

  def pack(self) -> Stored:
    """Arrays and facts of the file."""
    tensors = {
      f'{key}:{name}': array
      for key, update in self.updates.items()
      for name, array in update.tensors().items()
    }
    return Stored(tensors, {'format': _FORMAT, 'provenance': dict(self.provenance)})

  @classmethod
  def unpack(cls, stored: Stored) -> 'Patch':
    """The patch that `pack` stored."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in stored.tensors.items():
      key, _, part = name.rpartition(':')
      if part in ('left', 'right', 'dense'):  # the file of a batch has its keys besides
        parts.setdefault(key, {})[part] = array
    updates = {
      key: Update(left_FxR=p.get('left'), right_RxD=p.get('right'), dense=p.get('dense'))
      for key, p in parts.items()
    }
    return cls(updates, stored.facts['provenance'])

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes a safetensors file with the provenance in its header."""
    write_tensors(path, *self.pack())

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> 'Patch':
    """Reads what `save` wrote.

    Raises:
      UserError: if the file is missing or no patch.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get('format') != _FORMAT:
      raise UserError(f'{path} is no jedit patch; give a file written by Patch.save.')
    return cls.unpack(Stored(tensors, metadata))


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
    {
      'model': provenances[0].get('model'),
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
    UserError: for a path or shape that the model does not have.
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
    params = _with_leaf(params, keys, _add(leaf, update.value()))
  return params


@jax.jit
def _add(kernel: jax.Array, change: jax.Array) -> jax.Array:
  return kernel.astype(jnp.float32) + change


def _with_leaf(tree: Mapping[str, Any], keys: list[str], leaf: Any) -> dict[str, Any]:
  """A copy of the nested dict with one leaf changed; siblings are shared."""
  head, *rest = keys
  return {**tree, head: _with_leaf(tree[head], rest, leaf) if rest else leaf}
