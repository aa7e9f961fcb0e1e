"""MALMEN (arXiv:2311.04661): MEND's gradients aggregated by least squares, for many edits."""

from collections.abc import Sequence

from jedit.editing.region import as_layers
from jedit.hypernetworks.settings import MALMEN
from jedit.methods.hypernetwork import HyperNetwork


def malmen(
  *,
  layers: Sequence[int],
  kernels: Sequence[str] = ('mlp',),
  rank: int = 1920,
  num_blocks: int = 2,
  initial_rate: float = 1e-6,
  cached_tokens: str = 'answer',
  statistics: str = 'released',
  update_statistics: bool = False,
  denominator: str = 'training',
  num_edits: int = 512,
  mini_batch_size: int = 32,
  edit_weight: float = 1.0,
  locality_weight: float = 1.0,
  learning_rate: float = 1e-5,
  rate_learning_rate: float | None = None,
  clip_norm: float = 1.0,
  num_steps: int = 318,
  num_validation: int = 0,
  validation_interval: int = 0,
  patience: int = 0,
) -> HyperNetwork:
  """MALMEN with the defaults of the released code (ChenmienTan/malmen 1df295d).

  Its one epoch of the 163,000 edits of zsRE is 318 steps, without validation.

  Args:
    layers: edited layers, ascending; the last six of GPT-J in the paper.
    kernels: of every edited layer, in the order of visits.
    statistics: 'released' counts the variance of a mini-batch of b rows b times instead of b - 1.
    update_statistics: True is the released behaviour, where validation and edits move the
      statistics.
    denominator: 'released' is a mean over the target tokens of a mini-batch, however few: the
      gradients of single edits are then larger than any in training, and locality breaks down.
    rate_learning_rate: of the step sizes and ridges; None takes `learning_rate`.
    rank, num_blocks, initial_rate, cached_tokens, num_edits, mini_batch_size, edit_weight,
      locality_weight, learning_rate, clip_norm, num_steps, num_validation, validation_interval,
      patience: see `jedit.hypernetworks.settings.Settings`.
  """
  return HyperNetwork(
    name=MALMEN,
    edited_layers=as_layers(layers),
    edited_kernels=tuple(kernels),
    rank=rank,
    num_blocks=num_blocks,
    shared=True,
    initial_rate=initial_rate,
    sign='paper',
    cached_tokens=cached_tokens,
    statistics=statistics,
    update_statistics=update_statistics,
    denominator=denominator,
    num_edits=num_edits,
    mini_batch_size=mini_batch_size,
    accumulate=1,
    edit_weight=edit_weight,
    locality_weight=locality_weight,
    locality_tokens='answer',
    learning_rate=learning_rate,
    rate_learning_rate=rate_learning_rate,
    clip_norm=clip_norm,
    num_steps=num_steps,
    num_validation=num_validation,
    validation_interval=validation_interval,
    patience=patience,
  )
