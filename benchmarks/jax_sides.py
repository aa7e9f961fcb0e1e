"""Our sides: the engine, and the engine's loop with the window switched off."""

import resource
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from material import Material

import jedit
from jedit.editing.edit import find_targets
from jedit.editing.region import Objective
from jedit.editing.schedule import Targets, choose_batch_size
from jedit.editing.target import safe_norm
from jedit.editing.update import Kernel
from jedit.evals import metrics
from jedit.evals.generation import Generation
from jedit.evals.scoring import plan_batches
from jedit.experiments.compile_timer import CompileClock
from jedit.models import AddAt, site
from jedit.models.encoding import Row, encode_many
from jedit.models.precision import matmul_precision
from jedit.parallel.shapes import pad

GENERATED_TOKENS = 100  # of a text, with its prompt
METRICS = [name for name, each in metrics.METRICS.items() if each.evidence in metrics.PARTS]
PLACES = {'attn': 'attn_out', 'mlp': 'mlp_out'}


class Engine:
  """`jedit.edit`, or its target optimisation alone.

  Args:
    material: what is edited.
    part: what is timed: 'targets', 'keys' or all of it, 'edit'.
  """

  def __init__(self, material: Material, part: str):
    self.material, self.part = material, part
    self.lm = material.model()
    self.recipe = material.recipe()
    self.cov_FxF = None if part == 'targets' else material.covariance()

  def warm_up(self) -> dict[str, Any]:
    with CompileClock() as clock:
      targets, _, _ = self._work()
    return {
      'compile_seconds': clock.seconds,
      'num_programs': targets.num_programs,
      'device': jax.devices()[0].device_kind,
    }

  def ceiling(self) -> float:
    return matmul_ceiling(self.lm.config.dtype)

  def round(self, number: int, rounds: int) -> dict[str, Any]:
    del number, rounds
    with CompileClock() as clock:
      start = time.perf_counter()
      targets, seconds, keys = self._work()
      whole = time.perf_counter() - start
    answers = {
      'indices': np.arange(len(targets.num_steps)),
      'first loss': targets.trace[:, 0, 0],
      'last loss': targets.trace[:, self.recipe.objective.num_steps - 1, 0],
    }
    answers |= {f'z {name}': z_BxD for name, z_BxD in targets.z.items()}
    answers |= {f'key {layer}': key_BxF for (_, layer), key_BxF in keys.items()}
    return {
      'seconds': seconds['keys'] if self.part == 'keys' else whole,
      'edits': len(targets.num_steps),
      'parts': seconds or {'targets': whole},
      'answers': answers,
      'compile_seconds': clock.seconds,
    }

  def memory(self) -> dict[str, int | None]:
    return peak_memory()

  def _work(self) -> tuple[Targets, dict[str, float], dict[Kernel, np.ndarray]]:
    """Targets, and for a whole edit the seconds of its stages and the keys."""
    material = self.material
    work = self.lm, material.requests, self.recipe
    shared = {'contexts': material.contexts, 'batch_size': material.batch_size}
    if self.part == 'targets':
      return find_targets(*work, **shared), {}, {}
    # New arrays, as after loading: every round pays for the factors of all layers.
    stats = jedit.SecondMoments({kernel: self.cov_FxF.copy() for kernel in self.recipe.kernels})
    _, details = jedit.edit(*work, stats, **shared, details=True)
    (targets,) = details.targets
    return targets, details.seconds, details.keys


@struct.dataclass
class _Rows:
  """A batch of edits: P prompt rows and the KL row, whole, padded to one length."""

  token_BxRxT: jax.Array
  at_BxR: jax.Array  # subject's last token
  read_BxPxJ: jax.Array
  label_BxPxJ: jax.Array
  is_label_BxPxJ: jax.Array


@struct.dataclass
class _State:
  delta_BxD: dict[str, jax.Array]
  moments: Any
  init_BxD: dict[str, jax.Array]
  kl_start_BxV: jax.Array


