"""Runs the target optimisation over all edits: blocks, progress, resume."""

import collections
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.editing.delta import Numbers, PlacedDelta, without_numbers
from jedit.editing.prompts import Block, EditRows, cut_blocks, fill_arrays, window_start
from jedit.editing.target import (
  TRACE_COLUMNS,
  RowBatch,
  Slots,
  State,
  TargetOptimiser,
)
from jedit.io.progress import Progress
from jedit.io.storage import read_tensors, write_tensors
from jedit.methods.base import TOKENS, Objective
from jedit.models import ModelConfig
from jedit.parallel.memory import free_bytes
from jedit.parallel.mesh import fetch, least_over_processes, num_row_shards
from jedit.types import UserError

# Steps between two looks at which edits have stopped: a look waits for the device.
_STEPS_PER_LOOK = 5
_HOST_BATCH = 32  # a CPU is fastest while a batch fits its caches
_LARGEST_BATCH = 256  # more edits at once gain nothing on an accelerator and wait for the slowest


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
  """What was optimised together, in the order of the requests.

  Attributes:
    delta, init, z: by δ, [B, D] float32: the change, the value before, their sum.
    num_steps: [B], loss evaluations (Adam steps are one fewer).
    trace: [B, evaluations, 7] (`jedit.editing.target.TRACE_COLUMNS`), NaN behind an edit's end.
    num_programs: step programs that were run, one per shape.
  """

  delta: dict[str, np.ndarray]
  init: dict[str, np.ndarray]
  num_steps: np.ndarray
  trace: np.ndarray
  num_programs: int

  @property
  def z(self) -> dict[str, np.ndarray]:
    return {name: self.init[name] + self.delta[name] for name in self.delta}

  def reached(self) -> dict[str, Any]:
    """How far the targets got: means over the edits at their last evaluation."""
    last_Bx7 = self.trace[np.arange(len(self.num_steps)), self.num_steps - 1]
    return {
      'edits': len(self.num_steps),
      'evaluations': float(self.num_steps.mean()),
      'nll': float(last_Bx7[:, TRACE_COLUMNS.index('nll')].mean()),
      'probability': float(last_Bx7[:, TRACE_COLUMNS.index('probability')].mean()),
      'programs': self.num_programs,
    }

  def part(self, edits: slice) -> 'Targets':
    """The targets of some of the requests."""
    return Targets(
      delta={name: delta_BxD[edits] for name, delta_BxD in self.delta.items()},
      init={name: init_BxD[edits] for name, init_BxD in self.init.items()},
      num_steps=self.num_steps[edits],
      trace=self.trace[edits],
      num_programs=self.num_programs,
    )


def choose_batch_size(
  config: ModelConfig, rows: Sequence[EditRows], first_layer: int, row_shards: int = 1
) -> int:
  """Edits to optimise at once: for each device a power of 2 that fits its free memory.

  Counted per edit are what the backward pass keeps of every block above the δ, the stored keys
  and values, and the logits, for the longest rows; half of the free memory is left alone.

  Args:
    config: sizes and dtype of the model.
    rows: texts of the edits.
    first_layer: the lowest block with a δ.
    row_shards: devices that share the edits.
  """
  device = jax.local_devices()[0]
  free = None if device.platform == 'cpu' else free_bytes(device)
  if free is None:
    return _HOST_BATCH * row_shards
  texts = [text for edit in rows for text in edit.with_target]
  num_prompts = len(rows[0].with_target) + 1  # and the KL row
  window = max(len(text.ids) - window_start(text, TOKENS) for text in texts)
  past = max(window_start(text, TOKENS) for text in texts)
  num_targets = max(len(text.target_ids) for text in texts)
  itemsize = jnp.dtype(config.dtype).itemsize
  heads = config.num_kv_heads * config.head_dim
  kept = (10 * config.width + 3 * config.ffn_width) * window + 2 * heads * past
  layers = config.num_layers - first_layer
  per_edit = num_prompts * (layers * kept * itemsize + 3 * 4 * num_targets * config.vocab_size)
  fits = free // (2 * per_edit)
  return 2 ** int(np.log2(least_over_processes(min(max(fits, 1), _LARGEST_BATCH)))) * row_shards


