"""MEMIT: block outputs at the subject's last token, least squares, even schedule."""

from collections.abc import Sequence

from jedit.editing.objective import Objective
from jedit.editing.region import Delta, KernelUpdate
from jedit.methods.recipe import Recipe, single_region
from jedit.solvers import LeastSquares


def memit(
  *,
  layers: Sequence[int],
  cov_weight: float = 15000.0,
  learning_rate: float = 0.5,
  num_steps: int = 25,
  clip_factor: float = 0.75,
  kl_factor: float = 0.0625,
  weight_decay: float = 0.5,
  decay_form: str = 'released',
  stop_loss: float | None = 0.05,
  schedule: str = 'even',
) -> Recipe:
  """MEMIT (arXiv:2210.07229): δ on the block's output, least squares, even schedule.

  Args:
    layers: edited layers, ascending; δ sits at the last.
    cov_weight: λ of `LeastSquares`.
    learning_rate, num_steps, kl_factor, decay_form, stop_loss: see `Objective`.
    clip_factor, weight_decay: see `Delta`.
    schedule: 'even', or 'sqrt' as PMET.
  """
  return single_region(
    'memit',
    layers,
    deltas=(Delta('block', 'block_out', clip_factor, weight_decay),),
    updates=(KernelUpdate('mlp', 'block', 'block_out'),),
    solver=LeastSquares(cov_weight),
    schedule=schedule,
    objective=Objective(
      learning_rate, num_steps, kl_factor, decay_form=decay_form, stop_loss=stop_loss
    ),
  )
