"""Results: they print as a few lines and are stored with their keys."""

import dataclasses
import html

import numpy as np
import pytest

from helpers import editing
from jedit import methods
from jedit.editing.edit import Separate, edit
from jedit.editing.result import Details, EditResult, sum_seconds
from jedit.io.memo import Memo
from jedit.models.patch import Patch, Update
from jedit.types import Kernel, UserError

METHOD = methods.pmet(layers=(0, 1), write=('attn', 'mlp'), num_steps=2)


@pytest.fixture(scope='module')
def result():
  lm = editing.language_model()
  moments = editing.second_moments(lm, METHOD)
  return edit(lm, editing.REQUESTS, METHOD, moments, contexts=editing.CONTEXTS)


def test_results_print_as_a_few_lines(result):
  lm = editing.language_model()
  separate = edit(lm, editing.REQUESTS, methods.ft(layers=(0,), num_epochs=1), batching=Separate(2))
  for each in (result, result.details, separate, EditResult(result.patch), Details()):
    text = repr(each)
    assert len(text.splitlines()) <= 10 and len(text) < 1000, text
  assert result.patch.id in repr(result) and 'targets' in repr(result)
  assert '4 batches' in repr(separate)
  assert '7 edits' in repr(result.details) and '1/attn' in repr(result.details)


def test_a_notebook_shows_patch_edits_and_seconds(result):
  page = result._repr_html_()
  assert result.patch.id in page and '<td>block_1/attn/out/kernel</td><td>16 x 16</td>' in page
  probability_B = result.details.targets[0].last('probability')
  for request, probability in zip(editing.REQUESTS, probability_B, strict=True):
    cells = f'<td>{html.escape(request.text)}</td><td>–</td><td>{request.target_new}</td>'
    assert f'{cells}<td>{probability:.3f}</td>' in page
  assert all(f'<td>{stage}</td>' in page for stage in result.seconds)
  many = dataclasses.replace(result.details, rows=result.details.rows * 2, targets=())
  assert 'and 4 more edits' in many._repr_html_() and 'its probability' not in many._repr_html_()
  separate = EditResult(None, batches=(result, result))
  assert '2 batches, each an edit of the original model' in separate._repr_html_()
  assert 'in 2 batches' in dataclasses.replace(result, batches=(result, result))._repr_html_()


def test_patch_and_keys_are_stored(result, tmp_path):
  Memo(tmp_path).put('batch', 'key', result.pack())
  found = EditResult.unpack(Memo(tmp_path).get('batch', 'key'))
  assert found.patch.id == result.patch.id and len(found.patch.updates) == 4
  assert found.patch.provenance['targets'] == result.patch.provenance['targets']
  assert found.details.keys.keys() == result.details.keys.keys() == set(METHOD.kernels)
  for kernel, key_BxF in result.details.keys.items():
    np.testing.assert_array_equal(found.details.keys[kernel], key_BxF)
    assert found.details.keys[kernel].dtype == key_BxF.dtype
  patch = Patch.load(tmp_path / 'batch.safetensors')
  assert patch.id == result.patch.id and patch.updates.keys() == found.patch.updates.keys()


def test_a_result_is_applied_as_its_patch(result):
  lm = editing.language_model()
  assert lm.apply(result).patches == (result.patch,)
  assert lm.apply(result).revert(result.patch).patches == ()
  with pytest.raises(UserError, match='dict is not a patch; give what jedit.edit returns'):
    lm.apply({})


def test_a_result_without_keys_is_stored(tmp_path):
  patch = Patch({'block_0/mlp/down/kernel': Update(dense=np.ones((2, 3), np.float32))})
  details = Details(keys={Kernel(12, 'mlp'): np.ones((1, 2))})
  for each in (EditResult(patch), EditResult(patch, details)):
    Memo(tmp_path).put('batch', 'key', each.pack())
    found = EditResult.unpack(Memo(tmp_path).get('batch', 'key'))
    assert found.patch.id == patch.id and found.details.keys.keys() == each.details.keys.keys()


def test_seconds_add_up():
  parts = {'keys': 1.0}, {}, {'keys': 2.0, 'solve': 0.5}
  assert sum_seconds(*parts) == {'keys': 3.0, 'solve': 0.5}
