"""JEEP: low layers at the subject's last token and high layers at the prompt's last, jointly."""

from collections.abc import Sequence

from jedit.editing.objective import Objective
from jedit.editing.region import Delta, KernelUpdate, Region, as_layers
from jedit.methods.recipe import Recipe
from jedit.solvers import LeastSquares
from jedit.types import UserError

# By form: where the low and the high δ sit, and what each region's residual is taken against.
_FORMS = {
  'mlp': (('mlp_out', 'mlp_out'), ('mlp_out', 'mlp_out')),
  'hidden': (('block_out', 'block_out'), ('block_out', 'block_out')),
  'hidden_joint': (('block_out', 'block_out'), ('block_out', 'block_out')),
  'released': (('mlp_out', 'mlp_out'), ('attn_out', 'mlp_out')),
}


def jeep(
  *,
  layers_low: Sequence[int],
  layers_high: Sequence[int],
  cov_weight_low: float = 2000.0,
  cov_weight_high: float = 2000.0,
  clip_factor_low: float = 0.75,
  clip_factor_high: float = 0.25,
  weight_decay_low: float = 0.5,
  weight_decay_high: float = 0.5,
  learning_rate: float = 0.5,
  num_steps: int = 30,
  kl_factor: float = 0.0625,
  decay_form: str = 'released',
  stop_probability: float | None = 0.9,
  schedule_low: str = 'sqrt',
  schedule_high: str = 'even',
  form: str = 'mlp',
  high_kernel: str = 'mlp',
  optimise: Sequence[str] = ('low', 'high'),
  write: Sequence[str] = ('low', 'high'),
  is_joint: bool = True,
) -> Recipe:
  """JEEP (arXiv:2412.17872): one loss for a low and a high δ; low is written first, then high.

  Args:
    layers_low, layers_high: the two regions, ascending.
    cov_weight_low, cov_weight_high: λ of `LeastSquares` in each region.
    clip_factor_low, clip_factor_high, weight_decay_low, weight_decay_high: see
      `Delta`.
    learning_rate, num_steps, kl_factor: see `Objective`.
    decay_form: 'released', or 'norm' as eq. 11 writes it.
    stop_probability: mean target probability that ends an edit's optimisation (released code;
      not in the paper: None).
    schedule_low, schedule_high: 'sqrt' and 'even' as in the paper.
    form: 'mlp' has both δ and both residuals on MLP outputs; 'hidden' on block outputs with z = h +
      δ, eq. 8 to the letter, so that the high update removes from h what the low one adds to it;
      'hidden_joint' on block outputs with z = h at the optimum under both δ; 'released' puts the
      high δ on the attention output but takes its residual against the MLP output, as the released
      code does.
    high_kernel: 'attn' writes, and places the high δ on, the attention projection (the ablation
      "with MHSA in step 3").
    optimise: regions that exist; ('low',) and ('high',) are the ablations with one of them.
    write: regions that are written; leaving one out is the ablation without step 2 or 3.
    is_joint: False optimises and writes low first, then high on the model so edited.

  Raises:
    UserError: for an unknown form, kernel or region.
  """
  if form not in _FORMS:
    raise UserError(f'form is {form!r}; choose one of {", ".join(_FORMS)}.')
  if high_kernel not in ('mlp', 'attn'):
    raise UserError(f'high_kernel is {high_kernel!r}; choose mlp or attn.')
  for field, names in (('optimise', optimise), ('write', write)):
    if not names or not set(names) <= {'low', 'high'}:
      raise UserError(f'{field} is {tuple(names)!r}; give low, high or both.')
  low_places, high_places = _FORMS[form]
  target = 'joint' if form == 'hidden_joint' else 'own'
  if high_kernel == 'attn':
    high_places = ('attn_out', 'attn_out')

  def region(name, layers, token, places, kernel, clip, decay, schedule, cov_weight) -> Region:
    return Region(
      name=name,
      layers=as_layers(layers),
      token=token,
      deltas=(Delta(name, places[0], clip, decay),),
      updates=(KernelUpdate(kernel, name, places[1], target),) if name in write else (),
      schedule=schedule,
      solver=LeastSquares(cov_weight),
    )

  regions = {
    'low': region(
      'low', layers_low, 'subject_last', low_places, 'mlp',
      clip_factor_low, weight_decay_low, schedule_low, cov_weight_low,
    ),
    'high': region(
      'high', layers_high, 'prompt_last', high_places, high_kernel,
      clip_factor_high, weight_decay_high, schedule_high, cov_weight_high,
    ),
  }  # fmt: skip
  names = tuple(name for name in ('low', 'high') if name in optimise)
  objective = Objective(
    learning_rate,
    num_steps,
    kl_factor,
    decay_form=decay_form,
    stop_loss=None,
    stop_probability=stop_probability,
  )
  stages = (names,) if is_joint else tuple((name,) for name in names)
  return Recipe('jeep', tuple(regions[name] for name in names), objective, stages)
