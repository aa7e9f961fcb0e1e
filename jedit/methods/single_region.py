"""Methods that edit one range of layers at the subject's last token.

Defaults are the forms behind the published tables (the released codes); what the papers write
instead is a named choice of the same field.
"""

import dataclasses
from collections.abc import Sequence

from jedit.methods.base import Delta, Objective, Recipe, Region, Write
from jedit.solvers import EqualityConstrained, LeastSquares, NullSpace, RankOne, Solver

_NAME = 'edited'


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
  spread: str = 'even',
) -> Recipe:
  """MEMIT (arXiv:2210.07229): δ on the block's output, least squares, even spread.

  Args:
    layers: edited layers, ascending; δ sits at the last.
    cov_weight: λ of `jedit.solvers.LeastSquares`.
    learning_rate, num_steps, kl_factor, decay_form, stop_loss: see `jedit.methods.base.Objective`.
    clip_factor, weight_decay: see `jedit.methods.base.Delta`.
    spread: 'even', or 'sqrt' as PMET.
  """
  return _single(
    'memit',
    layers,
    deltas=(Delta('block', 'block_out', clip_factor, weight_decay),),
    writes=(Write('mlp', 'block', 'block_out'),),
    solver=LeastSquares(cov_weight),
    spread=spread,
    objective=Objective(
      learning_rate, num_steps, kl_factor, decay_form=decay_form, stop_loss=stop_loss
    ),
  )


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
  spread: str = 'sqrt',
  optimise: Sequence[str] = ('attn', 'mlp'),
  write: Sequence[str] = ('mlp',),
  keys_together: bool = False,
) -> Recipe:
  """PMET (arXiv:2308.08742): δ on attention and MLP output together, square-root spread.

  Args:
    layers: edited layers, ascending; δ sit at the last.
    cov_weight: λ of `jedit.solvers.LeastSquares`.
    learning_rate, num_steps, kl_factor, nll_factor, decay_form, stop_loss: see
      `jedit.methods.base.Objective`.
    nll_switch: the released code's adaptive loss factor; False is the paper's eq. 10.
    clip_factor, weight_decay: of each δ; see `jedit.methods.base.Delta`.
    spread: 'sqrt' (eq. 13), or 'even' for the ablation.
    optimise: which δ exist; ('mlp',) is the ablation without the attention δ.
    write: which kernels are written, in order; ('attn', 'mlp') also writes attention.
    keys_together: with two kernels, reads both keys of a layer before the first write.
  """
  places = {'attn': 'attn_out', 'mlp': 'mlp_out'}
  return _single(
    'pmet',
    layers,
    deltas=tuple(Delta(k, places.get(k, k), clip_factor, weight_decay) for k in optimise),
    writes=tuple(Write(k, k, places.get(k, k)) for k in write),
    solver=LeastSquares(cov_weight),
    spread=spread,
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
  spread: str = 'even',
) -> Recipe:
  """EMMET (arXiv:2403.14236): MEMIT's targets, written under an equality constraint.

  Args:
    layers: edited layers, ascending; the released default is one.
    cov_weight, cov_ridge, key_ridge: see `EqualityConstrained`; both ridges 0 is the
      paper's eq. 14, which is singular for more edits than keys have dimensions.
    learning_rate, num_steps, kl_factor, decay_form, stop_loss: see `jedit.methods.base.Objective`.
    clip_factor, weight_decay: see `jedit.methods.base.Delta`.
    spread: 'even' or 'sqrt'; of no effect for one layer.
  """
  return _single(
    'emmet',
    layers,
    deltas=(Delta('block', 'block_out', clip_factor, weight_decay),),
    writes=(Write('mlp', 'block', 'block_out'),),
    solver=EqualityConstrained(cov_weight, cov_ridge, key_ridge),
    spread=spread,
    objective=Objective(
      learning_rate, num_steps, kl_factor, decay_form=decay_form, stop_loss=stop_loss
    ),
  )


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
    learning_rate, num_steps, kl_factor, decay_form, stop_loss: see `jedit.methods.base.Objective`.
    clip_factor, weight_decay: see `jedit.methods.base.Delta`.
    prefixes: see `jedit.methods.base.Recipe`; 'memit' is a third of the work.
  """
  return _single(
    'rome',
    layers,
    deltas=(Delta('mlp', 'mlp_out', clip_factor, weight_decay),),
    writes=(Write('mlp', 'mlp', 'mlp_out'),),
    solver=RankOne(divide_by, use_cov),
    spread='even',
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
  spread: str = 'even',
) -> Recipe:
  """AlphaEdit (arXiv:2410.02355): MEMIT's targets, written where C has next to nothing.

  Args:
    layers: edited layers, ascending; δ sits at the last.
    threshold, ridge: see `jedit.solvers.NullSpace`.
    learning_rate, num_steps, kl_factor, decay_form, stop_loss: see `jedit.methods.base.Objective`.
    clip_factor, weight_decay: see `jedit.methods.base.Delta`.
    spread: 'even' or 'sqrt'.
  """
  return _single(
    'alphaedit',
    layers,
    deltas=(Delta('block', 'block_out', clip_factor, weight_decay),),
    writes=(Write('mlp', 'block', 'block_out'),),
    solver=NullSpace(threshold, ridge),
    spread=spread,
    objective=Objective(
      learning_rate, num_steps, kl_factor, decay_form=decay_form, stop_loss=stop_loss
    ),
  )


def _single(
  name: str,
  layers: Sequence[int],
  *,
  deltas: tuple[Delta, ...],
  writes: tuple[Write, ...],
  solver: Solver,
  spread: str,
  objective: Objective,
  key_average: str = 'groups',
  keys_together: bool = False,
  prefixes: str = 'memit',
) -> Recipe:
  region = Region(
    name=_NAME,
    layers=tuple(layers),
    token='subject_last',
    deltas=deltas,
    writes=writes,
    spread=spread,
    solver=solver,
    key_average=key_average,
    keys_together=keys_together,
  )
  return Recipe(name, (region,), objective, stages=((_NAME,),), prefixes=prefixes)
