"""What is optimised: δ in their places, and the numbers that its loss and steps are scaled by."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import struct

from jedit.methods.base import Delta, Objective
from jedit.models import site

Number = jax.Array | np.float32  # handed over by the host, traced on the device


@dataclasses.dataclass(frozen=True)
class PlacedDelta:
  """A δ with the layer and token its region gives it."""

  delta: Delta
  layer: int
  token: str

  @property
  def site(self) -> str:
    return site(self.layer, self.delta.place)


@struct.dataclass
class Numbers:
  """What only scales the loss and the steps, as float32 scalars.

  They are arguments of the compiled programs: settings that differ in nothing else share them.

  Attributes:
    learning_rate, kl_factor, nll_factor: of the objective.
    stop_loss, stop_probability: likewise; a rule that there is not never stops.
    clip_factor, weight_decay: by δ.
  """

  learning_rate: Number
  kl_factor: Number
  nll_factor: Number
  stop_loss: Number
  stop_probability: Number
  clip_factor: Mapping[str, Number]
  weight_decay: Mapping[str, Number]

  @classmethod
  def of(cls, deltas: Sequence[PlacedDelta], objective: Objective) -> 'Numbers':
    """Those of a method's δ and objective."""
    stop_loss, stop_probability = objective.stop_loss, objective.stop_probability
    return cls(
      learning_rate=np.float32(objective.learning_rate),
      kl_factor=np.float32(objective.kl_factor),
      nll_factor=np.float32(objective.nll_factor),
      stop_loss=np.float32(-np.inf if stop_loss is None else stop_loss),
      stop_probability=np.float32(np.inf if stop_probability is None else stop_probability),
      clip_factor={p.delta.name: np.float32(p.delta.clip_factor) for p in deltas},
      weight_decay={p.delta.name: np.float32(p.delta.weight_decay) for p in deltas},
    )


def without_numbers(
  deltas: Sequence[PlacedDelta], objective: Objective
) -> tuple[tuple[PlacedDelta, ...], Objective]:
  """The same with one value for each of `Numbers`: what a compiled program depends on."""
  plain = tuple(
    dataclasses.replace(
      placed, delta=dataclasses.replace(placed.delta, clip_factor=1.0, weight_decay=0.0)
    )
    for placed in deltas
  )
  return plain, dataclasses.replace(
    objective,
    learning_rate=1.0,
    kl_factor=1.0,
    nll_factor=1.0,
    stop_loss=None,
    stop_probability=None,
  )
