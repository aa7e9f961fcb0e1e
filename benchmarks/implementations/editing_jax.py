"""Edits in JAX: the engine, and target optimisation without the engine's window."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.workload import EditWorkload
from flax import struct

import jedit
from implementations.base_jax import JaxImplementation
from jedit.editing.blocks import Block, RowBatch, row_batch
from jedit.editing.loss import safe_norm
from jedit.editing.problem import Problem
from jedit.editing.prompts import EditRows, encode_edits
from jedit.editing.slots import Targets, choose_batch_size, optimise_targets
from jedit.models import AddAt, Model
from jedit.parallel.shapes import round_up


class Engine(JaxImplementation):
  """`jedit.edit`, or its target optimisation alone."""

  def __init__(self, workload: EditWorkload):
    self.workload, self.lm, self.recipe = workload, workload.language_model(), workload.recipe()
    super().__init__(self.lm.config.dtype)
    if workload.timed != 'targets':
      cov_FxF = workload.covariance()
      self.second_moments = jedit.SecondMoments(dict.fromkeys(self.recipe.kernels, cov_FxF))

  def work(self) -> tuple[Targets, dict[str, float], dict[jedit.Kernel, np.ndarray]]:
    """Targets, and of a whole edit the seconds by stage and the keys."""
    workload, lm = self.workload, self.lm
    size = workload.target_batch_size
    if workload.timed == 'targets':
      limit = lm.config.position_limit
      rows = encode_edits(lm.tokenizer, workload.requests, workload.contexts, limit)
      problem = self.recipe.problem(0)
      return optimise_targets(lm.model, rows, problem, batch_size=size), {}, {}
    # Without a `FactorCache` of the caller's, every round pays for the factors of all layers.
    result = jedit.edit(
      lm,
      workload.requests,
      self.recipe,
      self.second_moments,
      contexts=workload.contexts,
      target_batch_size=size,
    )
    (targets,) = result.details.targets
    return targets, dict(result.seconds), dict(result.details.keys)

  def num_programs(self, done: Any) -> int:
    return done[0].num_programs

  def report(self, done: Any, seconds: float) -> dict[str, Any]:
    targets, parts, keys = done
    answers = {
      'indices': np.arange(len(targets.num_steps)),
      'first loss': targets.trace[:, 0, 0],
      'last loss': targets.trace[:, self.workload.num_steps - 1, 0],
    }
    answers |= {f'z {name}': z_BxD for name, z_BxD in targets.z.items()}
    answers |= {f'key {kernel.layer}': key_BxF for kernel, key_BxF in keys.items()}
    return {
      'seconds': parts['keys'] if self.workload.timed == 'keys' else seconds,
      'amount': len(targets.num_steps),
      'parts': parts,
      'answers': answers,
    }


@struct.dataclass
class _State:
  delta_BxD: dict[str, jax.Array]
  moments: Any
  init_BxD: dict[str, jax.Array]
  kl_start_BxV: jax.Array


class WholeRows(JaxImplementation):
  """Batched target optimisation without the window.

  Every step runs all rows, all of their tokens and all layers from the embeddings on. As in the
  engine, edits of similar lengths are optimised together, the per-edit loss is vmapped, gradients
  reach down to δ only and the head is applied where a token is predicted.
  """

  def __init__(self, workload: EditWorkload):
    self.workload, self.lm = workload, workload.language_model()
    super().__init__(self.lm.config.dtype)
    self.problem: Problem = workload.recipe().problem(0)
    objective = self.problem.objective
    self.optimizer = objective.optimizer(objective.learning_rate)
    self.step = jax.jit(self._step, static_argnames='is_first', donate_argnames='state')
    self.steps = jax.jit(self._steps, donate_argnames='state')
    rows = workload.rows()
    length = [max(len(text.ids) for text in edit.with_target) for edit in rows]
    order = sorted(range(len(rows)), key=length.__getitem__)
    fits = choose_batch_size(self.lm.model, self._block(rows), len(rows[0].with_target), 0)
    size = min(workload.target_batch_size or fits, len(rows))
    parts = [order[first : first + size] for first in range(0, len(rows), size)]
    self.batches = [(part, self._rows([rows[i] for i in part], size)) for part in parts]

  def _rows(self, edits: Sequence[EditRows], size: int) -> RowBatch:
    """Rows of at most `size` edits."""
    block = dataclasses.replace(self._block(edits), size=size, fill=size)
    return jax.tree.map(jnp.asarray, row_batch(edits, block, self.problem.tokens))

  def _block(self, edits: Sequence[EditRows]) -> Block:
    """The shape of their rows, all padded to one length, the KL rows among them."""
    texts = [text for edit in edits for text in edit.with_target]
    lengths = [len(text.ids) - 1 for text in texts] + [len(edit.kl.ids) for edit in edits]
    num_tokens = round_up(max(lengths), 4)
    return Block(
      indices=(),
      size=0,
      fill=0,
      window=num_tokens,
      past=0,
      num_tokens=num_tokens,
      num_targets=max(len(text.target_ids) for text in texts),
      kl_tokens=num_tokens,
    )

  def _loss(self, delta_D, model: Model, rows: RowBatch, state: _State, is_first: bool):
    """Loss of one edit; see `jedit.editing.objective.Objective`."""
    objective, width = self.problem.objective, self.lm.config.width
    token_RxT = jnp.concatenate([rows.token_BxPxT, rows.kl_token_BxT[None]])
    at_R = jnp.append(rows.start_BxP, rows.kl_start_B)  # subject's last token
    read_PxJ = rows.start_BxP[:, None] + rows.read_at_BxPxJ
    edits = {
      placed.site: AddAt(at_R, jnp.broadcast_to(delta_D[placed.name], (len(at_R), width)))
      for placed in self.problem.deltas
    }
    hidden_RxTxD, seen = model(token_RxT, edits=edits, taps=tuple(edits))
    read_PxJxD = jnp.take_along_axis(hidden_RxTxD[:-1], read_PxJ[..., None], axis=1)
    logp_PxJxV = jax.nn.log_softmax(model.head(read_PxJxD))
    logp_PxJ = jnp.take_along_axis(logp_PxJxV, rows.label_BxPxJ[..., None], axis=-1)[..., 0]
    count_P = rows.label_mask_BxPxJ.sum(-1).astype(jnp.float32)
    nll = -(jnp.where(rows.label_mask_BxPxJ, logp_PxJ, 0.0).sum(-1) / count_P).mean()

    kl_V = jax.nn.log_softmax(model.head(hidden_RxTxD[-1, at_R[-1]]))
    start_V = jax.lax.stop_gradient(kl_V) if is_first else state.kl_start_BxV
    kl = jnp.sum(jnp.exp(kl_V) * (kl_V - start_V))
    init_D = state.init_BxD
    if is_first:  # δ is 0
      init_D = {
        placed.name: jax.lax.stop_gradient(seen[placed.site][0, at_R[0]]).astype(jnp.float32)
        for placed in self.problem.deltas
      }
    loss = objective.nll_factor * nll + objective.kl_factor * kl
    for placed in self.problem.deltas:
      norm = safe_norm(delta_D[placed.name]) / jnp.sum(init_D[placed.name] ** 2)
      loss = loss + placed.delta.weight_decay * norm
    return loss, (start_V, init_D)

  def _step(self, model: Model, rows: RowBatch, state: _State, *, is_first: bool):
    grad = jax.vmap(
      jax.value_and_grad(lambda *a: self._loss(*a, is_first), has_aux=True),
      in_axes=(0, None, 0, 0),
    )
    (loss_B, (start_BxV, init_BxD)), grad_BxD = grad(state.delta_BxD, model, rows, state)
    with jax.numpy_dtype_promotion('standard'):  # optax raises a float to an integer count
      update_BxD, moments = jax.vmap(self.optimizer.update)(grad_BxD, state.moments)
    moved = optax.apply_updates(state.delta_BxD, update_BxD)
    for placed in self.problem.deltas:
      name = placed.name
      bound_B = placed.delta.clip_factor * jnp.linalg.norm(init_BxD[name], axis=-1)
      norm_B = jnp.maximum(jnp.linalg.norm(moved[name], axis=-1), 1e-30)
      moved[name] = moved[name] * jnp.minimum(1.0, bound_B / norm_B)[:, None]
    return _State(moved, moments, init_BxD, start_BxV), loss_B

  def _steps(self, model: Model, rows: RowBatch, state: _State, count) -> _State:
    """Several in one program, as the engine's."""

    def body(_, state):
      return self._step(model, rows, state, is_first=False)[0]

    return jax.lax.fori_loop(0, count, body, state)

  def _optimise(self, rows: RowBatch, num_steps: int):
    size, config = len(rows.kl_start_B), self.lm.config

    # Each its own array: they are donated one by one.
    def zeros():
      return {placed.name: jnp.zeros((size, config.width)) for placed in self.problem.deltas}

    state = _State(
      delta_BxD=zeros(),
      moments=jax.vmap(self.optimizer.init)(zeros()),
      init_BxD=zeros(),
      kl_start_BxV=jnp.zeros((size, config.vocab_size)),
    )
    state, first_B = self.step(self.lm.model, rows, state, is_first=True)
    state = self.steps(self.lm.model, rows, state, num_steps - 2)
    # The last evaluation takes no step.
    before = jax.tree.map(jnp.copy, state.delta_BxD)
    state, last_B = self.step(self.lm.model, rows, state, is_first=False)
    return jax.device_get(((first_B, last_B), before, state.init_BxD))

  def work(self) -> list[Any]:
    return [self._optimise(rows, self.workload.num_steps) for _, rows in self.batches]

  def rehearse(self) -> None:
    for _, rows in self.batches:
      self._optimise(rows, 2)

  def num_programs(self, done: Any) -> int:
    del done
    return 3 * len({tuple(map(jnp.shape, jax.tree.leaves(rows))) for _, rows in self.batches})

  def report(self, done: Any, seconds: float) -> dict[str, Any]:
    del seconds
    answers: dict[str, list] = {}
    for (part, _), ((first_B, last_B), delta_BxD, init_BxD) in zip(self.batches, done):
      values = {'indices': part, 'first loss': first_B, 'last loss': last_B}
      values |= {f'z {name}': init_BxD[name] + delta_BxD[name] for name in init_BxD}
      for name, value in values.items():
        answers.setdefault(name, []).extend(value[: len(part)])
    return {
      'amount': len(self.workload.records),
      'answers': {name: np.array(values) for name, values in answers.items()},
    }
