"""Problem: the deltas that are optimised together, and the objective they minimise."""

import math

import jax
from flax import struct

from jedit.editing.objective import Objective
from jedit.editing.region import Delta
from jedit.models import ModelConfig, site
from jedit.models.sharding import param_shapes


@struct.dataclass
class PlacedDelta:
  """A δ with the layer and token of its region."""

  delta: Delta
  layer: int = struct.field(pytree_node=False)
  token: str = struct.field(pytree_node=False)

  @property
  def name(self) -> str:
    return self.delta.name

  @property
  def site(self) -> str:
    return site(self.layer, self.delta.place)


@struct.dataclass
class Problem:
  """Deltas that are optimised together and their objective; numbers are leaves."""

  deltas: tuple[PlacedDelta, ...]
  objective: Objective

  @property
  def first_layer(self) -> int:
    """The lowest block with a δ."""
    return min(placed.layer for placed in self.deltas)

  @property
  def tokens(self) -> tuple[str, ...]:
    """Tokens at which δ are added."""
    return tuple(dict.fromkeys(placed.token for placed in self.deltas))

  def token_flop(self, config: ModelConfig) -> float:
    """Products with weights for one window token, over all evaluations and both passes."""
    blocks = [
      param_shapes(config)[f'block_{n}'] for n in range(self.first_layer, config.num_layers)
    ]
    kernels = [leaf.shape for leaf in jax.tree.leaves(blocks) if len(leaf.shape) == 2]
    return 4.0 * self.objective.num_steps * sum(map(math.prod, kernels))
