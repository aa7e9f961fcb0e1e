"""Settings of MEND and MALMEN: the net, its training, and what the released codes leave open."""

import dataclasses
import math
from typing import NamedTuple

from jedit.editing.region import check_layers
from jedit.models import ModelConfig
from jedit.models.sharding import kernel_shape
from jedit.types import Kernel, UserError

MEND, MALMEN = 'mend', 'malmen'
TOKENS = ('all', 'answer')
ROWS = (*TOKENS, 'nonzero')
SIGNS = ('released', 'paper')
STATISTICS = ('exact', 'released')
DENOMINATORS = ('training', 'released')


class Planned(NamedTuple):
  """An edited kernel, the name of its net, and its number among the kernels of that net."""

  kernel: Kernel
  net: str
  mode: int


Plan = tuple[Planned, ...]


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of an editor; built by `jedit.methods.mend` and `jedit.methods.malmen`.

  Attributes:
    name: 'mend' or 'malmen'.
    edited_layers: ascending layer numbers.
    edited_kernels: names of kernels, in the order in which they are visited in a layer.
    rank: of the net, at most the input and output size of a kernel together.
    num_blocks: residual blocks of the net.
    shared: one net for all kernels of one shape, with a scale and a shift for each kernel.
    initial_rate: step size of every kernel at the start (edit_lr, lr).
    sign: 'released' adds rate times the transformed gradient, 'paper' subtracts it (MEND); the rate
      is learned and may change its sign.
    cached_tokens: 'answer' takes the rows that predict target tokens, 'all' those of every token,
      'nonzero' those whose input and gradient are not zero (MEND).
    statistics: 'released' counts a mini-batch's variance b times, which is exact with b - 1.
    update_statistics: rows of an edit update the running statistics that normalise them, for this
      edit (the released MALMEN); otherwise those of the training stay.
    denominator: of the loss whose gradients are transformed. 'training' averages over the target
      tokens of a full batch of the training, 'released' over those that there are.
    num_edits: edits of one update in training.
    mini_batch_size: edits whose loss is one mean, in training and editing.
    accumulate: updates of a step, whose gradients are averaged.
    edit_weight, locality_weight: of the losses on paraphrases and on unrelated prompts.
    locality_tokens: unrelated predictions that must stay: of 'all' tokens or of the 'answer'.
    learning_rate: of Adam.
    rate_learning_rate: of the step sizes and ridges; None takes `learning_rate`, as the released
      codes do.
    clip_norm: bound of the gradient's norm.
    num_steps: steps at most.
    num_validation: records held back for validation.
    validation_interval: steps between validations; 0 for none.
    patience: steps without a lower validation loss that end the training; 0 never ends it.
  """

  name: str
  edited_layers: tuple[int, ...]
  edited_kernels: tuple[str, ...]
  rank: int
  num_blocks: int
  shared: bool
  initial_rate: float
  sign: str
  cached_tokens: str
  statistics: str
  update_statistics: bool
  denominator: str
  num_edits: int
  mini_batch_size: int
  accumulate: int
  edit_weight: float
  locality_weight: float
  locality_tokens: str
  learning_rate: float
  rate_learning_rate: float | None
  clip_norm: float
  num_steps: int
  num_validation: int
  validation_interval: int
  patience: int

  def __post_init__(self) -> None:
    check_layers(self.edited_layers)
    if not isinstance(self.edited_kernels, tuple) or not self.edited_kernels:
      raise UserError(f'kernels is {self.edited_kernels!r}; give a tuple, such as ("mlp",).')
    if len(set(self.edited_kernels)) < len(self.edited_kernels):
      raise UserError(f'kernels is {self.edited_kernels!r}; list each kernel once.')
    choices = {
      'sign': SIGNS,
      'cached_tokens': ROWS,
      'statistics': STATISTICS,
      'denominator': DENOMINATORS,
      'locality_tokens': TOKENS,
    }
    for field, known in choices.items():
      if getattr(self, field) not in known:
        raise UserError(f'{field} is {getattr(self, field)!r}; choose one of {", ".join(known)}.')
    for field, least in _WHOLE.items():
      value = getattr(self, field)
      if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f'{field} is {value!r}; give a whole number of at least {least}.')
    for field in ('learning_rate', 'rate_learning_rate', 'clip_norm'):
      value = getattr(self, field)
      if value is None and field == 'rate_learning_rate':
        continue
      if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f'{field} is {value!r}; give a number above 0.')
    for field in ('edit_weight', 'locality_weight'):
      value = getattr(self, field)
      if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f'{field} is {value!r}; give a number of at least 0.')
    if not isinstance(self.initial_rate, int | float) or not math.isfinite(self.initial_rate):
      raise UserError(f'initial_rate is {self.initial_rate!r}; give a number.')
    if self.patience and not self.validation_interval:
      raise UserError('patience needs validation; give validation_interval.')
    if self.validation_interval and not self.num_validation:
      raise UserError('validation_interval needs records to validate on; give num_validation.')

  @property
  def edits(self) -> tuple[Kernel, ...]:
    """The edited kernels in the order in which they are visited."""
    return tuple(
      Kernel(layer, name) for layer in self.edited_layers for name in self.edited_kernels
    )

  def plan(self, config: ModelConfig) -> Plan:
    """The edited kernels of a model with their nets, in the order in which they are visited.

    Raises:
      UserError: for a kernel that the model does not have.
    """
    check_layers(self.edited_layers, config.num_layers)
    found: list[Planned] = []
    counts: dict[str, int] = {}
    for kernel in self.edits:
      rows, columns = kernel_shape(config, kernel)
      net = f'{rows}x{columns}' if self.shared else f'{kernel.name}_{kernel.layer}'
      found.append(Planned(kernel, net, counts.get(net, 0)))
      counts[net] = counts.get(net, 0) + 1
    return tuple(found)


_WHOLE = {
  'rank': 1,
  'num_blocks': 1,
  'num_edits': 1,
  'mini_batch_size': 1,
  'accumulate': 1,
  'num_steps': 1,
  'num_validation': 0,
  'validation_interval': 0,
  'patience': 0,
}
