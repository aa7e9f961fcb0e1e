"""Runs the target optimisation over all edits: blocks, slots, progress, resume."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.editing.blocks import Block, cut_blocks, fit_shapes, row_batch
from jedit.editing.problem import Problem
from jedit.editing.prompts import EditRows
from jedit.editing.region import KernelUpdate
from jedit.editing.target import TRACE_COLUMNS, Slots, State, enter, run_steps
from jedit.io.memo import Memo, Stored
from jedit.io.out_of_memory import halve_once
from jedit.io.progress import Progress
from jedit.io.sealed import digest
from jedit.models import Model, ModelConfig
from jedit.models.sharding import param_shapes
from jedit.parallel.memory import free_bytes
from jedit.parallel.mesh import (
  MODEL,
  fetch,
  least_over_processes,
  mesh_of,
  num_row_shards,
  platform_of,
)
from jedit.parallel.program import DryRun, shape_bytes
from jedit.types import UserError

# Steps between two checks for edits that have stopped: a check waits for an accelerator.
_STEPS_PER_CHECK = 5
_HOST_BATCH = 32  # a CPU is fastest while a batch fits its caches
_LARGEST_BATCH = 256  # more edits at once gain nothing on an accelerator and wait for the slowest


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
  """Results of one optimisation, in the order of the requests.

  Attributes:
    delta, init, z: by δ, [B, D] float32: the change, the value before, their sum.
    joint: by δ, [B, D] float32: the value of its place with every δ in the network.
    num_steps: [B], loss evaluations (optimiser steps are one fewer).
    trace: [B, evaluations, 7] (`jedit.editing.target.TRACE_COLUMNS`), NaN behind an edit's end.
    num_programs: step programs that were run, one per shape.
    batch_size: edits that were optimised at once, at most; in bfloat16 it decides the rounding.
  """

  delta: dict[str, np.ndarray]
  init: dict[str, np.ndarray]
  joint: dict[str, np.ndarray]
  num_steps: np.ndarray
  trace: np.ndarray
  num_programs: int
  batch_size: int

  @property
  def z(self) -> dict[str, np.ndarray]:
    return {name: self.init[name] + self.delta[name] for name in self.delta}

  def wanted(self, update: KernelUpdate) -> np.ndarray:
    """The value [B, D] that an update writes."""
    return (self.joint if update.target == 'joint' else self.z)[update.delta]

  def last(self, name: str) -> np.ndarray:
    """A column of the trace, [B], at the last evaluation of each edit."""
    rows_B = np.arange(len(self.num_steps))
    return self.trace[rows_B, self.num_steps - 1, TRACE_COLUMNS.index(name)]

  def reached(self) -> dict[str, Any]:
    """Means over the edits at their last evaluation."""
    return {
      'edits': len(self.num_steps),
      'evaluations': float(self.num_steps.mean()),
      'nll': float(self.last('nll').mean()),
      'probability': float(self.last('probability').mean()),
      'programs': self.num_programs,
      'target_batch_size': self.batch_size,
    }

  def part(self, edits: Sequence[int]) -> 'Targets':
    """The targets of some of the requests."""
    chosen = np.asarray(edits)
    return Targets(
      delta={name: delta_BxD[chosen] for name, delta_BxD in self.delta.items()},
      init={name: init_BxD[chosen] for name, init_BxD in self.init.items()},
      joint={name: joint_BxD[chosen] for name, joint_BxD in self.joint.items()},
      num_steps=self.num_steps[chosen],
      trace=self.trace[chosen],
      num_programs=self.num_programs,
      batch_size=self.batch_size,
    )


def choose_batch_size(model: Model, shape: Block, num_prompts: int, first_layer: int) -> int:
  """Edits of a shape to optimise at once: for each device a power of 2 that fits its free memory.

  Half of the memory that is free beside the parameters is left alone.

  Args:
    model: the model, or one without arrays, whose parameters then take their memory as well.
    shape: of `fit_shapes`.
    num_prompts: rows of an edit.
    first_layer: the lowest block with a δ.
  """
  [device, *_] = jax.tree.leaves(model)[0].sharding.device_set
  free = None if device.platform == 'cpu' else free_bytes(device)
  if free is None:
    size = _HOST_BATCH
  else:
    mesh = mesh_of(model)
    split = 1 if mesh is None else mesh.shape[MODEL]
    per_edit = bytes_per_edit(model.config, shape, num_prompts, first_layer, split)
    fits = max((free - shape_bytes(model)) // (2 * per_edit), 1)
    size = 2 ** int(np.log2(min(fits, _LARGEST_BATCH)))
  return least_over_processes(size) * num_row_shards(model)


def bytes_per_edit(
  config: ModelConfig, shape: Block, num_prompts: int, first_layer: int, split: int = 1
) -> int:
  """Bytes that the optimisation of one edit keeps on its device.

  By layer from δ on: the block's input, what its forward pass records for the backward pass
  (`jedit.editing.window`), and the stored keys and values; for the head, three times the logits,
  and those at the start.

  Args:
    config: sizes and dtype of the model.
    shape: of `fit_shapes`.
    num_prompts: rows of the edit.
    first_layer: the lowest block with a δ.
    split: devices that share each copy of the parameters, and the heads and inner units with them.
  """

  def part(size: int) -> int:
    return size // split if size % split == 0 else size

  num_tokens = num_prompts * shape.window + 1
  heads = part(config.num_heads) * config.head_dim
  kv_heads = part(config.num_kv_heads) * config.head_dim
  wide = (1 + ('gate' in param_shapes(config)['block_0']['mlp'])) * part(config.ffn_width)
  kept = (2 * config.width + heads + 2 * kv_heads + wide) * num_tokens
  stored = 2 * kv_heads * (num_prompts * shape.past + shape.kl_tokens)
  layers = (config.num_layers - first_layer) * jnp.dtype(config.dtype).itemsize
  logits = 3 * part(config.vocab_size) * (num_prompts * shape.num_targets + 1)
  return layers * (kept + stored) + 4 * (logits + config.vocab_size)


def optimise_targets(
  model: Model,
  rows: Sequence[EditRows],
  problem: Problem,
  *,
  batch_size: int | None = None,
  memo: Memo | None = None,
  key: Any = None,
  shapes: Sequence[Block] | None = None,
) -> Targets:
  """Optimises the δ of every edit, block by block.

  Args:
    model: the model.
    rows: texts of the edits.
    problem: the deltas and their objective.
    batch_size: edits optimised at once, at least 1; bounds memory. None takes what fits the
      device, or what an earlier run of the same `key` took.
    memo: keeps finished blocks.
    key: everything that the blocks depend on besides their rows.
    shapes: as of `cut_blocks`.

  Raises:
    UserError: if a loss or δ is not finite, names the record; if half a batch does not fit the
      memory.
  """
  memo = (memo or Memo(None)).below(digest(key)[:16])
  fitted = _fit(model, rows, problem) if shapes is None else shapes
  if batch_size is None:
    about = [key, [dataclasses.astuple(shape) for shape in fitted]]
    stored = memo.get('batch_size', about)
    if stored is None:
      chosen = _choose_sizes(model, rows, problem, fitted)
      stored = memo.put('batch_size', about, Stored({'batch_size': np.array(chosen)}))
    sizes = stored.tensors['batch_size'].tolist()
  elif batch_size < 1:
    raise UserError(f'target_batch_size is {batch_size}; give at least 1.')
  else:
    sizes = [batch_size] * len(fitted)
  by_window = {shape.window: size for shape, size in zip(fitted, sizes, strict=True)}
  most = max(sizes)

  def run(size: int) -> Targets:
    at_once = {window: max(each * size // most, 1) for window, each in by_window.items()}
    blocks = _cut(model, rows, problem, at_once, shapes)
    return _optimise(model, rows, problem, blocks, size, memo, key)

  return halve_once(
    run,
    most,
    stage='targets',
    field='edit.target_batch_size',
    most=len(rows),
    least=num_row_shards(model),
  )


def _fit(model: Model, rows: Sequence[EditRows], problem: Problem) -> list[Block]:
  token_flop = problem.token_flop(model.config)
  return fit_shapes(rows, problem.tokens, token_flop, platform_of(model))


def _choose_sizes(
  model: Model, rows: Sequence[EditRows], problem: Problem, shapes: Sequence[Block]
) -> list[int]:
  """Batch sizes by shape."""
  num_prompts, first_layer = len(rows[0].with_target), problem.first_layer
  return [choose_batch_size(model, shape, num_prompts, first_layer) for shape in shapes]


def _optimise(
  model: Model,
  rows: Sequence[EditRows],
  problem: Problem,
  blocks: Sequence[Block],
  batch_size: int,
  memo: Memo,
  key: Any,
) -> Targets:
  """`optimise_targets` in these blocks."""
  numbers: Problem = jax.tree.map(np.float32, problem)
  found: list[Mapping[str, np.ndarray]] = []
  with Progress('targets', total=len(rows), unit='edits') as progress:
    for number, block in enumerate(blocks):
      block_key = [key, dataclasses.astuple(block), _token_ids(rows, block)]
      stored = memo.get(f'block-{number}', block_key)
      if stored is not None:
        progress.update(len(block.indices))
      else:
        result = _run_block(model, numbers, rows, block, progress)
        _check_finite(result, rows, block, problem)
        stored = memo.put(f'block-{number}', block_key, Stored(result))
      found.append(stored.tensors)

  order = np.concatenate([block.indices for block in blocks])

  def collect(name: str) -> np.ndarray:
    joined = np.concatenate([result[name] for result in found])
    out = np.empty_like(joined)
    out[order] = joined
    return out

  names = [placed.name for placed in problem.deltas]
  return Targets(
    delta={name: collect(f'delta/{name}') for name in names},
    init={name: collect(f'init/{name}') for name in names},
    joint={name: collect(f'joint/{name}') for name in names},
    num_steps=collect('num_steps'),
    trace=collect('trace'),
    num_programs=len({dataclasses.replace(block, indices=()) for block in blocks}),
    batch_size=batch_size,
  )


def _cut(
  model: Model,
  rows: Sequence[EditRows],
  problem: Problem,
  batch_size: Mapping[int, int],
  shapes: Sequence[Block] | None,
) -> list[Block]:
  """Blocks with the largest number of slots by window."""
  return cut_blocks(
    rows,
    problem.tokens,
    lambda shape: batch_size[shape.window],
    problem.token_flop(model.config),
    num_row_shards(model),
    shapes,
    platform_of(model),
  )


def dry_run_targets(
  run: DryRun,
  model: Model,
  rows: Sequence[EditRows],
  problem: Problem,
  batch_size: int | None = None,
  shapes: Sequence[Block] | None = None,
) -> None:
  """Notes the programs of `optimise_targets`, with all evaluations of every edit.

  Args:
    run: the dry run.
    model: a model without arrays.
    rows, problem, batch_size, shapes: as of `optimise_targets`.
  """
  numbers: Problem = jax.tree.map(np.float32, problem)
  num_steps = problem.objective.num_steps
  fitted = _fit(model, rows, problem) if shapes is None else shapes
  sizes = [batch_size] * len(fitted) if batch_size else _choose_sizes(model, rows, problem, fitted)
  at_once = {shape.window: size for shape, size in zip(fitted, sizes, strict=True)}
  steps = _steps_per_check(num_steps, platform_of(model))
  for block in _cut(model, rows, problem, at_once, shapes):
    first = [rows[index] for index in block.indices[: block.fill]]
    batch, at = row_batch(first, block, problem.tokens), np.arange(len(first))
    slots: Slots | None = None
    for times in (1, -(-len(block.indices) // block.fill) - 1):
      with run.repeated(times):
        slots = enter(model, numbers, batch, slots, at, block)
    assert slots is not None
    with run.repeated(-(-len(block.indices) // block.size) * num_steps / steps):
      run_steps(model, numbers, slots, block, steps)


def _run_block(
  model: Model, problem: Problem, rows: Sequence[EditRows], block: Block, progress: Progress
) -> dict[str, np.ndarray]:
  """Optimises a block through its slots: an edit that stops makes room for one that waits."""
  waiting = collections.deque(range(len(block.indices)))
  in_slot_B = np.full(block.size, -1)
  slots: Slots | None = None
  results: list[dict[str, np.ndarray] | None] = [None] * len(block.indices)
  steps, steps_per_check = 0, _steps_per_check(problem.objective.num_steps, platform_of(model))
  while True:
    # Whole fills only, unless nothing else is left to run.
    free = np.flatnonzero(in_slot_B < 0)
    while waiting and len(free) >= min(block.fill, len(waiting)):
      chosen = [waiting.popleft() for _ in range(min(block.fill, len(waiting)))]
      at = free[: len(chosen)]
      in_slot_B[at] = chosen
      batch = row_batch([rows[block.indices[i]] for i in chosen], block, problem.tokens)
      slots = enter(model, problem, batch, slots, at, block)
      free = free[len(chosen) :]
    assert slots is not None
    slots = run_steps(model, problem, slots, block, steps_per_check)
    steps += steps_per_check
    is_done_B = fetch(slots.state.is_done_B) & (in_slot_B >= 0)
    if is_done_B.any():
      found = fetch(slots.state)
      for slot in np.flatnonzero(is_done_B).tolist():
        results[in_slot_B[slot]] = _result(found, slot)
      in_slot_B[is_done_B] = -1
    num_running = int((in_slot_B >= 0).sum())
    progress.update(int(is_done_B.sum()), f'{num_running} edits running, step {steps}')
    if not num_running and not waiting:
      return {
        name: np.stack([result[name] for result in results if result is not None])
        for name in results[0] or {}
      }


def _steps_per_check(num_steps: int, platform: str) -> int:
  """On accelerators at most `_STEPS_PER_CHECK`, and few behind the last evaluation."""
  if platform == 'cpu':
    return 1
  return -(-num_steps // -(-num_steps // _STEPS_PER_CHECK))


def _result(state: State, slot: int) -> dict[str, np.ndarray]:
  """Arrays of the edit in one slot."""
  result = {'num_steps': state.num_evals_B[slot], 'trace': state.trace_BxEx7[slot]}
  for name in state.delta_BxD:
    result[f'delta/{name}'] = state.delta_BxD[name][slot]
    result[f'joint/{name}'] = state.joint_BxD[name][slot]
    result[f'init/{name}'] = state.fixed.init_D[name][slot]
  return {name: np.asarray(value) for name, value in result.items()}


def _token_ids(rows: Sequence[EditRows], block: Block) -> list[list[list[int]]]:
  return [[list(text.ids) for text in rows[i].with_target] for i in block.indices]


def _check_finite(
  result: Mapping[str, np.ndarray], rows: Sequence[EditRows], block: Block, problem: Problem
) -> None:
  """Checks δ, the value it is added to, and the loss of every evaluation."""
  loss_BxE = result['trace'][:, :, TRACE_COLUMNS.index('loss')]
  ran_BxE = np.arange(loss_BxE.shape[1]) < result['num_steps'][:, None]
  is_bad_loss_B = (ran_BxE & ~np.isfinite(loss_BxE)).any(axis=-1)
  for placed in problem.deltas:
    is_bad_B = is_bad_loss_B.copy()
    for part in ('delta', 'init'):
      is_bad_B |= ~np.isfinite(result[f'{part}/{placed.name}']).all(axis=-1)
    if is_bad_B.any():
      request = rows[block.indices[int(is_bad_B.argmax())]].request
      raise UserError(
        f'The target of {request.label} is not finite at {placed.name!r} in layer {placed.layer}; '
        'lower learning_rate or clip_factor, or leave the record out.'
      )