class WholeRows:
  """Batched targets with the window switched off.

  Every step runs all rows, all of their tokens and all layers from the embeddings on. As in the
  engine, edits of similar lengths are optimised together, the per-edit loss is vmapped, gradients
  reach down to δ only and the head is applied where a token is predicted.
  """

  def __init__(self, material: Material, part: str):
    assert part == 'targets', 'nothing else has a window'
    self.material = material
    self.lm = material.model()
    self.objective: Objective = material.recipe().objective
    (region,) = material.recipe().regions
    self.deltas = {site(region.layers[-1], PLACES[d.name]): d for d in region.deltas}
    self.adam = optax.adam(self.objective.learning_rate)
    self.step = jax.jit(self._step, static_argnames='is_first', donate_argnames='state')
    self.steps = jax.jit(self._steps, donate_argnames='state')
    rows = material.rows()
    length = [max(len(text.ids) for text in edit.with_target) for edit in rows]
    order = sorted(range(len(rows)), key=length.__getitem__)
    fits = choose_batch_size(self.lm.config, rows, 0)
    size = min(material.batch_size or fits, len(rows))
    parts = [order[first : first + size] for first in range(0, len(rows), size)]
    self.batches = [(part, self._rows([rows[i] for i in part], size)) for part in parts]

  def _rows(self, edits, size: int) -> _Rows:
    edits = edits + edits[:1] * (size - len(edits))
    texts = [text for edit in edits for text in edit.with_target]
    longest = max(len(text.ids) - 1 for text in texts)
    token_NxT, _ = pad(
      [ids for e in edits for ids in [t.ids[:-1] for t in e.with_target] + [e.kl.ids]],
      -(-longest // 4) * 4,
    )
    label_NxJ, count_N = pad([text.target_ids for text in texts])
    index_J = np.arange(label_NxJ.shape[1])
    is_label_NxJ = index_J < count_N[:, None]
    first_N = np.array([text.target_start - 1 for text in texts])
    read_NxJ = np.where(is_label_NxJ, first_N[:, None] + index_J, 0)

    def per_edit(x_N):
      return jnp.asarray(x_N).reshape(size, -1, *x_N.shape[1:])

    return _Rows(
      token_BxRxT=per_edit(token_NxT),
      at_BxR=jnp.array([[t.subject_last for t in (*e.with_target, e.kl)] for e in edits]),
      read_BxPxJ=per_edit(read_NxJ),
      label_BxPxJ=per_edit(label_NxJ),
      is_label_BxPxJ=per_edit(is_label_NxJ),
    )

  def _loss(self, delta_D, model, rows: _Rows, state: _State, is_first: bool):
    """Loss of one edit; see `jedit.methods.base.Objective`."""
    at_R = rows.at_BxR
    edits = {
      place: AddAt(at_R, jnp.broadcast_to(delta_D[d.name], (len(at_R), len(delta_D[d.name]))))
      for place, d in self.deltas.items()
    }
    hidden_RxTxD, seen = model(rows.token_BxRxT, edits=edits, taps=tuple(self.deltas))
    read_PxJxD = jnp.take_along_axis(hidden_RxTxD[:-1], rows.read_BxPxJ[..., None], axis=1)
    logp_PxJxV = jax.nn.log_softmax(model.head(read_PxJxD))
    logp_PxJ = jnp.take_along_axis(logp_PxJxV, rows.label_BxPxJ[..., None], axis=-1)[..., 0]
    count_P = rows.is_label_BxPxJ.sum(-1).astype(jnp.float32)
    nll = -(jnp.where(rows.is_label_BxPxJ, logp_PxJ, 0.0).sum(-1) / count_P).mean()

    kl_V = jax.nn.log_softmax(model.head(hidden_RxTxD[-1, at_R[-1]]))
    start_V = jax.lax.stop_gradient(kl_V) if is_first else state.kl_start_BxV
    kl = jnp.sum(jnp.exp(kl_V) * (kl_V - start_V))
    init_D = state.init_BxD
    if is_first:  # δ is 0
      init_D = {
        d.name: jax.lax.stop_gradient(seen[place][0, at_R[0]]).astype(jnp.float32)
        for place, d in self.deltas.items()
      }
    loss = self.objective.nll_factor * nll + self.objective.kl_factor * kl
    for d in self.deltas.values():
      loss = loss + d.weight_decay * safe_norm(delta_D[d.name]) / jnp.sum(init_D[d.name] ** 2)
    return loss, (start_V, init_D)

  def _step(self, model, rows: _Rows, state: _State, *, is_first: bool):
    grad = jax.vmap(
      jax.value_and_grad(lambda *a: self._loss(*a, is_first), has_aux=True),
      in_axes=(0, None, 0, 0),
    )
    (loss_B, (start_BxV, init_BxD)), grad_BxD = grad(state.delta_BxD, model, rows, state)
    with jax.numpy_dtype_promotion('standard'):  # optax raises a float to an integer count
      update_BxD, moments = jax.vmap(self.adam.update)(grad_BxD, state.moments)
    moved = optax.apply_updates(state.delta_BxD, update_BxD)
    for d in self.deltas.values():
      bound_B = d.clip_factor * jnp.linalg.norm(init_BxD[d.name], axis=-1)
      norm_B = jnp.maximum(jnp.linalg.norm(moved[d.name], axis=-1), 1e-30)
      moved[d.name] = moved[d.name] * jnp.minimum(1.0, bound_B / norm_B)[:, None]
    return _State(moved, moments, init_BxD, start_BxV), loss_B

  def _steps(self, model, rows: _Rows, state: _State, count) -> _State:
    """Several in one program, as the engine's."""

    def body(_, state):
      return self._step(model, rows, state, is_first=False)[0]

    return jax.lax.fori_loop(0, count, body, state)

  def _optimise(self, rows: _Rows, num_steps: int):
    size, width = len(rows.at_BxR), self.lm.config.width

    # Each its own array: they are donated one by one.
    def zeros():
      return {d.name: jnp.zeros((size, width)) for d in self.deltas.values()}

    state = _State(
      delta_BxD=zeros(),
      moments=jax.vmap(self.adam.init)(zeros()),
      init_BxD=zeros(),
      kl_start_BxV=jnp.zeros((size, self.lm.config.vocab_size)),
    )
    state, first_B = self.step(self.lm.model, rows, state, is_first=True)
    state = self.steps(self.lm.model, rows, state, num_steps - 2)
    # The last evaluation takes no step.
    before = jax.tree.map(jnp.copy, state.delta_BxD)
    state, last_B = self.step(self.lm.model, rows, state, is_first=False)
    return jax.device_get(((first_B, last_B), before, state.init_BxD))

  def warm_up(self) -> dict[str, Any]:
    with CompileClock() as clock:
      for _, rows in self.batches:
        self._optimise(rows, 2)
    shapes = {jax.tree.map(jnp.shape, rows) for _, rows in self.batches}
    return {'compile_seconds': clock.seconds, 'num_programs': 3 * len(shapes)}

  def ceiling(self) -> float:
    return matmul_ceiling(self.lm.config.dtype)

  def round(self, number: int, rounds: int) -> dict[str, Any]:
    del number, rounds
    with CompileClock() as clock:
      start = time.perf_counter()
      found = [self._optimise(rows, self.material.num_steps) for _, rows in self.batches]
      seconds = time.perf_counter() - start
    answers: dict[str, list] = {}
    for (part, _), (losses, delta_BxD, init_BxD) in zip(self.batches, found):
      values = {'indices': part, 'first loss': losses[0], 'last loss': losses[-1]}
      values |= {f'z {name}': init_BxD[name] + delta_BxD[name] for name in init_BxD}
      for name, value in values.items():
        answers.setdefault(name, []).extend(value[: len(part)])
    return {
      'seconds': seconds,
      'edits': len(self.material.requests),
      'parts': {'targets': seconds},
      'answers': {name: np.array(values) for name, values in answers.items()},
      'compile_seconds': clock.seconds,
    }

  def memory(self) -> dict[str, int | None]:
    return peak_memory()


class Evaluation:
  """`jedit.evaluate` of one model.

  Args:
    material: what is measured.
    part: 'scores', or 'scores and texts'.
  """

  def __init__(self, material: Material, part: str):
    self.material = material
    self.lm = material.model()
    self.generation = Generation(num_tokens=GENERATED_TOKENS) if 'texts' in part else None

  def warm_up(self) -> dict[str, Any]:
    with CompileClock() as clock:
      self._work()
    rows = [
      Row(prompt, target=target)
      for record in self.material.records
      for prompt, targets in questions(record)
      for target in targets
    ]
    encoded = encode_many(self.lm.tokenizer, rows)
    return {
      'compile_seconds': clock.seconds,
      'num_programs': len(plan_batches(encoded, self.lm.config.vocab_size).shapes),
      'device': jax.devices()[0].device_kind,
    }

  def ceiling(self) -> float:
    return matmul_ceiling(self.lm.config.dtype)

  def round(self, number: int, rounds: int) -> dict[str, Any]:
    del number, rounds
    with CompileClock() as clock:
      start = time.perf_counter()
      table = self._work()
      seconds = time.perf_counter() - start
    return {
      'seconds': seconds,
      'edits': len(self.material.records),
      'parts': {'evaluation': seconds},
      'answers': {
        'indices': np.arange(len(self.material.records)),
        'values': np.stack([table.after[name] for name in METRICS], axis=1),
      },
      'compile_seconds': clock.seconds,
    }

  def memory(self) -> dict[str, int | None]:
    return peak_memory()

  def _work(self):
    return jedit.evaluate(self.lm, self.material.records, generation=self.generation)


def questions(record) -> list[tuple[str, tuple[str, str]]]:
  """Each prompt with the new and the true object."""
  request = record.request
  prompts = [request.text, *record.paraphrase_prompts, *record.neighborhood_prompts]
  return [(prompt, (request.target_new, request.target_true)) for prompt in prompts]


def matmul_ceiling(dtype: str) -> float:
  """FLOP/s of the fastest of a few large square products."""
  is_cpu = jax.default_backend() == 'cpu'
  size, chain, repeats = (1024, 4, 3) if is_cpu else (8192, 16, 5)
  x = jnp.full((size, size), 1.0 / size, dtype)

  @jax.jit
  def products(x):
    precision = matmul_precision(x.dtype)
    return jax.lax.fori_loop(0, chain, lambda _, y: jnp.matmul(y, x, precision=precision), x)

  products(x).block_until_ready()
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    products(x).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * size**3 * chain / min(seconds)


def peak_memory() -> dict[str, int | None]:
  """Of this process, and of its accelerator where it tells."""
  unit = 1 if sys.platform == 'darwin' else 1024
  device = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
  return {'process': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 'device': device}
