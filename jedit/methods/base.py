"""A method as data: which vectors are optimised, over which layers they are written, and how.

ROME, MEMIT, PMET, EMMET and JEEP are recipes over one driver (`jedit.edit`): a published ablation
is one field changed with `dataclasses.replace`. The constructors in `jedit.methods` build them with
the field's usual names.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

from jedit.solvers import Solver
from jedit.types import Kernel, UserError

TOKENS = ('subject_last', 'prompt_last')
DELTA_PLACES = ('attn_out', 'mlp_out', 'block_out')
KERNELS = ('attn', 'mlp')
KEY_AVERAGES = ('groups', 'flat')
PREFIXES = ('memit', 'rome')
COMPARED_ON = ('bare', 'contexts')
DECAY_FORMS = ('released', 'norm')

# What the residual is divided by when `left` layers, this one included, are still to be written.
SPREADS: Mapping[str, Callable[[int], float]] = {
  'even': float,  # MEMIT: every layer takes an equal part of what remains
  'sqrt': math.sqrt,  # PMET, eq. 13: more goes to the layers next to the target
}


@dataclasses.dataclass(frozen=True)
class Delta:
  """A vector δ added at one place of the region's last layer while the target is optimised.

  Attributes:
    name: unique in the recipe; details and trace use it.
    place: 'mlp_out', 'attn_out' or 'block_out'.
    clip_factor: after every step ‖δ‖ is brought down to at most this times ‖v₀‖, the norm of the
      place's value on the bare prompt.
    weight_decay: weight of the decay term; see `Objective.decay_form`.
  """

  name: str
  place: str
  clip_factor: float
  weight_decay: float

  def __post_init__(self) -> None:
    _choice('place', self.place, DELTA_PLACES)
    _positive('clip_factor', self.clip_factor)
    _not_negative('weight_decay', self.weight_decay)


@dataclasses.dataclass(frozen=True)
class Write:
  """A kernel that is changed so that a place takes its optimised value.

  Attributes:
    kernel: 'mlp' (the down projection) or 'attn' (the attention output projection).
    delta: name of the δ whose target z = v₀ + δ is written.
    compare: the place whose present value is subtracted from z to get the residual.
  """

  kernel: str
  delta: str
  compare: str

  def __post_init__(self) -> None:
    _choice('kernel', self.kernel, KERNELS)
    _choice('compare', self.compare, DELTA_PLACES)


@dataclasses.dataclass(frozen=True)
class Region:
  """Layers in which one token's hidden state is edited.

  Attributes:
    layers: ascending layer numbers; δ sits at the last, the lowest is written first.
    token: 'subject_last' or 'prompt_last'.
    deltas: what is optimised, at least one.
    writes: kernels changed in every layer, in this order; empty optimises without writing.
    spread: 'even' or 'sqrt', how the residual is shared over the layers.
    solver: how keys are mapped to residuals while old keys are preserved.
    key_average: 'groups' averages keys inside each group of contexts and then over groups (the
      released MEMIT family: the bare prompt weighs 1/2); 'flat' over all contexts (ROME).
    compared_on: present values are read on the 'bare' prompt (the released codes), or averaged
      like the keys over all 'contexts' (R-ROME: the mean key then maps to z, as in ROME's eq. 2).
    keys_together: reads the keys of all kernels of a layer before the first one is written
      (PMET's released code on GPT-J) instead of each just before its own write.
  """

  name: str
  layers: tuple[int, ...]
  token: str
  deltas: tuple[Delta, ...]
  writes: tuple[Write, ...]
  spread: str
  solver: Solver
  key_average: str = 'groups'
  compared_on: str = 'bare'
  keys_together: bool = False

  def __post_init__(self) -> None:
    _choice('token', self.token, TOKENS)
    _choice('spread', self.spread, tuple(SPREADS))
    _choice('key_average', self.key_average, KEY_AVERAGES)
    _choice('compared_on', self.compared_on, COMPARED_ON)
    layers = self.layers
    if not layers or any(not isinstance(layer, int) or layer < 0 for layer in layers):
      raise UserError(f'layers is {layers!r}; give at least one layer number, counted from 0.')
    if list(layers) != sorted(set(layers)):
      raise UserError(f'layers is {layers!r}; list each layer once, in ascending order.')
    if not self.deltas:
      raise UserError(f'Region {self.name} has no delta; optimise at least one place.')

  @property
  def kernels(self) -> tuple[Kernel, ...]:
    """The kernels that are written, layer by layer."""
    return tuple(Kernel(layer, write.kernel) for layer in self.layers for write in self.writes)


@dataclasses.dataclass(frozen=True)
class Objective:
  """What the δ minimise and when they stop.

  loss = nll_factor · mean over contexts of the mean over target tokens of -ln p(token)
       + kl_factor · KL(p_now ‖ p_start) at the subject's last token of "{subject} is a"
       + the decay of every δ

  Attributes:
    learning_rate: of Adam (β 0.9 and 0.999, ε 1e-8).
    num_steps: number of loss evaluations; the last one takes no step, as in the released codes.
    kl_factor: weight of the KL term, nats.
    nll_factor: weight of the negative log-likelihood.
    nll_switch: PMET's released rule: while all target tokens are the most probable ones in every
      context, the next evaluation uses a tenth of nll_factor, and once the KL term is at most 0.01
      there, the edit stops.
    decay_form: 'released' is weight_decay · ‖δ‖ / ‖v₀‖², 'norm' weight_decay · ‖δ‖ (JEEP, eq. 11).
    stop_loss: an edit stops when its loss falls below this; None never does.
    stop_probability: an edit stops when the mean over contexts of exp(-mean nll) reaches this.
  """

  learning_rate: float
  num_steps: int
  kl_factor: float
  nll_factor: float = 1.0
  nll_switch: bool = False
  decay_form: str = 'released'
  stop_loss: float | None = 0.05
  stop_probability: float | None = None

  def __post_init__(self) -> None:
    _choice('decay_form', self.decay_form, DECAY_FORMS)
    _positive('learning_rate', self.learning_rate)
    _positive('num_steps', self.num_steps)
    if not isinstance(self.num_steps, int):
      raise UserError(f'num_steps is {self.num_steps!r}; give a whole number.')
    _not_negative('kl_factor', self.kl_factor)
    _positive('nll_factor', self.nll_factor)
    for field in ('stop_loss', 'stop_probability'):
      if getattr(self, field) is not None:
        _not_negative(field, getattr(self, field))


@dataclasses.dataclass(frozen=True)
class Recipe:
  """An editing method.

  Attributes:
    name: for tables and files.
    regions: in the order they are written.
    objective: of the target optimisation.
    stages: names of the regions that are optimised together and then written, stage by stage;
      `(('low', 'high'),)` is joint, `(('low',), ('high',))` one after the other.
    prefixes: what is sampled where no contexts are given, 'memit' or 'rome'
      (`jedit.editing.contexts`).
  """

  name: str
  regions: tuple[Region, ...]
  objective: Objective
  stages: tuple[tuple[str, ...], ...]
  prefixes: str = 'memit'

  def __post_init__(self) -> None:
    _choice('prefixes', self.prefixes, PREFIXES)
    names = [region.name for region in self.regions]
    staged = [name for stage in self.stages for name in stage]
    if sorted(names) != sorted(staged) or len(set(names)) != len(names):
      raise UserError(f'stages name {staged}, but the regions are {names}; name each region once.')
    deltas = [delta.name for region in self.regions for delta in region.deltas]
    if len(set(deltas)) != len(deltas):
      raise UserError(f'The deltas are named {deltas}; give each its own name.')
    for region in self.regions:
      known = {delta.name for delta in region.deltas}
      for write in region.writes:
        if write.delta not in known:
          raise UserError(
            f'Region {region.name} writes toward delta {write.delta!r}, but optimises '
            f'{sorted(known)}; name one of those.'
          )
    self._check_overlaps()

  def region(self, name: str) -> Region:
    """The region of this name."""
    return next(region for region in self.regions if region.name == name)

  @property
  def kernels(self) -> tuple[Kernel, ...]:
    """The kernels that are written, of which second moments are needed."""
    return tuple(dict.fromkeys(kernel for region in self.regions for kernel in region.kernels))

  @property
  def layers(self) -> tuple[int, ...]:
    """All layers that are written, ascending; what `jedit.statistics` is asked for."""
    return tuple(sorted({kernel.layer for kernel in self.kernels}))

  @property
  def sites(self) -> tuple[str, ...]:
    """The kernels that are written, 'mlp', 'attn' or both."""
    return tuple(sorted({kernel.name for kernel in self.kernels}))

  @property
  def uses_moments(self) -> bool:
    """Whether any solve needs second moments."""
    return any(region.writes and region.solver.uses_cov for region in self.regions)

  def _check_overlaps(self) -> None:
    """A patch holds one update per kernel, and a place takes one δ at a time."""
    written: set[Kernel] = set()
    for kernel in (kernel for region in self.regions for kernel in region.kernels):
      if kernel in written:
        raise UserError(
          f'The {kernel.name} kernel of layer {kernel.layer} is written twice; '
          'choose layers and kernels that do not overlap.'
        )
      written.add(kernel)
    for stage in self.stages:
      placed: dict[tuple[str, int], str] = {}
      for region in map(self.region, stage):
        for delta in region.deltas:
          place = (delta.place, region.layers[-1])
          if place in placed:
            raise UserError(
              f'The deltas {placed[place]} and {delta.name} are both at {delta.place} of layer '
              f'{region.layers[-1]}; choose other layers, or stages of their own.'
            )
          placed[place] = delta.name

  def check_layers(self, num_layers: int) -> None:
    """Raises UserError if a region lies outside a model of `num_layers` layers."""
    for region in self.regions:
      if region.layers[-1] >= num_layers:
        raise UserError(
          f'layers is {region.layers!r}, but the model has layers 0 to {num_layers - 1}; '
          'choose layers inside it.'
        )

  def check_edits(self, num_edits: int, key_sizes: Mapping[str, int]) -> None:
    """Raises UserError if so many edits cannot be written at once.

    Args:
      num_edits: of one batch.
      key_sizes: dimensions of each kernel's keys.
    """
    for region in self.regions:
      for write in region.writes:
        region.solver.check_size(num_edits, key_sizes[write.kernel])


def _choice(field: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise UserError(f'{field} is {value!r}; choose one of {", ".join(choices)}.')


def _positive(field: str, value: float) -> None:
  if not isinstance(value, int | float) or not value > 0:
    raise UserError(f'{field} is {value!r}; give a number above 0.')


def _not_negative(field: str, value: float) -> None:
  if not isinstance(value, int | float) or not value >= 0:
    raise UserError(f'{field} is {value!r}; give a number of at least 0.')
