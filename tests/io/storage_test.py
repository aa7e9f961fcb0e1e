"""Files are whole or absent, and come back as they were."""

import json
import os
import signal
import subprocess
import sys

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from jedit.io import storage
from jedit.types import Request, UserError


def _tensors():
  return {
    'kernel': np.arange(6.0).reshape(2, 3).T,  # float64, not contiguous
    'half': np.asarray(jnp.asarray([1.5, -2.0], jnp.bfloat16)),
    'device': jnp.ones((2, 2)),
    'scalar': np.float32(3.0),
    'empty': np.zeros((0, 4), np.int32),
  }


def test_tensors_and_metadata_come_back(tmp_path):
  path = tmp_path / 'a' / 'patch.safetensors'
  metadata = {'layers': [1, 2], 'method': {'name': 'pmet', 'lr': 0.2}, 'note': 'é'}
  storage.write_tensors(path, _tensors(), metadata)
  tensors, read = storage.read_tensors(path)
  chex.assert_trees_all_equal(tensors, {k: np.asarray(v) for k, v in _tensors().items()})
  assert {k: v.dtype for k, v in tensors.items()} == {k: v.dtype for k, v in _tensors().items()}
  assert read == metadata
  assert storage.read_tensors(path, ()) == ({}, metadata)
  assert list(storage.read_tensors(path, ['half'])[0]) == ['half']


def test_equal_content_gives_equal_bytes(tmp_path):
  for name in ('a', 'b'):
    storage.write_tensors(tmp_path / name, _tensors(), {'a': 1, 'b': 2, 'c': 3})
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_no_metadata_means_a_weight_file(tmp_path):
  path = tmp_path / 'model.safetensors'
  storage.write_tensors(path, {'w': np.ones(2, np.float32)})
  assert b'"format":"pt"' in path.read_bytes()
  assert storage.read_tensors(path)[1] == {}


@pytest.mark.parametrize('content', [b'', b'not a tensor file', None, 'torn'])
def test_unreadable_tensors_are_named(tmp_path, content):
  path = tmp_path / 'x.safetensors'
  if content == 'torn':
    storage.write_tensors(path, _tensors(), {})
    content = path.read_bytes()[:-1]
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match='x.safetensors'):
    storage.read_tensors(path)


def test_a_directory_or_an_absent_name_is_refused(tmp_path):
  with pytest.raises(UserError, match=str(tmp_path)):
    storage.read_tensors(tmp_path)
  storage.write_tensors(tmp_path / 'x', _tensors(), {})
  with pytest.raises(UserError, match='lacks other'):
    storage.read_tensors(tmp_path / 'x', ['kernel', 'other'])


def test_json_comes_back_and_errors_name_the_file(tmp_path):
  path = tmp_path / 'summary.json'
  storage.write_json(path, {'score': np.float64(88.0), 'n': float('nan')})
  assert storage.read_json(path) == {'score': 88.0, 'n': None}
  path.write_text('{"score": ')
  with pytest.raises(UserError, match='summary.json is not JSON'):
    storage.read_json(path)
  with pytest.raises(UserError, match='absent.json'):
    storage.read_json(tmp_path / 'absent.json')


def test_an_interrupted_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
  path = tmp_path / 'x.json'
  storage.write_json(path, 1)
  with pytest.raises(KeyboardInterrupt), storage.atomic_file(path) as beside:
    beside.write_text('half')
    raise KeyboardInterrupt
  assert storage.read_json(path) == 1
  assert os.listdir(tmp_path) == ['x.json']


def test_an_interrupted_directory_leaves_nothing(tmp_path):
  path = tmp_path / 'export'
  with pytest.raises(KeyboardInterrupt), storage.atomic_directory(path) as beside:
    (beside / 'config.json').write_text('{}')
    raise KeyboardInterrupt
  assert os.listdir(tmp_path) == []


def test_a_directory_appears_whole_and_only_where_nothing_is(tmp_path):
  path = tmp_path / 'deep' / 'export'
  path.mkdir(parents=True)  # empty: may be taken
  with storage.atomic_directory(path) as beside:
    (beside / 'sub').mkdir()
    (beside / 'sub' / 'file').write_text('1')
    assert not any(path.iterdir())
  assert (path / 'sub' / 'file').read_text() == '1'
  assert os.listdir(path.parent) == ['export']
  with pytest.raises(UserError, match='exists already'), storage.atomic_directory(path):
    pytest.fail('the block must not run')
  assert (path / 'sub' / 'file').exists()


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='Cannot write .*file/x.json'):
    storage.write_json(tmp_path / 'file' / 'x.json', 1)
  with pytest.raises(UserError, match='Cannot write'):
    storage.write_tensors(tmp_path / 'file' / 'x', {}, {})
  with pytest.raises(UserError, match='Cannot write'):
    with storage.atomic_directory(tmp_path / 'file' / 'x'):
      pytest.fail('the block must not run')


def test_a_killed_process_leaves_the_old_file(tmp_path):
  path = tmp_path / 'x.json'
  storage.write_json(path, 'old')
  code = f"""
import os, signal
from jedit.io import storage
with storage.atomic_file({str(path)!r}) as beside:
  beside.write_text('half')
  os.kill(os.getpid(), signal.SIGKILL)
"""
  done = subprocess.run([sys.executable, '-c', code], cwd=os.getcwd())
  assert done.returncode == -signal.SIGKILL
  assert storage.read_json(path) == 'old'


def test_results_become_plain_json():
  value = {
    'array': np.arange(3, dtype=np.int32),
    'bfloat16': jnp.ones((2,), jnp.bfloat16),
    'nan': float('nan'),
    'inf': [np.float32('inf')],
    1: (True, None),
    'request': Request('{} is', 'a', 'b', case_id=3),
    'config': config_dict.ConfigDict({'layers': (1, 2)}),
  }
  plain = json.loads(json.dumps(storage.to_json(value), allow_nan=False))
  assert plain['array'] == [0, 1, 2] and plain['bfloat16'] == [1.0, 1.0]
  assert plain['nan'] is None and plain['inf'] == [None] and plain['1'] == [True, None]
  assert plain['request']['case_id'] == 3 and plain['config'] == {'layers': [1, 2]}
  with pytest.raises(TypeError):
    storage.to_json(object())
