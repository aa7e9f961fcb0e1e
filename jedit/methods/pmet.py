"""PMET: attention and MLP outputs optimised together, MLP updated, square-root schedule."""

from collections.abc import Sequence

from jedit.editing.objective import Objective
from jedit.editing.region import Delta, KernelUpdate
from jedit.methods.recipe import Recipe, single_region
from jedit.solvers import LeastSquares


def pmet(
  *,
  layers: Sequence[int],
  cov_weight: float = 6000.0,
  learning_rate: float = 0.2,
  num_steps: int = 30,
  clip_factor: float = 0.75,
  kl_factor: float = 1.0,
  weight_decay: float = 0.5,
  nll_factor: float = 1.0,
  nll_switch: bool = True,
  decay_form: str = 'released',
  stop_loss: float | None = 0.05,
  schedule: str = 'sqrt',
  optimise: Sequence[str] = ('attn', 'mlp'),
  write: Sequence[str] = ('mlp',),
  keys_together: bool = False,
) -> Recipe:
  """PMET (arXiv:2308.08742): δ on attention and MLP output together, square-root schedule.

  Args:
    layers: edited layers, ascending; δ sit at the last.
    cov_weight: λ of `LeastSquares`.
    learning_rate, num_steps, kl_factor, nll_factor, decay_form, stop_loss: see
      `Objective`.
    nll_switch: the released code's adaptive loss factor; False is the paper's eq. 10.
    clip_factor, weight_decay: of each δ; see `Delta`.
    schedule: 'sqrt' (eq. 13), or 'even' for the ablation.
    optimise: which δ exist; ('mlp',) is the ablation without the attention δ.
    write: which kernels are written, in order; ('attn', 'mlp') also writes attention.
    keys_together: with two kernels, reads both keys of a layer before the first write.
  """
  places = {'attn': 'attn_out', 'mlp': 'mlp_out'}
  return single_region(
    'pmet',
    layers,
    deltas=tuple(Delta(k, places.get(k, k), clip_factor, weight_decay) for k in optimise),
    updates=tuple(KernelUpdate(k, k, places.get(k, k)) for k in write),
    solver=LeastSquares(cov_weight),
    schedule=schedule,
    objective=Objective(
      learning_rate,
      num_steps,
      kl_factor,
      nll_factor=nll_factor,
      nll_switch=nll_switch,
      decay_form=decay_form,
      stop_loss=stop_loss,
    ),
    keys_together=keys_together,
  )
