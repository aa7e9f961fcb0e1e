"""AlphaEdit: MEMIT's targets, written in the null space of the keys to preserve."""

from collections.abc import Sequence

from jedit.editing.objective import Objective
from jedit.editing.region import Delta, KernelUpdate
from jedit.methods.recipe import Recipe, single_region
from jedit.solvers import NullSpace


def alphaedit(
  *,
  layers: Sequence[int],
  threshold: float = 0.02,
  ridge: float = 10.0,
  learning_rate: float = 0.5,
  num_steps: int = 25,
  clip_factor: float = 0.75,
  kl_factor: float = 0.0625,
  weight_decay: float = 0.5,
  decay_form: str = 'released',
  stop_loss: float | None = 0.05,
  schedule: str = 'even',
) -> Recipe:
  """AlphaEdit (arXiv:2410.02355): MEMIT's targets, written where C has next to nothing.

  Args:
    layers: edited layers, ascending; δ sits at the last.
    threshold, ridge: see `NullSpace`.
    learning_rate, num_steps, kl_factor, decay_form, stop_loss: see `Objective`.
    clip_factor, weight_decay: see `Delta`.
    schedule: 'even' or 'sqrt'.
  """
  return single_region(
    'alphaedit',
    layers,
    deltas=(Delta('block', 'block_out', clip_factor, weight_decay),),
    updates=(KernelUpdate('mlp', 'block', 'block_out'),),
    solver=NullSpace(threshold, ridge),
    schedule=schedule,
    objective=Objective(
      learning_rate, num_steps, kl_factor, decay_form=decay_form, stop_loss=stop_loss
    ),
  )
