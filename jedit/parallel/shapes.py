"""Padded lengths: few shapes, since each is compiled, and little padding, which is wasted work."""

from collections.abc import Sequence

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
  lengths: Sequence[int], smallest: int = 8, padding: float = PADDING_PER_PROGRAM
) -> list[tuple[int, list[int]]]:
  """Groups rows by padded length.

  A group joins the next longer one where that adds little padding.

  Args:
    lengths: tokens of each row.
    smallest: padded length to begin with.
    padding: tokens of padding that are worth a program of their own.

  Returns:
    (padded length, indices of the rows), ascending.
  """
  if not lengths:
    return []
  by_length: dict[int, list[int]] = {}
  for index, length in enumerate(lengths):
    by_length.setdefault(bucket(length, smallest), []).append(index)
  groups: list[tuple[int, list[int]]] = []
  waiting: list[int] = []
  sizes = sorted(by_length)
  for size, longer in zip(sizes, [*sizes[1:], None], strict=True):
    waiting = waiting + by_length[size]
    if longer is None or sum(longer - lengths[i] for i in waiting) > padding:
      groups.append((size, waiting))
      waiting = []
  return groups
