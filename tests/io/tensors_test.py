"""Arrays come back as they were, or not at all."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jedit.io import tensors
from jedit.io.sealed import StaleFile
from jedit.types import UserError

FORMAT = 'a test 1'


def _tensors():
  return {
    'kernel': np.arange(6.0).reshape(2, 3).T,  # float64, not contiguous
    'half': np.asarray(jnp.asarray([1.5, -2.0], jnp.bfloat16)),
    'device': jnp.ones((2, 2)),
    'scalar': np.float32(3.0),
    'empty': np.zeros((0, 4), np.int32),
  }


def test_tensors_and_facts_come_back(tmp_path):
  path = tmp_path / 'a' / 'patch.safetensors'
  facts = {'layers': [1, 2], 'method': {'name': 'pmet', 'lr': 0.2}, 'note': 'é'}
  tensors.write_tensors(path, FORMAT, _tensors(), facts, ['key'])
  found, read = tensors.read_tensors(path, FORMAT, ('key',))  # as JSON, they are one
  chex.assert_trees_all_equal(found, {k: np.asarray(v) for k, v in _tensors().items()})
  assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in _tensors().items()}
  assert read == facts
  assert tensors.read_tensors(path, None)[1] == facts
  # Other programs read it as well.
  np.testing.assert_array_equal(safetensors.numpy.load_file(path)['device'], np.ones((2, 2)))


def test_equal_content_gives_equal_bytes(tmp_path):
  for name in ('a', 'b'):
    tensors.write_tensors(tmp_path / name, FORMAT, _tensors(), {'a': 1, 'b': 2, 'c': 3})
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_a_weight_file_is_not_one_of_ours(tmp_path):
  path = tmp_path / 'model.safetensors'
  arrays = {'w': np.ones(2, np.float32)}
  tensors.stream_tensors(path, arrays, arrays.__getitem__)
  assert b'"format":"pt"' in path.read_bytes()
  np.testing.assert_array_equal(safetensors.numpy.load_file(path)['w'], arrays['w'])
  with pytest.raises(StaleFile, match='model.safetensors was not written by'):
    tensors.read_tensors(path, FORMAT)


@pytest.mark.parametrize('content', [b'', b'not a tensor file', None, 'torn', 'longer', '.'])
def test_unreadable_tensors_are_named(tmp_path, content):
  path = tmp_path / 'x.safetensors'
  if content == '.':
    path.mkdir()
  elif isinstance(content, str):
    tensors.write_tensors(path, FORMAT, _tensors(), {})
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] if content == 'torn' else whole + b'0')
  elif content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match='x.safetensors'):
    tensors.read_tensors(path, FORMAT)


def test_every_flipped_bit_is_noticed(tmp_path):
  path = tmp_path / 'x'
  tensors.write_tensors(path, FORMAT, {'x': np.arange(3.0)}, {'a': 1}, 'key')
  whole = path.read_bytes()
  for place in range(len(whole)):
    for bit in (0, 7):
      flipped = bytearray(whole)
      flipped[place] ^= 1 << bit
      path.write_bytes(flipped)
      with pytest.raises(StaleFile):
        tensors.read_tensors(path, FORMAT, 'key')


def test_another_format_or_key_is_refused(tmp_path):
  path = tmp_path / 'x'
  tensors.write_tensors(path, FORMAT, _tensors(), {}, 'key')
  with pytest.raises(StaleFile, match="holds 'a test 1' where 'a test 2' is wanted"):
    tensors.read_tensors(path, 'a test 2', 'key')
  with pytest.raises(StaleFile, match='is of another run'):
    tensors.read_tensors(path, FORMAT, 'other')
