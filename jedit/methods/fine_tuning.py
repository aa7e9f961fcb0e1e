"""Fine-tuning baselines: FT-W of all weights of a block, FT and FT-L of one MLP output projection.

Defaults are the released forms behind the published tables; the forms of the papers are named
choices of the same fields.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from jedit.editing.context import EditContext
from jedit.editing.region import as_layers, check_layers
from jedit.editing.result import EditResult
from jedit.methods.training import Training, train
from jedit.models import ModelConfig
from jedit.models.patch import Patch
from jedit.types import Kernel, Request


@dataclasses.dataclass(frozen=True)
class FineTuning(Training):
  """A fine-tuning baseline; built by `ft`, `ft_l` and `ft_w`; settings of `Training`."""

  kernels: ClassVar[tuple[Kernel, ...]] = ()  # needs no second moments

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
    return EditResult(Patch(updates, {'epoch_losses': losses}))


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
      `Training`.
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
      `Training`.
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