def optimise_targets(
  forward: Callable,
  head: Callable,
  num_layers: int,
  params: Any,
  rows: Sequence[EditRows],
  deltas: tuple[PlacedDelta, ...],
  objective: Objective,
  *,
  batch_size: int,
  store: pathlib.Path | None = None,
  signature: str = '',
  shapes: Sequence[Block] | None = None,
) -> Targets:
  """Optimises the δ of every edit, block by block.

  Args:
    forward, head, num_layers, deltas, objective: see `TargetOptimiser`.
    params: of the model.
    rows: texts of the edits.
    batch_size: edits optimised at once.
    store: directory where finished blocks are kept; a run that finds them does not repeat them.
    signature: what the blocks depend on; stored ones of another signature are made anew.
    shapes: as of `cut_blocks`.

  Raises:
    UserError: if a loss or δ is not finite; names the record.
  """
  tokens = tuple(dict.fromkeys(placed.token for placed in deltas))
  optimiser = _optimiser(forward, head, num_layers, *without_numbers(deltas, objective))
  numbers = Numbers.of(deltas, objective)
  row_shards = num_row_shards(params)
  blocks = cut_blocks(rows, tokens, batch_size, objective.num_steps, row_shards, shapes)
  names = [placed.delta.name for placed in deltas]
  found: list[dict[str, np.ndarray]] = []
  with Progress('targets', total=len(rows), unit='edits') as progress:
    for number, block in enumerate(blocks):
      key = _block_key(signature, rows, block)
      path = None if store is None else store / f'block-{number}.safetensors'
      result = _stored(path, key)
      if result is not None:
        progress.update(len(block.indices))
      else:
        result = _run_block(optimiser, params, numbers, rows, block, progress)
        _check_finite(result, rows, block, deltas)
        if path is not None:
          write_tensors(path, result, {'key': key})
      found.append(result)

  order = np.concatenate([block.indices for block in blocks])

  def collect(name: str) -> np.ndarray:
    joined = np.concatenate([result[name] for result in found])
    out = np.empty_like(joined)
    out[order] = joined
    return out

  programs = {dataclasses.replace(block, indices=()) for block in blocks}
  return Targets(
    delta={name: collect(f'delta/{name}') for name in names},
    init={name: collect(f'init/{name}') for name in names},
    num_steps=collect('num_steps'),
    trace=collect('trace'),
    num_programs=len(programs),
  )


@functools.lru_cache(maxsize=16)
def _optimiser(*arguments: Any) -> TargetOptimiser:
  """One optimiser per choice of its arguments, so that a second edit compiles nothing.

  Nor does one whose settings differ in `Numbers` alone, as the cells of a search over them do.
  """
  return TargetOptimiser(*arguments)


