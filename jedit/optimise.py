"""Runs the target optimisation over all edits: blocks, progress, resume."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jedit.checkpoint import read_tensors, write_tensors
from jedit.data.edit_rows import Block, BlockArrays, EditRows, block_arrays, cut_blocks
from jedit.log import Progress
from jedit.recipe import Objective
from jedit.target import TRACE_COLUMNS, PlacedDelta, RowBatch, TargetOptimiser
from jedit.types import UserError

# Steps between two looks at whether all edits of a block have stopped: a look waits for the device.
_STEPS_PER_LOOK = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
  """What was optimised together, in the order of the requests.

  Attributes:
    delta, init, z: by δ, [B, D] float32: the change, the value before, their sum.
    num_steps: [B], loss evaluations (Adam steps are one fewer).
    trace: [B, evaluations, 7] (`jedit.target.TRACE_COLUMNS`), NaN behind an edit's end.
    num_programs: step programs that were compiled, one per shape.
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
) -> Targets:
  """Optimises the δ of every edit, block by block.

  Args:
    forward, head, num_layers, deltas, objective: see `TargetOptimiser`.
    params: of the model.
    rows: texts of the edits.
    batch_size: edits optimised at once.
    store: directory where finished blocks are kept; a run that finds them does not repeat them.
    signature: what the blocks depend on; stored ones of another signature are made anew.

  Raises:
    UserError: if a loss or δ is not finite; names the record.
  """
  tokens = tuple(dict.fromkeys(placed.token for placed in deltas))
  optimiser = _optimiser(forward, head, num_layers, deltas, objective)
  blocks = cut_blocks(rows, tokens, batch_size, objective.num_steps)
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
        arrays = block_arrays(rows, block, tokens)
        result = _run_block(optimiser, params, arrays, block, progress)
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

  shapes = {dataclasses.replace(block, indices=()) for block in blocks}
  return Targets(
    delta={name: collect(f'delta/{name}') for name in names},
    init={name: collect(f'init/{name}') for name in names},
    num_steps=collect('num_steps'),
    trace=collect('trace'),
    num_programs=len(shapes),
  )


@functools.lru_cache(maxsize=16)
def _optimiser(*arguments: Any) -> TargetOptimiser:
  """One optimiser per choice of its arguments, so that a second edit compiles nothing."""
  return TargetOptimiser(*arguments)


def _run_block(
  optimiser: TargetOptimiser, params: Any, arrays: BlockArrays, block: Block, progress: Progress
) -> dict[str, np.ndarray]:
  """Optimises one block until all of its edits have stopped; arrays of the used slots."""
  batch = RowBatch(
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
  batch = jax.device_put(batch)
  window = optimiser.prepare(params, batch, window=block.window, past=block.past)
  state = optimiser.init(window, arrays.is_used_B)
  trace = []
  num_steps, num_done = optimiser.objective.num_steps, 0
  for step in range(1, num_steps + 1):
    state, evaluation = optimiser.step(params, window, batch, state)
    trace.append(evaluation)
    if step % _STEPS_PER_LOOK == 0 or step == num_steps:
      now_done = int(state.is_done_B[: len(block.indices)].sum())
      progress.update(now_done - num_done, f'evaluation {step} of at most {num_steps}')
      num_done = now_done
      if num_done == len(block.indices):
        break
  used = slice(len(block.indices))
  trace_BxEx7 = np.full((len(block.indices), num_steps, len(TRACE_COLUMNS)), np.nan, np.float32)
  trace_BxEx7[:, : len(trace)] = np.stack([np.asarray(t)[used] for t in trace], axis=1)
  result = {'num_steps': np.asarray(state.num_evals_B)[used], 'trace': trace_BxEx7}
  for name in state.delta_BxD:
    result[f'delta/{name}'] = np.asarray(state.delta_BxD[name])[used]
    result[f'init/{name}'] = np.asarray(window.init_BxD[name])[used]
  return result


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
