"""EditResult: the patch of an edit, its batches, and what was computed on the way."""

import dataclasses
from collections.abc import Mapping
from typing import Self

import numpy as np

from jedit.editing.prompts import Contexts, EditRows
from jedit.editing.slots import Targets
from jedit.io import html
from jedit.io.memo import Stored
from jedit.models.patch import Patch
from jedit.types import Kernel

_SHOWN = 10  # edits that a notebook shows


@dataclasses.dataclass(frozen=True, eq=False)
class Details:
  """Intermediate values of a recipe's edit; arrays are in the order of the requests.

  Attributes:
    contexts: groups of prefix templates.
    rows: texts of every edit with their token ids and positions.
    targets: by stage, δ, v₀, z, step counts and traces.
    keys: averaged keys [B, F] by kernel, read when the layer was about to be updated.
    residuals: right sides of the solves [B, D] by kernel, shared over the layers.
    solve_errors: by kernel, the relative residual ‖A x - b‖ / ‖b‖ of the normal equations, the
      largest over the edits; see `residual` of `jedit.solvers`.
  """

  contexts: Contexts = ()
  rows: tuple[EditRows, ...] = ()
  targets: tuple[Targets, ...] = ()
  keys: Mapping[Kernel, np.ndarray] = dataclasses.field(default_factory=dict)
  residuals: Mapping[Kernel, np.ndarray] = dataclasses.field(default_factory=dict)
  solve_errors: Mapping[Kernel, float] = dataclasses.field(default_factory=dict)

  @property
  def z(self) -> dict[str, np.ndarray]:
    """Targets of all δ, [B, D] each."""
    return {name: value for stage in self.targets for name, value in stage.z.items()}

  def __repr__(self) -> str:
    deltas, kernels = ', '.join(self.z), ', '.join(map(str, self.keys))
    return f'Details({len(self.rows)} edits; targets of {deltas}; keys of {kernels})'

  def _repr_html_(self) -> str:
    return html.block(html.paragraph(repr(self), 'note'), self.to_html())

  def to_html(self) -> str:
    """The first edits, with the probability that the optimised state gives to the new object."""
    if not self.rows:
      return ''
    requests = [row.request for row in self.rows[:_SHOWN]]
    columns = {
      'prompt': [request.text for request in requests],
      'true object': [request.target_true or '–' for request in requests],
      'new object': [request.target_new for request in requests],
    }
    if len(self.targets) == 1:
      reached_B = self.targets[0].last('probability')[:_SHOWN]
      columns['its probability'] = [f'{value:.3f}' for value in reached_B]
    cells = list(zip(*columns.values(), strict=True))
    more = len(self.rows) - len(requests)
    note = [html.paragraph(f'and {more} more edits', 'note')] if more > 0 else []
    return html.rows(list(columns), cells, 'text') + ''.join(note)


@dataclasses.dataclass(frozen=True, eq=False)
class EditResult:
  """Result of an edit; `lm.apply` takes it or its patch.

  Attributes:
    patch: the change of the model, all batches together; None for separate batches, of which each
      changes the original model on its own.
    details: intermediate values; empty for methods that have none, for several batches and for
      a stored batch.
    batches: results of the batches, in order; empty for an edit of one batch.
    seconds: by stage, 'targets', 'keys' and 'solve' for recipes.
  """

  patch: Patch | None
  details: Details = dataclasses.field(default_factory=Details)
  batches: tuple['EditResult', ...] = ()
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def __repr__(self) -> str:
    lines = ['no common patch' if self.patch is None else repr(self.patch)]
    if self.batches:
      lines.append(f'  {len(self.batches)} batches')
    if self.seconds:
      lines.append('  ' + ', '.join(f'{name} {each:.1f} s' for name, each in self.seconds.items()))
    return 'EditResult: ' + '\n'.join(lines)

  def _repr_html_(self) -> str:
    if self.patch is None:
      parts = [html.paragraph(f'{len(self.batches)} batches, each an edit of the original model')]
    else:
      parts = [self.patch.to_html()]
      if self.batches:
        parts.append(html.paragraph(f'in {len(self.batches)} batches', 'note'))
    parts.append(self.details.to_html())
    if self.seconds:
      bars = html.bars([*self.seconds.values()], digits=3)
      cells = [[name, bar] for name, bar in zip(self.seconds, bars, strict=True)]
      parts.append(html.rows(['stage', 'seconds'], cells, 'bars'))
    return html.block(*parts)

  def pack(self) -> Stored:
    """Patch and keys, for a memo; `Patch.load` reads the file and leaves the keys alone."""
    assert self.patch is not None, 'one batch has a patch'
    stored = self.patch.pack()
    keys = {f'{kernel}:key': key_BxF for kernel, key_BxF in self.details.keys.items()}
    return stored._replace(tensors={**stored.tensors, **keys})

  @classmethod
  def unpack(cls, stored: Stored) -> Self:
    """The result that `pack` stored, without the other details."""
    keys = {
      Kernel.parse(name.removesuffix(':key')): key_BxF
      for name, key_BxF in stored.tensors.items()
      if name.endswith(':key')
    }
    return cls(Patch.unpack(stored), Details(keys=keys))


def sum_seconds(*parts: Mapping[str, float]) -> dict[str, float]:
  """Seconds by stage, added up."""
  total: dict[str, float] = {}
  for part in parts:
    for name, value in part.items():
      total[name] = total.get(name, 0.0) + value
  return total
