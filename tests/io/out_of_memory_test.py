"""Out of memory: half the batch once, with a line; then one sentence that names the field."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jedit.io.out_of_memory import halve_once, is_out_of_memory
from jedit.types import UserError

FULL = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.')
FIELDS = dict(stage='targets', field='edit.target_batch_size')


def _fits(limit, tried, error=FULL):
  """Work that takes too much memory with a batch above the limit."""

  def run(size):
    tried.append(size)
    if size > limit:
      raise error
    return f'done with {size}'

  return run


@pytest.mark.parametrize('error', [FULL, MemoryError()], ids=['device', 'host'])
def test_half_the_batch_is_tried_once_and_said(capsys, error):
  tried = []
  assert halve_once(_fits(8, tried, error), 16, most=100, **FIELDS) == 'done with 8'
  assert tried == [16, 8]
  said = capsys.readouterr().err
  assert said == 'targets: out of memory with a batch of 16; once more with 8.\n'


@pytest.mark.parametrize(
  ('size', 'most', 'least', 'tries'),
  [(16, 100, 1, [16, 8]), (32, 3, 1, [32, 1]), (1, 100, 1, [1]), (16, 100, 16, [16])],
)
def test_then_a_sentence_names_the_field(size, most, least, tries):
  tried = []
  with pytest.raises(UserError, match='targets runs out of memory .*; lower edit.target_batch_siz'):
    halve_once(_fits(0, tried), size, most=most, least=least, **FIELDS)
  assert tried == tries


def test_other_errors_and_results_pass():
  tried = []
  assert halve_once(_fits(16, tried), 16, most=16, **FIELDS) == 'done with 16'
  other = jax.errors.JaxRuntimeError('INTERNAL: a bug')
  with pytest.raises(jax.errors.JaxRuntimeError, match='a bug'):
    halve_once(_fits(0, tried, other), 16, most=16, **FIELDS)
  assert tried == [16, 16] and not is_out_of_memory(other)


def test_the_arrays_of_the_first_try_are_gone():
  kept = []

  def run(size):
    array = np.ones(size)
    kept.append(weakref.ref(array))
    if size > 8:
      raise MemoryError
    gc.collect()
    return kept[0]() is None

  assert halve_once(run, 16, most=16, **FIELDS)


def test_a_device_that_is_full_is_recognised():
  with pytest.raises(jax.errors.JaxRuntimeError) as raised:
    jnp.zeros((2**24, 2**22), jnp.int8).block_until_ready()  # 70 TB
  assert is_out_of_memory(raised.value)
