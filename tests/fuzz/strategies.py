"""Strategies: values of odd kinds in the places of good ones, and bytes with faults."""

import copy
import json
import math

from hypothesis import strategies as st

_DEEP = json.loads('[' * 150 + ']' * 150)
ODD = st.sampled_from(
  [
    None, True, False, 0, -1, 1, 2, 7, 10**9, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0,
    1e-300, 1e300, math.inf, -math.inf, math.nan,
    '', ' ', 'x', '\n', '\0', '\x1b[31mred\x07', '\ud800',
    '\u202etxt', 'é' * 300, 'x' * 300, 'word ' * 2000, '{}', '{} {}', '{', '{0}', '%s',
    '$\\frac{1$', '=1+1', '-2+3', '@x', '../x', '..', '.', '/', '/dev/null', '/etc/passwd', '~',
    'a,b', '[]', 'null', 'float64', 'bfloat16', 'int8', [], {}, [[]], [''], [None], [0], ['x', 1],
    {'a': 1}, {'': {}}, _DEEP, (), (0,), (1, 0), (0, 0), (-1,), (0.5,), ('x',),
  ]
)  # fmt: skip
VALUES = st.one_of(ODD, st.integers(-3, 50), st.text(max_size=8), st.floats(-2, 20))


def _places(value, place=()):
  """Places of all values inside nested containers."""
  yield place
  items = ()
  if isinstance(value, dict):
    items = value.items()
  elif isinstance(value, list):
    items = enumerate(value)
  for key, each in items:
    yield from _places(each, (*place, key))


@st.composite
def changed(draw, good, values=VALUES, most=3):
  """A copy of a JSON value with one to `most` places replaced, removed or renamed."""
  value = copy.deepcopy(good)
  for _ in range(draw(st.integers(1, most))):
    place = draw(st.sampled_from(list(_places(value))))
    new = copy.deepcopy(draw(values))  # later changes may go into it
    if not place:
      if draw(st.integers(0, 9)):  # a value in place of the whole is rare
        continue
      value = new
      continue
    *above, last = place
    inner = value
    for key in above:
      inner = inner[key]
    kind = draw(st.sampled_from(['replace', 'replace', 'replace', 'remove', 'rename']))
    if kind == 'replace':
      inner[last] = new
    elif kind == 'remove' or not isinstance(inner, dict):
      del inner[last]
    else:
      inner[str(new)[:40]] = inner.pop(last)
  return value


def as_json(value):
  """JSON text as bytes, of whatever `changed` gives; NaN, surrogates and all."""
  return json.dumps(value, default=str).encode('utf-8', 'surrogatepass')


_FAULTS = ('flip', 'flip', 'flip', 'cut', 'swap', 'remove', 'repeat', 'insert', 'other')


@st.composite
def damaged(draw, data, others=()):
  """Bytes with faults: cut, flipped, swapped, removed, repeated, inserted or replaced."""
  data = bytearray(data)
  for _ in range(draw(st.integers(1, 3))):
    kind = draw(
      st.sampled_from(
        ['flip', 'flip', 'flip', 'cut', 'swap', 'remove', 'repeat', 'insert', 'other']
      )
    )
    size = max(len(data), 1)
    a = draw(st.integers(0, size - 1))
    b = min(a + draw(st.integers(1, 1 + size // 3)), size)
    if kind == 'flip' and data:
      data[a] ^= 1 << draw(st.integers(0, 7))
    elif kind == 'cut':
      data = data[:a]
    elif kind == 'swap':
      lines = bytes(data).split(b'\n')
      i, j = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
      lines[i], lines[j] = lines[j], lines[i]
      data = bytearray(b'\n'.join(lines))
    elif kind == 'remove':
      del data[a:b]
    elif kind == 'repeat':
      data[a:a] = data[a:b]
    elif kind == 'insert':
      data[a:a] = draw(st.binary(min_size=1, max_size=9))
    elif kind == 'other' and draw(st.booleans()):
      data = bytearray(draw(st.sampled_from([b'', b'[]', b'{}', b'\0' * 64, *others])))
  return bytes(data)
