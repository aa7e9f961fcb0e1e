"""EMMET: MEMIT's targets under an equality constraint."""

from collections.abc import Sequence

from jedit.editing.objective import Objective
from jedit.editing.region import Delta, KernelUpdate
from jedit.methods.recipe import Recipe, single_region
from jedit.solvers import EqualityConstrained


def emmet(
  *,
  layers: Sequence[int],
  cov_weight: float = 1.0,
  cov_ridge: float = 0.0,
  key_ridge: float = 0.1,
  learning_rate: float = 0.5,
  num_steps: int = 25,
  clip_factor: float = 0.75,
  kl_factor: float = 0.0625,
  weight_decay: float = 0.5,
  decay_form: str = 'released',
  stop_loss: float | None = 0.05,
  schedule: str = 'even',
) -> Recipe:
  """EMMET (arXiv:2403.14236): MEMIT's targets, written under an equality constraint.

  Args:
    layers: edited layers, ascending; the released default is one.
    cov_weight, cov_ridge, key_ridge: see `EqualityConstrained`; both ridges 0 is the
      paper's eq. 14, which is singular for more edits than keys have dimensions.
    learning_rate, num_steps, kl_factor, decay_form, stop_loss: see `Objective`.
    clip_factor, weight_decay: see `Delta`.
    schedule: 'even' or 'sqrt'; of no effect for one layer.
  """
  return single_region(
    'emmet',
    layers,
    deltas=(Delta('block', 'block_out', clip_factor, weight_decay),),
    updates=(KernelUpdate('mlp', 'block', 'block_out'),),
    solver=EqualityConstrained(cov_weight, cov_ridge, key_ridge),
    schedule=schedule,
    objective=Objective(
      learning_rate, num_steps, kl_factor, decay_form=decay_form, stop_loss=stop_loss
    ),
  )