def _run_block(
  optimiser: TargetOptimiser,
  params: Any,
  numbers: Numbers,
  rows: Sequence[EditRows],
  block: Block,
  progress: Progress,
) -> dict[str, np.ndarray]:
  """Optimises a block through its slots: an edit that stops makes room for one that waits."""
  tokens = tuple(dict.fromkeys(placed.token for placed in optimiser.deltas))
  waiting = collections.deque(range(len(block.indices)))
  in_slot_B = np.full(block.size, -1)
  slots: Slots | None = None
  results: list[dict[str, np.ndarray] | None] = [None] * len(block.indices)
  # No more than `_STEPS_PER_LOOK`, and few behind the last evaluation.
  num_looks = -(-optimiser.objective.num_steps // _STEPS_PER_LOOK)
  steps, steps_per_look = 0, -(-optimiser.objective.num_steps // num_looks)
  while True:
    # Whole fills only, but where nothing else is left to run.
    free = np.flatnonzero(in_slot_B < 0)
    while waiting and len(free) >= min(block.fill, len(waiting)):
      chosen = [waiting.popleft() for _ in range(min(block.fill, len(waiting)))]
      at = free[: len(chosen)]
      in_slot_B[at] = chosen
      edits = [rows[block.indices[i]] for i in chosen]
      batch = _row_batch(optimiser, edits, block, tokens)
      slots = optimiser.enter(params, numbers, batch, slots, at, block)
      free = free[len(chosen) :]
    assert slots is not None
    slots = optimiser.steps(params, numbers, slots, steps_per_look)
    steps += steps_per_look
    is_done_B = fetch(slots.state.is_done_B) & (in_slot_B >= 0)
    if is_done_B.any():
      found = fetch({'state': slots.state, 'init': slots.window.init_BxD})
      for slot in np.flatnonzero(is_done_B).tolist():
        results[in_slot_B[slot]] = _result(found, slot)
      in_slot_B[is_done_B] = -1
    num_running = int((in_slot_B >= 0).sum())
    progress.update(int(is_done_B.sum()), f'{num_running} edits at work, step {steps}')
    if not num_running and not waiting:
      return {
        name: np.stack([result[name] for result in results if result is not None])
        for name in results[0] or {}
      }


def _result(found: Mapping[str, Any], slot: int) -> dict[str, np.ndarray]:
  """What is kept of the edit in one slot."""
  state: State = found['state']
  result = {'num_steps': state.num_evals_B[slot], 'trace': state.trace_BxEx7[slot]}
  for name in state.delta_BxD:
    result[f'delta/{name}'] = state.delta_BxD[name][slot]
    result[f'init/{name}'] = found['init'][name][slot]
  return {name: np.asarray(value) for name, value in result.items()}


def _row_batch(
  optimiser: TargetOptimiser, edits: Sequence[EditRows], block: Block, tokens: Sequence[str]
) -> RowBatch:
  """The rows of one fill."""
  arrays = fill_arrays(edits, block, tokens)
  return RowBatch(
    token_BxPxT=arrays.token_BxPxT,
    start_BxP=arrays.start_BxP,
    delta_at_BxP={
      placed.delta.name: arrays.token_at_BxP[placed.token] for placed in optimiser.deltas
    },
    read_at_BxPxJ=arrays.read_at_BxPxJ,
    label_BxPxJ=arrays.label_BxPxJ,
    label_mask_BxPxJ=arrays.label_mask_BxPxJ,
    kl_token_BxT=arrays.kl_token_BxT,
    kl_start_B=arrays.kl_start_B,
  )


def _block_key(signature: str, rows: Sequence[EditRows], block: Block) -> str:
  texts = [(text.ids for text in rows[i].with_target) for i in block.indices]
  content = repr((signature, dataclasses.astuple(block), [list(ids) for ids in texts]))
  return hashlib.sha256(content.encode()).hexdigest()


def _stored(path: pathlib.Path | None, key: str) -> dict[str, np.ndarray] | None:
  """A finished block of an earlier run, if it is this one."""
  if path is None or not path.is_file():
    return None
  result, metadata = read_tensors(path)
  return result if metadata.get('key') == key else None


def _check_finite(
  result: dict[str, np.ndarray],
  rows: Sequence[EditRows],
  block: Block,
  deltas: Sequence[PlacedDelta],
) -> None:
  """Looks at δ, at the value it is added to, and at the loss of every evaluation."""
  loss_BxE = result['trace'][:, :, TRACE_COLUMNS.index('loss')]
  ran_BxE = np.arange(loss_BxE.shape[1]) < result['num_steps'][:, None]
  is_bad_loss_B = (ran_BxE & ~np.isfinite(loss_BxE)).any(axis=-1)
  for placed in deltas:
    name = placed.delta.name
    is_bad_B = is_bad_loss_B.copy()
    for part in ('delta', 'init'):
      is_bad_B |= ~np.isfinite(result[f'{part}/{name}']).all(axis=-1)
    if is_bad_B.any():
      request = rows[block.indices[int(is_bad_B.argmax())]].request
      raise UserError(
        f'The target of record {request.case_id} ({request.text!r} -> {request.target!r}) is not '
        f'finite at {name!r} in layer {placed.layer}; lower learning_rate or clip_factor, or leave '
        'the record out.'
      )
