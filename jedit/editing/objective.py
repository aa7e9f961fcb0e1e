"""Objective of the target optimisation: weights of the loss, optimiser, early stopping."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import struct

from jedit.types import UserError

_MOST_STEPS = 100_000  # every step has a place in the trace
DECAY_FORMS = ('released', 'norm')

# A setting on the host; a traced scalar inside a compiled step.
Number = float | np.ndarray | jax.Array


def adam(learning_rate: Number) -> optax.GradientTransformation:
  """Adam with β 0.9 and 0.999 and ε 1e-8, the optimiser of every published method."""
  return optax.adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8)


@struct.dataclass
class Objective:
  """Loss that the deltas minimise, and when an edit stops.

  loss = nll_factor · mean over contexts of the mean over target tokens of -ln p(token)
       + kl_factor · KL(p_now ‖ p_start) at the subject's last token of "{subject} is a"
       + the decay of every delta

  A pytree: numbers are leaves, form is static. Settings that differ in numbers alone share
  compiled programs.

  Attributes:
    learning_rate: step size of the optimiser.
    kl_factor: weight of the KL term, nats.
    nll_factor: weight of the negative log-likelihood.
    stop_loss: an edit stops when its loss falls below this; -inf (given as None) disables the rule.
    stop_probability: an edit stops when the mean over contexts of exp(-mean nll) reaches this; inf
      (given as None) disables the rule.
    num_steps: loss evaluations; the last one takes no step, as in the released codes.
    nll_switch: PMET's released rule: while all target tokens are the most probable ones in every
      context, the next evaluation uses a tenth of nll_factor, and once the KL term is at most 0.01
      there, the edit stops.
    decay_form: 'released' is weight_decay · ‖δ‖ / ‖v₀‖², 'norm' weight_decay · ‖δ‖ (JEEP, eq. 11).
    optimizer: learning rate to optax transformation.
  """

  learning_rate: Number
  num_steps: int = struct.field(pytree_node=False)
  kl_factor: Number
  nll_factor: Number = 1.0
  stop_loss: Number | None = 0.05
  stop_probability: Number | None = None
  nll_switch: bool = struct.field(pytree_node=False, default=False)
  decay_form: str = struct.field(pytree_node=False, default='released')
  optimizer: Callable[[Number], optax.GradientTransformation] = struct.field(
    pytree_node=False, default=adam
  )

  def __post_init__(self) -> None:
    check_choice('decay_form', self.decay_form, DECAY_FORMS)
    check_positive('learning_rate', self.learning_rate)
    check_positive('num_steps', self.num_steps)
    if not isinstance(self.num_steps, int) or self.num_steps > _MOST_STEPS:
      raise UserError(
        f'num_steps is {self.num_steps!r}; give a whole number of at most {_MOST_STEPS}.'
      )
    check_not_negative('kl_factor', self.kl_factor)
    check_positive('nll_factor', self.nll_factor)
    for field, disabled in (('stop_loss', -math.inf), ('stop_probability', math.inf)):
      value = getattr(self, field)
      if value is None:
        object.__setattr__(self, field, disabled)
      elif _is_setting(value) and value != disabled:
        check_not_negative(field, value)


def check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
  """Raises UserError unless the value is one of the choices."""
  if value not in choices:
    raise UserError(f'{field} is {value!r}; choose one of {", ".join(choices)}.')


def check_positive(field: str, value: Any) -> None:
  """Raises UserError for a setting that is no number above 0."""
  if _is_setting(value) and (not isinstance(value, int | float) or not value > 0):
    raise UserError(f'{field} is {value!r}; give a number above 0.')


def check_not_negative(field: str, value: Any) -> None:
  """Raises UserError for a setting that is no number of at least 0."""
  if _is_setting(value) and (not isinstance(value, int | float) or not value >= 0):
    raise UserError(f'{field} is {value!r}; give a number of at least 0.')


def _is_setting(value: Any) -> bool:
  """Excludes arrays and tracers, which pytree operations put in place of numbers."""
  return value is None or isinstance(value, bool | int | float | str | tuple | list | dict)
