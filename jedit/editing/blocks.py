"""Blocks of edits: few padded shapes, so that few step programs are compiled."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from flax import struct

from jedit.editing.prompts import EditRows, position
from jedit.models.encoding import Encoded
from jedit.parallel.shapes import bucket, group_by_length, pad, round_up

Array = jax.Array | np.ndarray  # built on the host, traced on the device

# Arithmetic that takes as long as compiling the programs of one more shape: two seconds of two CPU
# cores, or some 20 s of an accelerator, whose compilers are slow.
_FLOP_PER_SHAPE = {'cpu': 2e11}
_FLOP_PER_SHAPE_ELSEWHERE = 4e15
_ROUNDS_PER_BLOCK = 8  # work lost to a kill, against slots that run empty at the end of a block
_FILLS_PER_BATCH = 4


@dataclasses.dataclass(frozen=True)
class Block:
  """Edits that are optimised as one batch.

  Attributes:
    indices: the edits, as positions in the list of requests; fewer than `size` in a last block.
    size: B, slots: edits optimised at once.
    fill: edits that enter together.
    window: S, tokens from the window's start to the last one that is read.
    past: tokens before the window.
    num_tokens: T of the complete rows.
    num_targets: J, target tokens.
    kl_tokens: T of the KL rows.
  """

  indices: tuple[int, ...]
  size: int
  fill: int
  window: int
  past: int
  num_tokens: int
  num_targets: int
  kl_tokens: int


@struct.dataclass
class RowBatch:
  """Padded token rows of a batch of edits.

  Attributes:
    token_BxPxT: context + prompt + target without its last token, padded on the right.
    start_BxP: start of the window, the first δ position of the row.
    token_at_BxP: by token ('subject_last', 'prompt_last'), its position relative to the window.
    read_at_BxPxJ: window position whose prediction is scored, for each target token.
    label_BxPxJ: the target tokens; label_mask_BxPxJ is False behind the end.
    kl_token_BxT: "{subject} is a"; kl_start_B: its subject's last token, the window.
  """

  token_BxPxT: Array
  start_BxP: Array
  token_at_BxP: Mapping[str, Array]
  read_at_BxPxJ: Array
  label_BxPxJ: Array
  label_mask_BxPxJ: Array
  kl_token_BxT: Array
  kl_start_B: Array


def fit_shapes(
  rows: Sequence[EditRows], tokens: Sequence[str], token_flop: float, platform: str | None = None
) -> list[Block]:
  """The shapes that edits are padded to: blocks without edits, windows ascending.

  Args:
    rows: all edits, whether they become one batch or a sequence of them.
    tokens: tokens at which δ are added: 'subject_last', 'prompt_last' or both.
    token_flop: of a window token over all evaluations (`Problem.token_flop`), which decides when a
      shape of its own pays.
    platform: of the devices; likewise. None takes this machine's.
  """
  platform = platform or jax.local_devices()[0].platform
  per_shape = _FLOP_PER_SHAPE.get(platform, _FLOP_PER_SHAPE_ELSEWHERE)
  padding = per_shape / (token_flop * len(rows[0].with_target))
  windows = [_window(edit, tokens) for edit in rows]
  shapes = []
  for window, indices in group_by_length(windows, exact=True, padding=padding):
    texts = [text for i in indices for text in rows[i].with_target]
    shapes.append(
      Block(
        indices=(),
        size=0,
        fill=0,
        window=window,
        past=round_up(max(window_start(text, tokens) for text in texts), 4),
        num_tokens=round_up(max(len(text.ids) - 1 for text in texts), 4),
        num_targets=bucket(max(len(text.target_ids) for text in texts), smallest=1),
        kl_tokens=round_up(max(len(rows[i].kl.ids) for i in indices), 4),
      )
    )
  return shapes


def cut_blocks(
  rows: Sequence[EditRows],
  tokens: Sequence[str],
  batch_size: int | Callable[[Block], int],
  token_flop: float,
  multiple: int = 1,
  shapes: Sequence[Block] | None = None,
  platform: str | None = None,
) -> list[Block]:
  """Groups edits of similar windows in blocks of few shapes.

  Args:
    rows: all edits.
    tokens, token_flop, platform: as of `fit_shapes`.
    batch_size: the largest B, of every shape or by shape; blocks, and rounds of their slots, share
      the edits of a shape evenly, so that little of the last is empty.
    multiple: slots and fills come in multiples of it, for devices that share them.
    shapes: of `fit_shapes` for the sequence that these edits are a part of: its parts then share
      their programs, and the number of slots is one of few, too. None fits these edits alone.

  Raises:
    ValueError: for shapes that an edit does not fit in.
  """
  windows = np.array([_window(edit, tokens) for edit in rows])
  fitting = fit_shapes(rows, tokens, token_flop, platform) if shapes is None else shapes
  if windows.max() > fitting[-1].window:
    raise ValueError(f'A window of {windows.max()} tokens is beyond all shapes.')
  above, blocks = -1, []
  for shape in fitting:
    indices = np.flatnonzero((above < windows) & (windows <= shape.window)).tolist()
    above = shape.window
    if not indices:
      continue
    most = batch_size if isinstance(batch_size, int) else batch_size(shape)
    num_edits = -(-len(indices) // -(-len(indices) // (_ROUNDS_PER_BLOCK * most)))
    size = -(-num_edits // -(-num_edits // most))
    if shapes is not None:
      size = min(bucket(size, smallest=1), most)
    size = round_up(size, multiple)
    fill = round_up(-(-size // _FILLS_PER_BATCH), multiple)
    for first in range(0, len(indices), num_edits):
      part = tuple(indices[first : first + num_edits])
      blocks.append(dataclasses.replace(shape, indices=part, size=size, fill=fill))
  return blocks


def _window(edit: EditRows, tokens: Sequence[str]) -> int:
  """Tokens of the longest window of an edit."""
  return max(len(text.ids) - 1 - window_start(text, tokens) for text in edit.with_target)


def window_start(text: Encoded, tokens: Sequence[str]) -> int:
  """First δ position of a row: nothing before it changes."""
  return min(position(text, token) for token in tokens)


def row_batch(edits: Sequence[EditRows], block: Block, tokens: Sequence[str]) -> RowBatch:
  """Padded rows of at most `block.fill` edits, filled up with the first one."""
  edits = [*edits, *[edits[0]] * (block.fill - len(edits))]
  texts = [text for edit in edits for text in edit.with_target]
  count = len(edits[0].with_target)

  def per_edit(values) -> np.ndarray:
    array = np.asarray(values)
    return array.reshape(len(edits), count, *array.shape[1:])

  start_N = np.array([window_start(text, tokens) for text in texts], np.int32)
  token_NxT, _ = pad([text.ids[:-1] for text in texts], block.num_tokens)
  label_NxJ, target_N = pad([text.target_ids for text in texts], block.num_targets)
  first_N = np.array([text.target_start for text in texts], np.int32) - 1 - start_N
  index_J = np.arange(block.num_targets, dtype=np.int32)
  mask_NxJ = index_J[None] < target_N[:, None]
  kl_token_BxT, _ = pad([edit.kl.ids for edit in edits], block.kl_tokens)
  return RowBatch(
    token_BxPxT=per_edit(token_NxT),
    start_BxP=per_edit(start_N),
    token_at_BxP={
      token: per_edit(np.array([position(text, token) for text in texts], np.int32) - start_N)
      for token in tokens
    },
    read_at_BxPxJ=per_edit(np.where(mask_NxJ, first_N[:, None] + index_J[None], 0)),
    label_BxPxJ=per_edit(label_NxJ),
    label_mask_BxPxJ=per_edit(mask_NxJ),
    kl_token_BxT=kl_token_BxT,
    kl_start_B=np.array([position(edit.kl, 'subject_last') for edit in edits], np.int32),
  )
