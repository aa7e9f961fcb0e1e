"""Padded lengths are few, and padding keeps every token."""

import itertools
import random

import numpy as np
import pytest

from jedit.parallel.shapes import best_fit, bucket, pad


def test_buckets_hold_their_length_and_waste_little():
  sizes = sorted({bucket(length) for length in range(1, 400)})
  assert sizes == [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
  for length in range(9, 400):
    assert length <= bucket(length) <= 1.5 * length


def test_packed_rows_are_nearly_full():
  # Lengths of encyclopedia articles, where filling rows in order leaves a fifth empty.
  rng = random.Random(0)
  lengths = [min(512, 1 + int(350 * rng.lognormvariate(0, 1.2))) for _ in range(600)]
  rows = best_fit([*lengths, 0], [512])
  assert sorted(itertools.chain(*(row for _, row in rows))) == list(range(600)), (
    'the empty item is dropped'
  )
  assert max(sum(lengths[i] for i in row) for _, row in rows) <= 512
  assert sum(lengths) / (len(rows) * 512) > 0.99


def test_items_fill_the_fullest_row_or_open_the_shortest():
  assert best_fit([3, 2, 1], [4]) == [(4, [0, 2]), (4, [1])]
  assert best_fit([1, 5, 2, 4], [2, 4, 8]) == [(8, [1, 2, 0]), (4, [3])]
  assert best_fit([1, 2], [2, 4]) == [(2, [1]), (2, [0])]
  assert best_fit([], [4]) == []


def test_rows_are_padded_on_the_right_with_zeros():
  token_NxT, length_N = pad([[5, 0], [7, 8, 9]], 4)
  np.testing.assert_array_equal(token_NxT, [[5, 0, 0, 0], [7, 8, 9, 0]])
  np.testing.assert_array_equal(length_N, [2, 3])
  assert (token_NxT.dtype, length_N.dtype) == (np.int32, np.int32)
  assert pad([[5, 0], [7, 8, 9]])[0].shape == (2, 3)
  assert pad([[1]], 6)[0].shape == (1, 6)
  assert pad([])[0].shape == (0, 0)


def test_too_long_a_row_is_an_error():
  with pytest.raises(ValueError, match='3 tokens, more than the 2'):
    pad([[1, 2, 3]], 2)
