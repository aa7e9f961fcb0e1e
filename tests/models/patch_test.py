"""Patches come back from files, from models, and only go where they belong."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import editing, tiny
from jedit.io.storage import write_tensors
from jedit.models.language_model import LanguageModel
from jedit.models.load import fingerprint
from jedit.models.patch import Patch, Update, merge, patched
from jedit.types import UserError

LOW, HIGH = 'block_0/mlp/down/kernel', 'block_2/attn/out/kernel'


def _patch(lm, seed, paths=(LOW, HIGH), rank=2):
  rng = np.random.default_rng(seed)
  updates = {}
  for path in paths:
    rows, columns = functools.reduce(lambda tree, key: tree[key], path.split('/'), lm.base).shape
    left, right = rng.normal(size=(rows, rank)), rng.normal(size=(rank, columns))
    updates[path] = Update.from_factors(left, right)
  return Patch(updates, {'model': lm.fingerprint, 'seed': seed})


def _bits(params):
  return jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), params)


def test_a_patch_wants_those_that_it_was_made_on():
  lm = editing.language_model()
  first, second = _patch(lm, 0), _patch(lm, 1)
  third = dataclasses.replace(
    _patch(lm, 2), provenance={'model': lm.fingerprint, 'patches_before': [first.id, second.id]}
  )
  for carrying in (lm, lm.apply(second)):
    with pytest.raises(UserError, match=f'on top of {first.id}.* apply them first'):
      carrying.apply(third)
  step_by_step = lm.apply(first).apply(second).apply(third)
  at_once = lm.apply(merge([first, second])).apply(third)
  assert len(step_by_step.patches) == 3 and len(at_once.patches) == 2
  later = merge([third, _patch(lm, 3)])
  with pytest.raises(UserError, match='on top of'):
    lm.apply(later)
  lm.apply(first).apply(second).apply(later)


def test_updates_keep_the_smaller_form():
  rng = np.random.default_rng(0)
  left_FxR, right_RxD = rng.normal(size=(24, 9)), rng.normal(size=(9, 16))
  factors = Update.from_factors(left_FxR, right_RxD)  # 9 · (24 + 16) = 360 < 384 = 24 · 16
  assert factors.dense is None and set(factors.tensors()) == {'left', 'right'}
  left_FxR, right_RxD = rng.normal(size=(24, 10)), rng.normal(size=(10, 16))
  dense = Update.from_factors(left_FxR, right_RxD)
  assert dense.left_FxR is None and set(dense.tensors()) == {'dense'}
  np.testing.assert_array_equal(dense.value(), (left_FxR @ right_RxD).astype(np.float32))
  for update in (factors, dense):
    assert update.shape == update.value().shape == (24, 16)
    assert all(array.dtype == np.float32 for array in (update.value(), *update.tensors().values()))


def test_factors_give_their_product():
  rng = np.random.default_rng(1)
  left_FxR, right_RxD = rng.normal(size=(24, 3)), rng.normal(size=(3, 16))
  value = Update.from_factors(left_FxR, right_RxD).value()
  np.testing.assert_allclose(value, left_FxR @ right_RxD, rtol=0, atol=1e-6)


def test_files_give_patches_back(tmp_path):
  lm = editing.language_model()
  patch = Patch(
    {**_patch(lm, 0).updates, LOW: Update(dense=np.ones((24, 16), np.float32))},
    {'model': lm.fingerprint, 'method': {'name': 'memit'}, 'contexts': [['{}']]},
  )
  patch.save(tmp_path / 'p.safetensors')
  loaded = Patch.load(tmp_path / 'p.safetensors')
  assert loaded.provenance == patch.provenance
  assert set(loaded.updates) == set(patch.updates)
  for path, update in patch.updates.items():
    for name, array in update.tensors().items():
      np.testing.assert_array_equal(loaded.updates[path].tensors()[name], array)
    assert loaded.updates[path].tensors().keys() == update.tensors().keys()
  assert loaded.id == patch.id


def test_ids_tell_patches_apart():
  lm = editing.language_model()
  patches = [_patch(lm, 0), _patch(lm, 1), _patch(lm, 0, (LOW,)), _patch(lm, 0, rank=3)]
  assert len({patch.id for patch in patches}) == len(patches)
  assert _patch(lm, 0).id == patches[0].id


def test_files_that_are_no_patch_are_named(tmp_path):
  with pytest.raises(UserError, match='absent.safetensors'):
    Patch.load(tmp_path / 'absent.safetensors')
  write_tensors(tmp_path / 'other.safetensors', {'x': np.ones(2)}, {'format': 'something'})
  with pytest.raises(UserError, match='other.safetensors is no jedit patch'):
    Patch.load(tmp_path / 'other.safetensors')
  with pytest.raises(UserError, match='changes no kernel'):
    Patch({})


def test_apply_adds_the_update_and_nothing_else():
  lm = editing.language_model()
  before, patch = _bits(lm.base), _patch(lm, 0)
  edited = lm.apply(patch)
  changed = edited.params['block_0']['mlp']['down']['kernel']
  expected = lm.base['block_0']['mlp']['down']['kernel'] + patch.updates[LOW].value()
  np.testing.assert_array_equal(changed, expected)
  undone = patched(edited.params, {p: Update(dense=-u.value()) for p, u in patch.updates.items()})
  different = jax.tree.map(lambda a, b: bool((a != b).any()), edited.params, lm.params)
  assert sum(jax.tree.leaves(different)) == 2
  assert different['block_0']['mlp']['down']['kernel']
  assert different['block_2']['attn']['out']['kernel']
  assert edited.patches == (patch,) and lm.patches == ()
  assert _bits(lm.base) == _bits(lm.params) == before  # the model itself is as it was
  assert edited.fingerprint == lm.fingerprint
  # Subtracting is not the way back: it leaves rounding behind. (So revert starts from the base.)
  assert _bits(undone) != before


def test_revert_restores_every_bit_in_any_order():
  lm = editing.language_model()
  before = _bits(lm.params)
  first, second = _patch(lm, 0), _patch(lm, 1, (LOW,))
  both = lm.apply(first).apply(second)
  assert _bits(both.revert(second).params) == _bits(lm.apply(first).params)
  assert _bits(both.revert(first).params) == _bits(lm.apply(second).params)
  assert both.revert(first).patches == (second,)
  for order in ((first, second), (second, first)):
    assert _bits(both.revert(order[0]).revert(order[1]).params) == before
  rebuilt = LanguageModel(
    lm.config, lm.base, lm.tokenizer, lm.hf_config, '', lm.fingerprint, both.patches
  )
  assert _bits(rebuilt.params) == _bits(both.params)


def test_edited_kernels_of_a_bfloat16_model_are_float32():
  lm = editing.language_model()
  model = tiny.in_dtype(lm.model, 'bfloat16')
  base = model.params
  narrow = LanguageModel(model.config, base, lm.tokenizer, lm.hf_config, '', fingerprint(model))
  patch = Patch({LOW: Update(dense=np.full((24, 16), 1e-4, np.float32))})
  edited = narrow.apply(patch)
  kernel = edited.params['block_0']['mlp']['down']['kernel']
  original = base['block_0']['mlp']['down']['kernel'].astype(jnp.float32)
  np.testing.assert_allclose(kernel - original, 1e-4, rtol=1e-2)
  reverted = edited.revert(patch).params['block_0']['mlp']['down']['kernel']
  assert reverted.dtype == jnp.bfloat16
  assert _bits(edited.revert(patch).params) == _bits(base)


def test_patches_only_go_where_they_belong():
  lm = editing.language_model()
  patch = _patch(lm, 0)
  with pytest.raises(UserError, match=f'Patch {patch.id} is applied already'):
    lm.apply(patch).apply(patch)
  with pytest.raises(UserError, match=f'Patch {patch.id} is not applied to this model'):
    lm.revert(patch)
  with pytest.raises(UserError, match=f'made on a model with fingerprint {lm.fingerprint}'):
    editing.language_model(num_layers=2).apply(patch)
  with pytest.raises(UserError, match='changes block_2/.* but the model has no such parameter'):
    editing.language_model(num_layers=2).apply(Patch(patch.updates))
  wide = {LOW: Update(dense=np.zeros((3, 4), np.float32))}
  with pytest.raises(UserError, match=r'shape \(3, 4\), but the model has shape \(24, 16\)'):
    lm.apply(Patch(wide))
  with pytest.raises(UserError, match='no such parameter'):
    patched(lm.params, {f'{LOW}/deeper': Update(dense=np.zeros((24, 16), np.float32))})
