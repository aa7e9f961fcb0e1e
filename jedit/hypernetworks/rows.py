"""Rows of an edit: inputs of the edited kernels, and the loss's gradients at their outputs."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jedit.hypernetworks.settings import Plan, Settings
from jedit.hypernetworks.texts import Array, Texts
from jedit.models import Model, kernel_path, site
from jedit.models.precision import wider
from jedit.models.sites import KERNEL_INPUT, KERNEL_OUTPUT, Change
from jedit.types import Kernel


@struct.dataclass
class AddRows:
  """Adds a vector at each of some positions: x[row[n], at[n, p]] += delta[n, p]."""

  row_Nx1: jax.Array
  at_NxP: jax.Array
  delta_NxPxO: jax.Array

  def __call__(self, x_BxTxO: jax.Array) -> jax.Array:
    return x_BxTxO.at[self.row_Nx1, self.at_NxP].add(self.delta_NxPxO.astype(x_BxTxO.dtype))


class Rows(NamedTuple):
  """Rows of one kernel, in the order of texts and positions.

  Attributes:
    key_NxPxI: input of the kernel.
    grad_NxPxO: gradient of the loss at its output.
    exists_NxP: which of them count.
  """

  key_NxPxI: Array
  grad_NxPxO: Array
  exists_NxP: Array

  @property
  def joined_NxPxC(self) -> jax.Array:
    """Both sides, as the nets read them."""
    return jnp.concatenate([self.key_NxPxI, self.grad_NxPxO], axis=-1)

  @property
  def joined_RxC(self) -> jax.Array:
    """The same, one row after the other."""
    return self.joined_NxPxC.reshape(-1, self.joined_NxPxC.shape[-1])


class Losses(NamedTuple):
  """Losses of a step: of every edit before, of paraphrases and of unrelated prompts after it.

  Attributes:
    inner_N, edit_N, locality_N: each text's share.
    total: what the gradient is of.
    num_rows: fewest rows that running statistics held when they were used.
  """

  inner_N: jax.Array
  edit_N: jax.Array
  locality_N: jax.Array
  total: jax.Array
  num_rows: jax.Array


def nll(model: Model, texts: Texts, hidden_BxTxD: jax.Array) -> jax.Array:
  """Weighted negative log-likelihood of the labels, [N]."""
  logp_NxQxV = jax.nn.log_softmax(_logits(model, texts, hidden_BxTxD))
  label_NxQx1 = jnp.asarray(texts.label_NxQ)[..., None]
  logp_NxQ = jnp.take_along_axis(logp_NxQxV, label_NxQx1, axis=-1)[..., 0]
  return -(jnp.asarray(texts.weight_NxQ).astype(logp_NxQ.dtype) * logp_NxQ).sum(-1)


def edited_nll(model: Model, changes: Mapping[Kernel, Change], texts: Texts) -> jax.Array:
  """Weighted negative log-likelihood [N] of the labels under changed kernels."""
  return nll(model, texts, _edited(model, changes, texts))


def divergence(model: Model, changes: Mapping[Kernel, Change], texts: Texts) -> jax.Array:
  """Weighted KL(unedited ‖ edited) of the predictions read, [N]."""
  first = min(kernel.layer for kernel in changes)
  before_BxTxD, _ = run(model, texts, first)
  before_NxQxV = jax.lax.stop_gradient(jax.nn.log_softmax(_logits(model, texts, before_BxTxD)))
  after_NxQxV = jax.nn.log_softmax(_logits(model, texts, _edited(model, changes, texts)))
  kl_NxQ = (jnp.exp(before_NxQxV) * (before_NxQxV - after_NxQxV)).sum(-1)
  return (jnp.asarray(texts.weight_NxQ).astype(kl_NxQ.dtype) * kl_NxQ).sum(-1)


def capture(
  model: Model, kernels: Sequence[Kernel], texts: Texts, cached_tokens: str
) -> tuple[jax.Array, dict[Kernel, Rows]]:
  """One forward and one backward pass.

  The gradients are those of zeros added to the outputs of the kernels. Nothing below the lowest
  kernel runs, and no gradient of a weight is formed.

  Args:
    model: the model that is edited.
    kernels: edited kernels.
    texts: prompts with their targets.
    cached_tokens: 'answer' for the rows that predict targets, 'all' for those of every token, and
      'nonzero' for those whose input and gradient are not zero.

  Returns:
    The weighted loss of each text [N], and the rows by kernel, in float32 or wider.
  """
  first = min(kernel.layer for kernel in kernels)
  num_texts, num_tokens = len(texts.last_N), texts.hidden_BxTxD.shape[1]
  weight_NxQ = jnp.asarray(texts.weight_NxQ)
  if cached_tokens == 'answer':
    at_NxP, exists_NxP = jnp.asarray(texts.read_at_NxQ), weight_NxQ > 0
  else:
    index_T = jnp.arange(num_tokens, dtype=jnp.int32)
    at_NxP = jnp.broadcast_to(index_T[None], (num_texts, num_tokens))
    exists_NxP = (at_NxP <= jnp.asarray(texts.last_N)[:, None]) & (weight_NxQ > 0).any(-1)[:, None]

  taps = tuple(dict.fromkeys(_input(kernel) for kernel in kernels))

  def loss(delta):
    edits = {
      site(kernel.layer, KERNEL_OUTPUT[kernel.name]): AddRows(texts.row_Nx1, at_NxP, delta[kernel])
      for kernel in kernels
    }
    hidden_BxTxD, seen = run(model, texts, first, edits=edits, taps=taps)
    loss_N = nll(model, texts, hidden_BxTxD)
    return loss_N.sum(), (loss_N, seen)

  dtype = wider(model.config.dtype, 'float32')
  zeros = {
    kernel: jnp.zeros((*at_NxP.shape, _output_size(model, kernel)), dtype) for kernel in kernels
  }
  grads, (loss_N, seen) = jax.grad(loss, has_aux=True)(zeros)
  rows = {}
  for kernel in kernels:
    key_NxPxI = seen[_input(kernel)][texts.row_Nx1, at_NxP].astype(dtype)
    grad_NxPxO, counts_NxP = grads[kernel], exists_NxP
    if cached_tokens == 'nonzero':
      counts_NxP &= (key_NxPxI != 0).any(-1) & (grad_NxPxO != 0).any(-1)
    rows[kernel] = Rows(key_NxPxI, grad_NxPxO, counts_NxP)
  return loss_N, rows


def run(
  model: Model, texts: Texts, first: int, **arguments: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The blocks from the lowest edited one on; arguments and results as of `Model.__call__`."""
  return model(
    hidden_NxTxD=texts.hidden_BxTxD,
    start=first,
    position_NxT=texts.layout.position_BxT,
    segment_NxT=texts.layout.segment_BxT,
    **arguments,
  )


def _edited(model: Model, changes: Mapping[Kernel, Change], texts: Texts) -> jax.Array:
  return run(model, texts, min(kernel.layer for kernel in changes), changes=changes)[0]


def _logits(model: Model, texts: Texts, hidden_BxTxD: jax.Array) -> jax.Array:
  return model.head(hidden_BxTxD[texts.row_Nx1, jnp.asarray(texts.read_at_NxQ)])


def _input(kernel: Kernel) -> str:
  return site(kernel.layer, KERNEL_INPUT[kernel.name])


def _output_size(model: Model, kernel: Kernel) -> int:
  leaf = model.params
  for key in kernel_path(kernel):
    leaf = leaf[key]
  return leaf.shape[-1]


@functools.partial(jax.jit, static_argnames=('settings', 'plan'))
def captured(
  model: Model, inner: Texts, settings: Settings, plan: Plan
) -> tuple[jax.Array, dict[Kernel, Rows]]:
  """`capture` for the kernels and tokens of a method, compiled."""
  return capture(model, [planned.kernel for planned in plan], inner, settings.cached_tokens)
