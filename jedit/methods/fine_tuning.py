"""Fine-tuning baselines: FT-W of all weights of a block, FT and FT-L of one MLP output projection.

Defaults are the released forms behind the published tables; the forms of the papers are named
choices of the same fields.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from jedit.editing.context import EditContext
from jedit.editing.provenance import describe
from jedit.editing.region import as_layers, check_layers
from jedit.editing.result import EditResult
from jedit.methods.training import PARAMETERS, train
from jedit.models import ModelConfig
from jedit.models.patch import Patch
from jedit.types import Kernel, Request, UserError

LOSS_POSITIONS = ('released', 'paper')
MEANS = ('edits', 'tokens')
WEIGHT_DECAYS = ('released', 'paper')


@dataclasses.dataclass(frozen=True)
class FineTuning:
  """A fine-tuning baseline; built by `ft`, `ft_l` and `ft_w`.

  Attributes:
    name: for tables and files.
    trained_layers: ascending layer numbers.
    parameters: 'block' trains all weights of these layers (norms and biases too), 'mlp_out' the
      MLP's output projection (in the released codes: kernel and bias), 'mlp_kernel' its kernel.
    learning_rate: of Adam (β 0.9 and 0.999, ε 1e-8).
    num_epochs: the most passes over all requests ("steps" in the released settings).
    batch_size: requests of a step; a last batch that is smaller is trained on, too.
    stop_loss: a batch below this loss takes no step, and training ends after an epoch whose mean
      loss, weighted by requests, is below it.
    loss_position: 'released' reads every target token from the one prediction at the end of the
      prompt, as the ROME and MEMIT codes do; 'paper' is the likelihood of the target, each token
      predicted after the ones before it (so does the JEEP code). The same for targets of one token.
    mean_over: 'edits' averages over the target tokens of each request and then over requests;
      'tokens' over all target tokens of the batch (the JEEP code).
    weight_decay: L2 coefficient w, added to the gradient as w · weight before Adam. 'paper' is
      MEMIT's power law of the number of edits; 'released' is 0, because the released code tests
      the law for a type that its loader does not produce.
    norm_bound: no weight ends further than this from where it began (FT-L, "FT+L": every step is
      projected back into the L∞ ball); None leaves them free.
  """

  name: str
  trained_layers: tuple[int, ...]
  parameters: str
  learning_rate: float = 5e-4
  num_epochs: int = 25
  batch_size: int = 64
  stop_loss: float = 0.01
  loss_position: str = 'released'
  mean_over: str = 'edits'
  weight_decay: float | str = 'released'
  norm_bound: float | None = None

  kernels: ClassVar[tuple[Kernel, ...]] = ()  # needs no second moments

  def __post_init__(self) -> None:
    check_layers(self.trained_layers)
    choices: dict[str, Sequence[str]] = {
      'parameters': tuple(PARAMETERS),
      'loss_position': LOSS_POSITIONS,
      'mean_over': MEANS,
    }
    for field, values in choices.items():
      if getattr(self, field) not in values:
        raise UserError(f'{field} is {getattr(self, field)!r}; choose one of {", ".join(values)}.')
    for field in ('num_epochs', 'batch_size'):
      value = getattr(self, field)
      if not isinstance(value, int) or value < 1:
        raise UserError(f'{field} is {value!r}; give a whole number of at least 1.')
    for field in ('learning_rate', 'norm_bound'):
      value = getattr(self, field)
      if value is None and field == 'norm_bound':
        continue
      if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f'{field} is {value!r}; give a number above 0.')
    for field in ('stop_loss', 'weight_decay'):
      value = getattr(self, field)
      if field == 'weight_decay' and value in WEIGHT_DECAYS:
        continue
      if not isinstance(value, int | float) or not 0 <= value < math.inf:
        named = f', or {" or ".join(WEIGHT_DECAYS)}' if field == 'weight_decay' else ''
        raise UserError(f'{field} is {value!r}; give a number of at least 0{named}.')

  def decay(self, num_edits: int) -> float:
    """The coefficient w of `weight_decay`; the law gives 1.17 for one edit, 3.9e-4 for 10,000."""
    if isinstance(self.weight_decay, str):
      law = math.exp(0.15589562) * num_edits**-0.87028798
      return law if self.weight_decay == 'paper' else 0.0
    return float(self.weight_decay)

  def check(self, config: ModelConfig, num_edits: int) -> None:
    """Raises UserError for a layer outside the model; any number of edits can be trained on."""
    del num_edits
    check_layers(self.trained_layers, config.num_layers)

  def edit(self, context: EditContext, requests: Sequence[Request]) -> EditResult:
    """Trains the layers until the model predicts the targets.

    Returns:
      A patch of dense float32 updates, whatever the model's dtype. Its provenance has the mean
      loss of every epoch, in nats per target token.

    Raises:
      UserError: for a loss or weight that is not finite.
    """
    updates, losses = train(context.lm, requests, self)
    provenance = {
      **describe(context.lm, requests, self, context.seed),
      'epoch_losses': losses,
    }
    return EditResult(Patch(updates, provenance))


def ft_w(
  *,
  layers: Sequence[int],
  learning_rate: float = 5e-4,
  num_epochs: int = 25,
  batch_size: int = 64,
  stop_loss: float = 0.01,
  weight_decay: float | str = 'released',
  loss_position: str = 'released',
  mean_over: str = 'edits',
  parameters: str = 'block',
) -> FineTuning:
  """FT-W of the MEMIT paper (arXiv:2210.07229, appendix B), FT-WD in JEEP: a whole block.

  Args:
    layers: trained layers, ascending; one in the papers.
    weight_decay: 'paper' gives the name its reason; the released code runs without decay.
    learning_rate, num_epochs, batch_size, stop_loss, loss_position, mean_over, parameters: see
      `FineTuning`.
  """
  return FineTuning(
    name='ft_w',
    trained_layers=as_layers(layers),
    parameters=parameters,
    learning_rate=learning_rate,
    num_epochs=num_epochs,
    batch_size=batch_size,
    stop_loss=stop_loss,
    loss_position=loss_position,
    mean_over=mean_over,
    weight_decay=weight_decay,
  )


def ft(
  *,
  layers: Sequence[int],
  learning_rate: float = 5e-4,
  num_epochs: int = 25,
  batch_size: int = 64,
  stop_loss: float = 0.01,
  loss_position: str = 'released',
  parameters: str = 'mlp_out',
) -> FineTuning:
  """FT of the ROME paper (arXiv:2202.05262): an MLP's output projection, free to go anywhere.

  Args:
    layers: trained layers, ascending; one in the paper.
    parameters: 'mlp_kernel' leaves the bias alone, which the released code trains with the kernel.
    learning_rate, num_epochs, batch_size, stop_loss, loss_position: see
      `FineTuning`.
  """
  return FineTuning(
    name='ft',
    trained_layers=as_layers(layers),
    parameters=parameters,
    learning_rate=learning_rate,
    num_epochs=num_epochs,
    batch_size=batch_size,
    stop_loss=stop_loss,
    loss_position=loss_position,
  )


def ft_l(
  *,
  layers: Sequence[int],
  norm_bound: float,
  learning_rate: float = 5e-4,
  num_epochs: int = 25,
  batch_size: int = 64,
  stop_loss: float = 0.01,
  loss_position: str = 'released',
  parameters: str = 'mlp_out',
) -> FineTuning:
  """FT+L of the ROME paper: FT in which no weight moves further than `norm_bound`.

  Args:
    layers: trained layers, ascending; one in the paper.
    norm_bound: largest change of any weight (an L∞ bound; Zhu et al., arXiv:2012.00363).
    parameters, learning_rate, num_epochs, batch_size, stop_loss, loss_position: as in `ft`.
  """
  return dataclasses.replace(
    ft(
      layers=layers,
      learning_rate=learning_rate,
      num_epochs=num_epochs,
      batch_size=batch_size,
      stop_loss=stop_loss,
      loss_position=loss_position,
      parameters=parameters,
    ),
    name='ft_l',
    norm_bound=norm_bound,
  )
