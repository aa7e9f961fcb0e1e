"""Editor: trained nets with the statistics that normalise their rows, and where they come from."""

import dataclasses
import functools
import hashlib
import html
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jedit.hypernetworks.net import Params, init, shardings
from jedit.hypernetworks.settings import Settings
from jedit.hypernetworks.statistics import Statistics
from jedit.io.storage import to_json
from jedit.io.tensors import read_tensors, write_tensors
from jedit.models.language_model import LanguageModel
from jedit.parallel.mesh import fetch, mesh_of, place
from jedit.types import Kernel, UserError

_FORMAT = 'jedit editor 1'
# What the nets of an editor were made for; a method with other values cannot use them.
_SHAPE = ('name', 'edited_layers', 'edited_kernels', 'rank', 'num_blocks', 'shared')


@dataclasses.dataclass(frozen=True, eq=False)
class Editor:
  """What `jedit.train_editor` makes, for `jedit.edit(..., editor=editor)`.

  Attributes:
    settings: of the method and of the training.
    params: nets by name: blocks, step sizes and for MALMEN the logarithms of the ridges.
    statistics: of the rows, by name of the net.
    model: fingerprint of the base model; empty for an editor converted without one.
    tokens_per_edit: mean number of target tokens of an edit in training; 0 if it is unknown.
    provenance: JSON-able: data, steps, seconds and losses of the training.
  """

  settings: Settings
  params: Params
  statistics: Mapping[str, Statistics]
  model: str
  tokens_per_edit: float = 0.0
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __repr__(self) -> str:
    made = self.settings
    kernels = ', '.join(map(str, made.edits[:6])) + (' ...' if len(made.edits) > 6 else '')
    steps, seconds = self.provenance.get('steps'), self.provenance.get('seconds')
    lines = [
      f'Editor {self.id}: {made.name}, {self.num_params:,} parameters',
      f'  base model {self.model or "unknown"}',
      f'  kernels {kernels}',
    ]
    if steps is not None:
      lines.append(f'  trained for {steps} steps, {seconds:.0f} s')
    return '\n'.join(lines)

  def _repr_html_(self) -> str:
    return f'<pre>{html.escape(repr(self))}</pre>'

  @property
  def num_params(self) -> int:
    """Numbers in the nets."""
    return sum(leaf.size for leaf in jax.tree.leaves(self.params))

  @functools.cached_property
  def id(self) -> str:
    """Hash of nets and statistics."""
    digest = hashlib.sha256()
    for name, array in sorted(self._tensors().items()):
      digest.update(f'{name}{array.shape}{array.dtype}'.encode())
      digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]

  def save(self, path: str | os.PathLike[str], key: Any = None) -> None:
    """Writes a safetensors file with settings, base model and provenance in its header.

    Args:
      path: the file.
      key: everything that the training worked with; None for a file that is used anywhere.
    """
    facts = {
      'settings': self.settings,
      'model': self.model,
      'tokens_per_edit': self.tokens_per_edit,
      'provenance': dict(self.provenance),
    }
    write_tensors(path, _FORMAT, self._tensors(), to_json(facts), key)

  @classmethod
  def load(cls, path: str | os.PathLike[str], key: Any = None) -> 'Editor':
    """Reads what `save` wrote; files of the released codes go through `convert_editor`.

    Args:
      path: the file.
      key: what it must be made of; None takes any.

    Raises:
      UserError: if the file is missing, damaged, no editor or, with a `key`, of another training.
    """
    tensors, facts = read_tensors(path, _FORMAT, key)
    given: dict[str, Any] = {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in facts['settings'].items()
    }
    params: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, array in tensors.items():
      kind, net, *rest = name.split('/')
      if kind == 'statistics':
        found.setdefault(net, {})[rest[0]] = array
        continue
      place = params.setdefault(net, {})
      for part in rest[:-1]:
        place = place.setdefault(part, {})
      place[rest[-1]] = array
    return cls(
      Settings(**given),
      params,
      {net: Statistics(**parts) for net, parts in found.items()},
      facts['model'],
      facts['tokens_per_edit'],
      facts['provenance'],
    )

  def check(self, lm: LanguageModel, settings: Settings) -> None:
    """Raises UserError unless the editor is for this model and these kernels."""
    if self.model and self.model != lm.fingerprint:
      raise UserError(
        f'The editor was trained for a model with fingerprint {self.model}, this one has '
        f'{lm.fingerprint}; train one for this model, or load the model it was trained for.'
      )
    for field in _SHAPE:
      ours, theirs = getattr(self.settings, field), getattr(settings, field)
      if ours != theirs:
        raise UserError(
          f'The editor was trained with {_public(field)} {ours!r}, the method has {theirs!r}; '
          f'give the method of the training, or train an editor for this one.'
        )
    wanted = jax.eval_shape(lambda: init(lm.config, self.settings, jax.random.key(0))[0])
    shapes = [(leaf.shape, str(path)) for path, leaf in jax.tree_util.tree_leaves_with_path(wanted)]
    ours_ = [
      (leaf.shape, str(path)) for path, leaf in jax.tree_util.tree_leaves_with_path(self.params)
    ]
    if shapes != ours_:
      raise UserError(
        'The nets of the editor do not fit the kernels of this model; train an editor for it.'
      )

  def placed(self, model: Any) -> tuple[Params, Mapping[str, Statistics]]:
    """Nets and statistics on the devices of a model, placed once."""
    mesh = mesh_of(model)
    if mesh not in self._placed:
      tree = (self.params, dict(self.statistics))
      self._placed.clear()
      self._placed[mesh] = place_nets(mesh, tree)
    return self._placed[mesh]

  @functools.cached_property
  def _placed(self) -> dict[Any, Any]:
    return {}

  def rate(self, kernel: Kernel, plan: Any) -> float:
    """Step size of a kernel."""
    [(_, net, mode)] = [each for each in plan if each.kernel == kernel]
    return float(fetch(self.params[net]['rate'])[mode])

  def _tensors(self) -> dict[str, np.ndarray]:
    found = {}
    for kind, tree in (('nets', self.params), ('statistics', dict(self.statistics))):
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = [str(getattr(part, 'key', getattr(part, 'name', ''))) for part in path]
        found['/'.join([kind, *names])] = np.asarray(fetch(leaf))
    return found


def place_nets(mesh: Any, tree: Any) -> Any:
  """Nets on one device, or over the axis 'model' of a mesh."""
  if mesh is None:
    return jax.tree.map(jax.device_put, tree)
  return jax.tree.map(
    lambda leaf, sharding: place(fetch(leaf), sharding), tree, shardings(mesh, tree)
  )


def _public(field: str) -> str:
  return field.removeprefix('edited_')
