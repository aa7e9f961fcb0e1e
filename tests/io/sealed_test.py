"""Sealed JSON: whole, of its format and of its inputs, or made anew."""

import pytest

from jedit.io import sealed, storage
from jedit.io.sealed import StaleFile, digest
from jedit.types import UserError

FORMAT = 'a test 1'


def test_content_comes_back(tmp_path):
  path = tmp_path / 'x.json'
  content = {'a': [1, None, 'é'], 'zeros': '0' * 64, 'b': {'c': 0.1}}
  sealed.write_json(path, FORMAT, content, ['key', 1])
  assert sealed.read_json(path, FORMAT, ('key', 1)) == content
  assert sealed.read_json(path, FORMAT) == sealed.read_json(path, None) == content
  assert sealed.is_sealed_json(path) and not sealed.is_sealed_json(tmp_path / 'absent')


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
  path = tmp_path / 'x.json'
  sealed.write_json(path, FORMAT, {'a': [1, 'é']}, 'key')
  whole = path.read_bytes()
  for place in range(len(whole)):
    for changed in (whole[:place], whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]):
      path.write_bytes(changed)
      with pytest.raises(StaleFile):
        sealed.read_json(path, FORMAT, 'key')


def test_another_format_key_or_shape_is_refused(tmp_path):
  path = tmp_path / 'x.json'
  sealed.write_json(path, FORMAT, {'a': [1, 'x']}, 'key')
  for arguments, words in (
    (('a test 2', 'key'), "holds 'a test 1' where 'a test 2' is wanted"),
    ((FORMAT, 'other'), 'is of another run'),
    ((FORMAT, 'key', dict[str, list[int]]), "has 'x' in the field 'a\\[1\\]'; give"),
  ):
    with pytest.raises(StaleFile, match=words):
      sealed.read_json(path, *arguments)
  storage.write_json(path, {'a': 1})
  with pytest.raises(StaleFile, match='was not written by'):
    sealed.read_json(path, FORMAT)
  with pytest.raises(UserError, match='Cannot read'):
    sealed.read_json(tmp_path / 'absent', FORMAT)


def test_a_cache_is_made_anew_with_one_line(tmp_path, capsys):
  path = tmp_path / 'x.json'
  assert sealed.kept(path, sealed.read_json, FORMAT) is None
  assert capsys.readouterr().err == ''
  sealed.write_json(path, FORMAT, {'a': 1})
  assert sealed.kept(path, sealed.read_json, FORMAT) == {'a': 1}
  path.write_bytes(path.read_bytes()[:-1])
  assert sealed.kept(path, sealed.read_json, FORMAT) is None
  [line] = capsys.readouterr().err.splitlines()
  assert line.startswith(f'jedit: {path} is damaged') and line.endswith('it is made again.')


def test_digests_tell_keys_apart():
  import numpy as np

  keys = [None, 1, '1', [1], {'a': 1}, {'a': 2}, {'b': 1}, np.arange(2), [0.1], [0.2]]
  assert len({digest(key) for key in keys}) == len(keys)
  assert digest({'a': 1, 'b': 2}) == digest({'b': 2, 'a': 1})
