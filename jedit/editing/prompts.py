"""The token rows that edits are made of, and their batches in a few padded shapes."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import transformers

from jedit.models.encoding import Encoded, Row, encode_many
from jedit.parallel.shapes import bucket, group_by_length, pad, round_up
from jedit.types import Request, UserError

Contexts = tuple[tuple[str, ...], ...]

# Window tokens run in vain, over all steps, that a compiled program of their own is worth: it
# is compiled once and kept on disk, they are run every time.
_PADDING_PER_PROGRAM = 2**15
_ROUNDS_PER_BLOCK = 8  # what is lost to a kill, against slots that run empty at a block's end
_FILLS_PER_BATCH = 4


@dataclasses.dataclass(frozen=True)
class EditRows:
  """All texts of one edit, tokenised.

  Attributes:
    request: the edit.
    with_target: context + prompt + target, one per context; what the target is optimised on.
    without_target: context + prompt, one per context; where keys are read.
    bare: the prompt alone; where present values are read.
    kl: "{subject} is a".
  """

  request: Request
  with_target: tuple[Encoded, ...]
  without_target: tuple[Encoded, ...]
  bare: Encoded
  kl: Encoded

  @property
  def target_ids(self) -> tuple[int, ...]:
    """Tokens of the target after the first context."""
    return self.with_target[0].target_ids


def check_contexts(contexts: Iterable[Iterable[str]]) -> Contexts:
  """Contexts as tuples: groups of templates, each with a `{}` that takes the prompt.

  Raises:
    UserError: for an empty list or group, or a first template that is not the bare prompt.
  """
  groups = tuple(tuple(group) for group in contexts)
  if not groups or not all(groups):
    raise UserError('contexts is empty; give groups of templates, the first one holding "{}".')
  if groups[0][0] != '{}':
    raise UserError(
      f'The first context is {groups[0][0]!r}; it must be "{{}}", the bare prompt, because the '
      'start value of every delta is read there.'
    )
  return groups


def encode_edits(
  tokenizer: transformers.PreTrainedTokenizerBase,
  requests: Sequence[Request],
  contexts: Contexts,
  limit: int | None = None,
) -> list[EditRows]:
  """Tokenises every text of every edit in one pass; `limit` as of `encode_many`."""
  templates = [template for group in contexts for template in group]
  texts: list[Row] = []
  for request in requests:
    prompt, subject, target = request.prompt, request.subject, request.target
    texts += [Row(prompt, subject, target, template) for template in templates]
    texts += [Row(prompt, subject, None, template) for template in templates]
    texts += [Row(prompt, subject), Row('{} is a', subject)]
  encoded = encode_many(tokenizer, texts, limit)
  count, size = len(templates), 2 * len(templates) + 2
  rows = []
  for i, request in enumerate(requests):
    part = encoded[i * size : (i + 1) * size]
    rows.append(
      EditRows(request, tuple(part[:count]), tuple(part[count : 2 * count]), part[-2], part[-1])
    )
  return rows


def position(text: Encoded, token: str) -> int:
  """Index of the 'subject_last' or 'prompt_last' token."""
  at = text.subject_last if token == 'subject_last' else text.prompt_last
  assert at is not None, 'rows of edits have a subject'
  return at


@dataclasses.dataclass(frozen=True)
class Block:
  """Edits that are optimised as one batch.

  Attributes:
    indices: which edits, as positions in the list of requests; fewer than `size` in a last block.
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


def fit_shapes(rows: Sequence[EditRows], tokens: Sequence[str], num_steps: int) -> list[Block]:
  """The shapes that edits are padded to: blocks without edits, windows ascending.

  Args:
    rows: all edits, whether they become one batch or a sequence of them.
    tokens: where δ are added: 'subject_last', 'prompt_last' or both.
    num_steps: how often a block is run, which decides when a shape of its own pays.
  """
  padding = _PADDING_PER_PROGRAM / (num_steps * len(rows[0].with_target))
  windows = [_window(edit, tokens) for edit in rows]
  shapes = []
  for window, indices in group_by_length(windows, smallest=1, padding=padding):
    texts = [text for i in indices for text in rows[i].with_target]
    shapes.append(
      Block(
        indices=(),
        size=0,
        fill=0,
        window=window,
        past=bucket(max(window_start(text, tokens) for text in texts)),
        num_tokens=bucket(max(len(text.ids) - 1 for text in texts)),
        num_targets=bucket(max(len(text.target_ids) for text in texts), smallest=1),
        kl_tokens=bucket(max(len(rows[i].kl.ids) for i in indices)),
      )
    )
  return shapes


def cut_blocks(
  rows: Sequence[EditRows],
  tokens: Sequence[str],
  batch_size: int,
  num_steps: int,
  multiple: int = 1,
  shapes: Sequence[Block] | None = None,
) -> list[Block]:
  """Groups edits of similar windows in blocks of few shapes.

  Args:
    rows: all edits.
    tokens, num_steps: as of `fit_shapes`.
    batch_size: the largest B; blocks, and rounds of their slots, share the edits of a shape
      evenly, so that little of the last is empty.
    multiple: slots and fills come in multiples of it, for devices that share them.
    shapes: of `fit_shapes` for the sequence that these edits are a part of: its parts then share
      their programs, and the number of slots is one of few, too. None fits these edits alone.

  Raises:
    ValueError: for shapes that an edit does not fit in.
  """
  windows = np.array([_window(edit, tokens) for edit in rows])
  fitting = fit_shapes(rows, tokens, num_steps) if shapes is None else shapes
  if windows.max() > fitting[-1].window:
    raise ValueError(f'A window of {windows.max()} tokens is beyond all shapes.')
  above, blocks = -1, []
  for shape in fitting:
    indices = np.flatnonzero((above < windows) & (windows <= shape.window)).tolist()
    above = shape.window
    if not indices:
      continue
    num_edits = -(-len(indices) // -(-len(indices) // (_ROUNDS_PER_BLOCK * batch_size)))
    size = -(-num_edits // -(-num_edits // batch_size))
    if shapes is not None:
      size = min(bucket(size, smallest=1), batch_size)
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


@dataclasses.dataclass(frozen=True)
class FillArrays:
  """The arrays of a fill, filled up with its first edit; see `jedit.editing.target.RowBatch`."""

  token_BxPxT: np.ndarray
  start_BxP: np.ndarray
  token_at_BxP: dict[str, np.ndarray]
  read_at_BxPxJ: np.ndarray
  label_BxPxJ: np.ndarray
  label_mask_BxPxJ: np.ndarray
  kl_token_BxT: np.ndarray
  kl_start_B: np.ndarray


def fill_arrays(edits: Sequence[EditRows], block: Block, tokens: Sequence[str]) -> FillArrays:
  """The padded arrays of at most `block.fill` edits; positions are relative to rows' windows."""
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
  return FillArrays(
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
