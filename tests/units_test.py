"""Durations and sizes for people."""

import pytest

from jedit.units import format_bytes, format_seconds


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (0.44, '0.4 s'),
    (9.96, '10 s'),
    (59.6, '1 min 00 s'),
    (185, '3 min 05 s'),
    (7620, '2 h 07 min'),
  ],
)
def test_durations_read_well(seconds, text):
  assert format_seconds(seconds) == text


@pytest.mark.parametrize(
  ('count', 'text'),
  [(312_400, '312 kB'), (999_500, '1 MB'), (48_000_000, '48 MB'), (12_900_000_000, '12.9 GB')],
)
def test_sizes_read_well(count, text):
  assert format_bytes(count) == text
