"""ROME and R-ROME: one edit, one layer, an update of rank one."""

import dataclasses
from collections.abc import Sequence

from jedit.editing.objective import Objective
from jedit.editing.region import Delta, KernelUpdate
from jedit.methods.recipe import Recipe, single_region
from jedit.solvers import RankOne


def rome(
  *,
  layers: Sequence[int],
  divide_by: str = 'bare_key',
  use_cov: bool = True,
  learning_rate: float = 0.5,
  num_steps: int = 20,
  clip_factor: float = 4.0,
  kl_factor: float = 0.0625,
  weight_decay: float = 0.5,
  decay_form: str = 'released',
  stop_loss: float | None = 0.05,
  prefixes: str = 'rome',
) -> Recipe:
  """ROME (arXiv:2202.05262): one edit, one layer, δ on the MLP output, rank-one update.

  Args:
    layers: the edited layer, as a tuple of one.
    divide_by: 'bare_key' is the released code, 'mean_key' the paper's eq. 2, except that the
      residual is still taken on the bare prompt: see `r_rome`.
    use_cov: False needs no second moments: C is taken as the identity (EasyEdit's settings for
      Llama).
    learning_rate, num_steps, kl_factor, decay_form, stop_loss: see `Objective`.
    clip_factor, weight_decay: see `Delta`.
    prefixes: see `Recipe`; 'memit' is a third of the work.
  """
  return single_region(
    'rome',
    layers,
    deltas=(Delta('mlp', 'mlp_out', clip_factor, weight_decay),),
    updates=(KernelUpdate('mlp', 'mlp', 'mlp_out'),),
    solver=RankOne(divide_by, use_cov),
    schedule='even',
    objective=Objective(
      learning_rate, num_steps, kl_factor, decay_form=decay_form, stop_loss=stop_loss
    ),
    key_average='flat',
    prefixes=prefixes,
  )


def r_rome(
  *,
  layers: Sequence[int],
  use_cov: bool = True,
  learning_rate: float = 0.5,
  num_steps: int = 20,
  clip_factor: float = 4.0,
  kl_factor: float = 0.0625,
  weight_decay: float = 0.5,
  decay_form: str = 'released',
  stop_loss: float | None = 0.05,
  prefixes: str = 'rome',
) -> Recipe:
  """R-ROME (arXiv:2403.07175): ROME with averages over the contexts in every place.

  The key that the update divides by and the present output are means, too, so that the mean key
  maps to exactly the target, as in ROME's eq. 2. Stable over many sequential edits.

  Args:
    layers, use_cov, learning_rate, num_steps, clip_factor, kl_factor, weight_decay, decay_form,
      stop_loss, prefixes: as of `rome`.
  """
  recipe = rome(
    layers=layers,
    divide_by='mean_key',
    use_cov=use_cov,
    learning_rate=learning_rate,
    num_steps=num_steps,
    clip_factor=clip_factor,
    kl_factor=kl_factor,
    weight_decay=weight_decay,
    decay_form=decay_form,
    stop_loss=stop_loss,
    prefixes=prefixes,
  )
  (region,) = recipe.regions
  return dataclasses.replace(
    recipe, name='r_rome', regions=(dataclasses.replace(region, compared_on='contexts'),)
  )
