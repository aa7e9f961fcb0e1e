"""Files are whole or absent, and come back as they were."""

import json
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from jedit.io import schema, storage, tensors
from jedit.types import Request, UserError


def test_json_comes_back_and_errors_name_the_file(tmp_path):
  path = tmp_path / 'summary.json'
  storage.write_json(path, {'score': np.float64(88.0), 'n': float('nan')})
  assert schema.read_json(path) == {'score': 88.0, 'n': None}
  with pytest.raises(UserError, match='absent.json'):
    schema.read_json(tmp_path / 'absent.json')


def test_an_interrupted_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
  path = tmp_path / 'x.json'
  storage.write_json(path, 1)
  with pytest.raises(KeyboardInterrupt), storage.atomic_file(path) as beside:
    beside.write_text('half')
    raise KeyboardInterrupt
  assert schema.read_json(path) == 1
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
    tensors.write_tensors(tmp_path / 'file' / 'x', 'a test 1', {}, {})
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
  assert schema.read_json(path) == 'old'


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
