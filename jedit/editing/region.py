"""Regions: the layers, token, deltas and kernels of one part of a recipe."""

import dataclasses
from collections.abc import Sequence

from flax import struct

from jedit.editing.objective import Number, check_choice, check_not_negative, check_positive
from jedit.editing.schedule import SCHEDULES
from jedit.solvers import Solver
from jedit.types import Kernel, UserError

TOKENS = ('subject_last', 'prompt_last')
DELTA_PLACES = ('attn_out', 'mlp_out', 'block_out')
KERNELS = ('attn', 'mlp')
KEY_AVERAGES = ('groups', 'flat')
COMPARED_ON = ('bare', 'contexts')
TARGETS = ('own', 'joint')


def check_layers(layers: tuple[int, ...], num_layers: int | None = None) -> None:
  """Raises UserError unless layers are ascending numbers, inside the model if its size is given."""
  if not isinstance(layers, tuple):
    raise UserError(f'layers is {layers!r}; give a tuple, such as ({layers!r},).')
  if not layers or any(not isinstance(layer, int) or layer < 0 for layer in layers):
    raise UserError(f'layers is {layers!r}; give at least one layer number, counted from 0.')
  if list(layers) != sorted(set(layers)):
    raise UserError(f'layers is {layers!r}; list each layer once, in ascending order.')
  if num_layers is not None and layers[-1] >= num_layers:
    raise UserError(
      f'layers is {layers!r}, but the model has layers 0 to {num_layers - 1}; '
      'choose layers inside it.'
    )


def as_layers(layers: Sequence[int]) -> tuple[int, ...]:
  """Layers as a tuple.

  Raises:
    UserError: for a single number.
  """
  if isinstance(layers, int):
    raise UserError(f'layers is {layers!r}; give a tuple, such as ({layers!r},).')
  return tuple(layers)


@struct.dataclass
class Delta:
  """A vector δ added at one place of the region's last layer while the target is optimised.

  Attributes:
    name: unique in the recipe; details and trace use it.
    place: 'mlp_out', 'attn_out' or 'block_out'.
    clip_factor: after every step ‖δ‖ is scaled down to at most this times ‖v₀‖, the norm of the
      place's value on the bare prompt.
    weight_decay: weight of the decay term; see `Objective.decay_form`.
  """

  name: str = struct.field(pytree_node=False)
  place: str = struct.field(pytree_node=False)
  clip_factor: Number
  weight_decay: Number

  def __post_init__(self) -> None:
    check_choice('place', self.place, DELTA_PLACES)
    check_positive('clip_factor', self.clip_factor)
    check_not_negative('weight_decay', self.weight_decay)


@dataclasses.dataclass(frozen=True)
class KernelUpdate:
  """A kernel that is updated so that a place takes its optimised value.

  Attributes:
    kernel: 'mlp' (the down projection) or 'attn' (the attention output projection).
    delta: name of the δ whose target z is written.
    compare: the place whose present value is subtracted from z to get the residual.
    target: z is 'own', v₀ + δ, or 'joint', the value of δ's place at the optimum with every δ of
      the stage in the network: what lower δ add on their way up is then a part of the target.
  """

  kernel: str
  delta: str
  compare: str
  target: str = 'own'

  def __post_init__(self) -> None:
    check_choice('kernel', self.kernel, KERNELS)
    check_choice('compare', self.compare, DELTA_PLACES)
    check_choice('target', self.target, TARGETS)


@dataclasses.dataclass(frozen=True)
class Region:
  """Layers in which one token's hidden state is edited.

  Attributes:
    layers: ascending layer numbers; δ sits at the last, the lowest is updated first.
    token: 'subject_last' or 'prompt_last'.
    deltas: δ that are optimised, at least one.
    updates: kernels updated in every layer, in this order; empty optimises without updating.
    schedule: 'even' or 'sqrt', the share of the residual that each layer takes.
    solver: maps keys to residuals while old keys are preserved.
    key_average: 'groups' averages keys inside each group of contexts and then over groups (the
      released MEMIT family: the bare prompt weighs 1/2); 'flat' over all contexts (ROME).
    compared_on: present values are read on the 'bare' prompt (the released codes), or averaged
      like the keys over all 'contexts' (R-ROME: the mean key then maps to z, as in ROME's eq. 2).
    keys_together: reads the keys of all kernels of a layer before the first one is updated
      (PMET's released code on GPT-J) instead of each just before its own update.
  """

  name: str
  layers: tuple[int, ...]
  token: str
  deltas: tuple[Delta, ...]
  updates: tuple[KernelUpdate, ...]
  schedule: str
  solver: Solver
  key_average: str = 'groups'
  compared_on: str = 'bare'
  keys_together: bool = False

  def __post_init__(self) -> None:
    check_choice('token', self.token, TOKENS)
    check_choice('schedule', self.schedule, tuple(SCHEDULES))
    check_choice('key_average', self.key_average, KEY_AVERAGES)
    check_choice('compared_on', self.compared_on, COMPARED_ON)
    check_layers(self.layers)
    if not self.deltas:
      raise UserError(f'Region {self.name} has no delta; optimise at least one place.')
    known = {delta.name for delta in self.deltas}
    for update in self.updates:
      if update.delta not in known:
        raise UserError(
          f'Region {self.name} writes toward delta {update.delta!r}, but optimises '
          f'{sorted(known)}; name one of those.'
        )

  @property
  def kernels(self) -> tuple[Kernel, ...]:
    """The kernels that are updated, layer by layer."""
    return tuple(Kernel(layer, update.kernel) for layer in self.layers for update in self.updates)
