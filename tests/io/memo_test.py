"""Memo: results are found again by name and key, and nothing else passes for them."""

import numpy as np

from jedit.io.memo import Memo, Stored


def _stored(value=1.0):
  return Stored({'x': np.full((2, 3), value), 'n': np.arange(4)}, {'note': 'ö', 'list': [1, None]})


def test_results_come_back_to_the_bit(tmp_path):
  memo = Memo(tmp_path / 'new' / 'folder')
  assert memo.get('a', 'key') is None
  assert memo.put('a', {'seed': 0}, _stored(0.1)).facts['note'] == 'ö'
  found = memo.get('a', {'seed': 0})
  assert found.facts['note'] == 'ö' and found.facts['list'] == [1, None]
  for name, array in _stored(0.1).tensors.items():
    np.testing.assert_array_equal(found.tensors[name], array)
    assert found.tensors[name].dtype == array.dtype
  assert [path.name for path in memo.folder.iterdir()] == ['a.safetensors']


def test_a_result_of_another_key_is_no_result(tmp_path):
  memo = Memo(tmp_path)
  memo.put('a', ['key', 1], _stored(1))
  assert memo.get('a', ('key', 1)).tensors['x'][0, 0] == 1  # as JSON, they are one
  assert memo.get('a', ['key', 2]) is None and memo.get('b', ['key', 1]) is None
  memo.put('a', ['key', 2], _stored(2))
  assert memo.get('a', ['key', 1]) is None  # replaced
  assert Memo(tmp_path).get('a', ['key', 2]).tensors['x'][0, 0] == 2


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  memo = Memo(None).below('deeper')
  assert memo.folder is None
  memo.put('a', 'key', _stored())
  assert memo.get('a', 'key') is None and not list(tmp_path.iterdir())


def test_subdirectories_are_apart(tmp_path):
  memo = Memo(str(tmp_path))
  memo.put('a', 'key', _stored(1))
  memo.below('part').put('a', 'key', _stored(2))
  assert memo.get('a', 'key').tensors['x'][0, 0] == 1
  assert Memo(tmp_path / 'part').get('a', 'key').tensors['x'][0, 0] == 2


def test_a_damaged_result_is_no_result(tmp_path, capsys):
  memo = Memo(tmp_path)
  memo.put('a', 'key', _stored())
  file = tmp_path / 'a.safetensors'
  whole = bytearray(file.read_bytes())
  whole[-5] ^= 1
  file.write_bytes(whole)
  assert memo.get('a', 'key') is None
  assert 'a.safetensors is damaged' in capsys.readouterr().err
  memo.put('a', 'key', _stored())
  assert memo.get('a', 'key') is not None
