"""Padded lengths: few shapes, since each is compiled, and little padding, which is wasted work."""

import bisect
from collections.abc import Sequence

import numpy as np

PADDING_PER_PROGRAM = 2**14  # tokens: compiling one more program takes longer than these


def bucket(length: int, smallest: int = 8) -> int:
  """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... from `smallest` on that holds `length`."""
  size = 1
  while size < max(length, smallest):
    is_power = size & (size - 1) == 0
    size = max(size * 3 // 2 if is_power else size * 4 // 3, size + 1)
  return size


def round_up(size: int, multiple: int) -> int:
  """The least multiple that is not below `size`."""
  return -(-size // multiple) * multiple


def group_by_length(
  lengths: Sequence[int],
  smallest: int = 8,
  padding: float = PADDING_PER_PROGRAM,
  *,
  exact: bool = False,
) -> list[tuple[int, list[int]]]:
  """Groups rows by padded length.

  A group joins the next longer one where that adds little padding.

  Args:
    lengths: tokens of each row.
    smallest: padded length to begin with.
    padding: tokens of padding that are worth a program of their own.
    exact: pads to the longest row of a group instead of the next `bucket`.

  Returns:
    (padded length, indices of the rows), ascending.
  """
  if not lengths:
    return []
  by_length: dict[int, list[int]] = {}
  for index, length in enumerate(lengths):
    by_length.setdefault(length if exact else bucket(length, smallest), []).append(index)
  groups: list[tuple[int, list[int]]] = []
  waiting: list[int] = []
  sizes = sorted(by_length)
  for size, longer in zip(sizes, [*sizes[1:], None], strict=True):
    waiting = waiting + by_length[size]
    if longer is None or sum(longer - lengths[i] for i in waiting) > padding:
      groups.append((size, waiting))
      waiting = []
  return groups


def best_fit(lengths: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, list[int]]]:
  """Packs items into rows: the longest first, each where it leaves the least room.

  Args:
    lengths: of the items, none above the largest size; those of length 0 are dropped.
    sizes: of rows, ascending; a row has the least that holds its longest item.

  Returns:
    The size and the indices of the items of every row.
  """
  rows: list[tuple[int, list[int]]] = []
  rooms: list[tuple[int, int]] = []  # room left and number of the row, sorted
  for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
    length = lengths[index]
    if not length:
      break
    at = bisect.bisect_left(rooms, (length, 0))
    if at == len(rooms):
      room, number = sizes[bisect.bisect_left(sizes, length)], len(rows)
      rows.append((room, []))
    else:
      room, number = rooms.pop(at)
    rows[number][1].append(index)
    bisect.insort(rooms, (room - length, number))
  return rows


def pad(rows: Sequence[Sequence[int]], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Pads rows on the right with 0; lengths tell padding apart, token ids do not.

  Args:
    rows: token ids of N texts.
    length: number of tokens T to pad to; None takes the longest row.

  Returns:
    token_NxT and length_N, int32.

  Raises:
    ValueError: if a row is longer than `length`.
  """
  length_N = np.array([len(row) for row in rows], np.int32)
  longest = int(length_N.max(initial=0))
  if length is not None and longest > length:
    raise ValueError(f'A text has {longest} tokens, more than the {length} to pad to.')
  token_NxT = np.zeros((len(rows), longest if length is None else length), np.int32)
  for n, row in enumerate(rows):
    token_NxT[n, : len(row)] = row
  return token_NxT, length_N
