"""Loss of the target optimisation, for one edit: negative log-likelihood, KL term, decay."""

import jax
import jax.numpy as jnp
from flax import struct

from jedit.editing.blocks import RowBatch
from jedit.editing.problem import Problem
from jedit.editing.window import Window, run_window
from jedit.models import AddAt, Intervention, Model, Past


@struct.dataclass
class Terms:
  """The parts of one evaluation's loss, scalars per edit, and by δ the values of their places."""

  nll: jax.Array
  kl: jax.Array
  decay: jax.Array
  probability: jax.Array
  is_all_top: jax.Array
  joint_D: dict[str, jax.Array]


def kl_logp(
  model: Model, problem: Problem, delta_D: dict[str, jax.Array], hidden_SxD: jax.Array, past: Past
) -> jax.Array:
  """Log-probabilities [V] at the subject's last token of "{subject} is a".

  A δ at the prompt's last token sits at "a", behind this token, and cannot change it.

  Args:
    model: the model.
    problem: the deltas.
    delta_D: values of the deltas.
    hidden_SxD, past: of the window's KL row, one edit.
  """
  edits: dict[str, Intervention] = {
    placed.site: AddAt(jnp.zeros((1,), jnp.int32), delta_D[placed.name][None])
    for placed in problem.deltas
    if placed.token == 'subject_last'
  }
  hidden_1xSxD, _ = run_window(model, problem, hidden_SxD[None], past, edits)
  return jax.nn.log_softmax(model.head(hidden_1xSxD[0, 0]))


def loss(
  delta_D: dict[str, jax.Array],
  model: Model,
  problem: Problem,
  window: Window,
  kl_start_V: jax.Array,
  rows: RowBatch,
  nll_factor: jax.Array,
) -> tuple[jax.Array, Terms]:
  """Loss of one edit (no B axis anywhere) and its terms.

  MEMIT (arXiv:2210.07229), eq. 16; PMET (arXiv:2308.08742), eq. 10; JEEP (arXiv:2412.17872),
  eq. 11.

  Args:
    delta_D: values of the deltas.
    model: the model.
    problem: the deltas and their objective.
    window: of the edit.
    kl_start_V: log-probabilities of the unedited model at the KL position.
    rows: of the edit.
    nll_factor: present weight of the negative log-likelihood.
  """
  objective = problem.objective
  edits: dict[str, Intervention] = {}
  for placed in problem.deltas:
    at_P, value_D = rows.token_at_BxP[placed.token], delta_D[placed.name]
    value_PxD = jnp.broadcast_to(value_D, (len(at_P), len(value_D)))
    edits[placed.site] = AddAt(jnp.asarray(at_P), value_PxD)
  hidden_PxSxD, seen = run_window(
    model, problem, window.hidden_BxPxSxD, window.past, edits, taps=tuple(edits)
  )
  read_PxJxD = jnp.take_along_axis(hidden_PxSxD, rows.read_at_BxPxJ[..., None], axis=1)
  logits_PxJxV = model.head(read_PxJxD)
  label_PxJx1 = rows.label_BxPxJ[..., None]
  label_logit_PxJ = jnp.take_along_axis(logits_PxJxV, label_PxJx1, axis=-1)[..., 0]
  logp_PxJ = label_logit_PxJ - jax.nn.logsumexp(logits_PxJxV, axis=-1)
  mask_PxJ = rows.label_mask_BxPxJ
  count_P = mask_PxJ.sum(-1).astype(jnp.float32)
  row_nll_P = -jnp.where(mask_PxJ, logp_PxJ, 0.0).sum(-1) / count_P
  is_top_PxJ = label_logit_PxJ >= logits_PxJxV.max(-1)

  kl_V = kl_logp(model, problem, delta_D, window.kl_hidden_BxSxD, window.kl_past)
  kl = jnp.sum(jnp.exp(kl_V) * (kl_V - kl_start_V))

  decay = jnp.zeros((), jnp.float32)
  for placed in problem.deltas:
    norm = safe_norm(delta_D[placed.name])
    if objective.decay_form == 'released':
      norm = norm / jnp.sum(jnp.square(window.init_BxD[placed.name]))
    decay = decay + placed.delta.weight_decay * norm
  terms = Terms(
    nll=nll_factor * row_nll_P.mean(),
    kl=jnp.asarray(objective.kl_factor * kl),
    decay=decay,
    probability=jnp.exp(-row_nll_P).mean(),
    is_all_top=jnp.all(is_top_PxJ | ~mask_PxJ),
    joint_D={
      placed.name: seen[placed.site][0, rows.token_at_BxP[placed.token][0]].astype(jnp.float32)
      for placed in problem.deltas
    },
  )
  return terms.nll + terms.kl + terms.decay, terms


def safe_norm(x: jax.Array) -> jax.Array:
  """‖x‖₂ of a vector, with derivative 0 at 0 instead of NaN."""
  square = jnp.sum(jnp.square(x))
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
