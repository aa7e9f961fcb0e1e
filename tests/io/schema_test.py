"""Schemas say file, place, what was found and what is wanted."""

from typing import Any

import pytest

from jedit.io import schema
from jedit.io.schema import Fields, Positive, Text
from jedit.types import UserError


class _Inner(Fields):
  name: Text


class _Outer(Fields):
  count: Positive
  inner: _Inner
  items: list[Text] = []
  share: schema.Finite = 0.5


GOOD: dict[str, Any] = {'count': 2, 'inner': {'name': 'x', 'more': 1}, 'items': ['a'], 'share': 1}


def test_good_values_come_back():
  found = schema.check(_Outer, GOOD, 'file')
  assert (found.count, found.inner.name, found.items, found.share) == (2, 'x', ['a'], 1.0)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'count': None}, "has None in the field 'count'; give a whole number."),
    ({'count': True}, "has True in the field 'count'; give a whole number."),
    ({'count': 0}, "has 0 in the field 'count'; give a number of at least 1."),
    ({'count': 2**31}, "has 2147483648 in the field 'count'; give a number below 2147483648."),
    ({'inner': 5}, "has 5 in the field 'inner'; give an object."),
    ({'inner': {}}, "lacks the field 'inner.name'; add it."),
    ({'inner': {'name': ' '}}, "has ' ' in the field 'inner.name'; give a non-empty string."),
    ({'inner': {'name': '\ud800'}}, "'inner.name'; give a string without lone surrogates."),
    ({'items': 'x'}, "has 'x' in the field 'items'; give a list."),
    ({'items': ['x', 7]}, "has 7 in the field 'items[1]'; give a string."),
    ({'share': float('nan')}, "has nan in the field 'share'; give a finite number."),
    ({'share': 'x' * 99}, f"has '{'x' * 56}... in the field 'share'; give a number."),
  ],
)
def test_faults_are_one_sentence(changes, words):
  with pytest.raises(UserError) as raised:
    schema.check(_Outer, {**GOOD, **changes}, 'a.json')
  assert str(raised.value).startswith('a.json ') and str(raised.value).endswith(words)


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    (b'{"a": ', 'is not JSON'),
    (b'["\\ud800"]', 'is not JSON'),
    (b'[' * 1000 + b']' * 1000, 'recursion limit exceeded'),
    (b'\xff', 'is not JSON'),
  ],
)
def test_files_that_are_not_json_are_named(tmp_path, text, words):
  (tmp_path / 'a.json').write_bytes(text)
  with pytest.raises(UserError, match=f'a.json .*{words}'):
    schema.read_json(tmp_path / 'a.json')
