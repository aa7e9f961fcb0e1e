"""MEND (arXiv:2110.11309): a net turns the gradient of an edit into an update of low rank."""

from collections.abc import Sequence

from jedit.editing.region import as_layers
from jedit.hypernetworks.settings import MEND
from jedit.methods.hypernetwork import HyperNetwork


def mend(
  *,
  layers: Sequence[int],
  kernels: Sequence[str] = ('mlp_up', 'mlp'),
  rank: int = 1920,
  num_blocks: int = 2,
  shared: bool = True,
  initial_rate: float = 1e-4,
  sign: str = 'released',
  update_statistics: bool = False,
  denominator: str = 'training',
  num_edits: int = 1,
  accumulate: int = 10,
  edit_weight: float = 0.1,
  locality_weight: float = 1.0,
  locality_tokens: str = 'all',
  learning_rate: float = 1e-6,
  rate_learning_rate: float | None = None,
  clip_norm: float = 100.0,
  num_steps: int = 100_000,
  num_validation: int = 500,
  validation_interval: int = 500,
  patience: int = 2000,
) -> HyperNetwork:
  """MEND with the defaults of the released code (eric-mitchell/mend e04fdb9).

  A released iteration is an edit, and every tenth takes a step: a million iterations are 100,000
  steps here, validated every 500 and stopped 2,000 after the best.

  Args:
    layers: edited layers, ascending; the last three in the paper.
    kernels: of every edited layer, in the order of visits; gated MLPs have ('mlp_gate', 'mlp_up',
      'mlp').
    sign: 'released' adds rate times the transformed gradient and starts at +1e-4, which the
      training has to turn around; 'paper' subtracts it.
    rate_learning_rate: None is the released behaviour, where the second optimiser (lr_lr 1e-4) has
      no effect; 1e-4 is what was intended.
    rank, num_blocks, shared, initial_rate, update_statistics, denominator, num_edits, accumulate,
      edit_weight, locality_weight, locality_tokens, learning_rate, clip_norm, num_steps,
      num_validation, validation_interval, patience: see `jedit.hypernetworks.settings.Settings`.
  """
  return HyperNetwork(
    name=MEND,
    edited_layers=as_layers(layers),
    edited_kernels=tuple(kernels),
    rank=rank,
    num_blocks=num_blocks,
    shared=shared,
    initial_rate=initial_rate,
    sign=sign,
    cached_tokens='nonzero',
    statistics='exact',
    update_statistics=update_statistics,
    denominator=denominator,
    num_edits=num_edits,
    mini_batch_size=num_edits,
    accumulate=accumulate,
    edit_weight=edit_weight,
    locality_weight=locality_weight,
    locality_tokens=locality_tokens,
    learning_rate=learning_rate,
    rate_learning_rate=rate_learning_rate,
    clip_norm=clip_norm,
    num_steps=num_steps,
    num_validation=num_validation,
    validation_interval=validation_interval,
    patience=patience,
  )
