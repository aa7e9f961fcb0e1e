"""Loss of the target optimisation, for one edit: negative log-likelihood, KL term, decay."""

import jax
import jax.numpy as jnp
from flax import struct

from jedit.editing.blocks import RowBatch
from jedit.editing.problem import Problem
from jedit.models import Model


@struct.dataclass
class Terms:
  """The parts of one evaluation's loss, scalars per edit."""

  nll: jax.Array
  kl: jax.Array
  decay: jax.Array
  probability: jax.Array
  is_all_top: jax.Array


@struct.dataclass
class Fixed:
  """Values without any δ, which the first evaluation finds: there every δ is 0.

  Attributes:
    is_first: whether it is still to come.
    kl_start_V: log-probabilities at the KL token.
    init_D: by δ, the value v₀ of its place on the first row.
  """

  is_first: jax.Array
  kl_start_V: jax.Array
  init_D: dict[str, jax.Array]

  def after(self, kl_V: jax.Array, joint_D: dict[str, jax.Array]) -> 'Fixed':
    """With the values of this evaluation if it is the first."""
    found = jax.lax.stop_gradient((kl_V, joint_D))
    kept = jax.tree.map(
      lambda new, old: jnp.where(self.is_first, new, old), found, (self.kl_start_V, self.init_D)
    )
    return Fixed(jnp.zeros_like(self.is_first), *kept)


def loss(
  hidden_MxD: jax.Array,
  delta_D: dict[str, jax.Array],
  top: Model,
  problem: Problem,
  rows: RowBatch,
  fixed: Fixed,
  joint_D: dict[str, jax.Array],
  nll_factor: jax.Array,
) -> tuple[jax.Array, tuple[Terms, Fixed]]:
  """Loss of one edit (no B axis anywhere), its terms, and what stays fixed from now on.

  MEMIT (arXiv:2210.07229), eq. 16; PMET (arXiv:2308.08742), eq. 10; JEEP (arXiv:2412.17872),
  eq. 11.

  Args:
    hidden_MxD: output of the last block at the windows of the rows and at the KL token.
    delta_D: values of the deltas.
    top: the model's head.
    problem: the deltas and their objective.
    rows: of the edit.
    fixed: what the first evaluation found; this one's where `fixed.is_first`.
    joint_D: values of the deltas' places on the first row.
    nll_factor: present weight of the negative log-likelihood.
  """
  objective = problem.objective
  num_prompts, num_targets = rows.read_at_BxPxJ.shape
  window = (len(hidden_MxD) - 1) // num_prompts
  read_PxJ = jnp.arange(num_prompts)[:, None] * window + rows.read_at_BxPxJ
  # One product with the head for everything that is read; the KL token comes last.
  read_R = jnp.append(read_PxJ.reshape(-1), len(hidden_MxD) - 1)
  logits_RxV = top.head(hidden_MxD[read_R])
  logits_PxJxV = logits_RxV[:-1].reshape(num_prompts, num_targets, -1)
  label_PxJx1 = rows.label_BxPxJ[..., None]
  label_logit_PxJ = jnp.take_along_axis(logits_PxJxV, label_PxJx1, axis=-1)[..., 0]
  logp_PxJ = label_logit_PxJ - jax.nn.logsumexp(logits_PxJxV, axis=-1)
  mask_PxJ = rows.label_mask_BxPxJ
  count_P = mask_PxJ.sum(-1).astype(jnp.float32)
  row_nll_P = -jnp.where(mask_PxJ, logp_PxJ, 0.0).sum(-1) / count_P
  is_top_PxJ = label_logit_PxJ >= logits_PxJxV.max(-1)

  kl_V = jax.nn.log_softmax(logits_RxV[-1])
  fixed = fixed.after(kl_V, joint_D)
  kl = jnp.sum(jnp.exp(kl_V) * (kl_V - fixed.kl_start_V))

  decay = jnp.zeros((), jnp.float32)
  for placed in problem.deltas:
    norm = safe_norm(delta_D[placed.name])
    if objective.decay_form == 'released':
      norm = norm / jnp.sum(jnp.square(fixed.init_D[placed.name]))
    decay = decay + placed.delta.weight_decay * norm
  terms = Terms(
    nll=nll_factor * row_nll_P.mean(),
    kl=jnp.asarray(objective.kl_factor * kl),
    decay=decay,
    probability=jnp.exp(-row_nll_P).mean(),
    is_all_top=jnp.all(is_top_PxJ | ~mask_PxJ),
  )
  return terms.nll + terms.kl + terms.decay, (terms, fixed)


def safe_norm(x: jax.Array) -> jax.Array:
  """‖x‖₂ of a vector, with derivative 0 at 0 instead of NaN."""
  square = jnp.sum(jnp.square(x))
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
