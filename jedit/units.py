"""Durations, sizes and texts formatted for people."""

import re

# Control characters but tab and line feed, line separators, changes of direction, surrogates.
_CONTROLS = re.compile(
  '[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]'
)


def format_seconds(seconds: float) -> str:
  """A duration for people: '0.4 s', '12 s', '3 min 05 s', '2 h 07 min'."""
  if seconds < 9.95:
    return f'{seconds:.1f} s'
  whole = round(seconds)
  if whole < 60:
    return f'{whole} s'
  if whole < 3600:
    return f'{whole // 60} min {whole % 60:02d} s'
  return f'{whole // 3600} h {whole % 3600 // 60:02d} min'


def format_bytes(count: int) -> str:
  """A size for people: '312 kB', '48 MB', '12.9 GB'."""
  if count < 999_500:
    return f'{count / 1e3:.0f} kB'
  return f'{count / 1e6:.0f} MB' if count < 999_500_000 else f'{count / 1e9:.1f} GB'


def visible(text: str) -> str:
  """Text for a terminal: control characters and changes of direction become '\ufffd'."""
  return _CONTROLS.sub('\ufffd', text)
