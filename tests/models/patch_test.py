"""Patches come back from files, from models, and only go where they belong."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from helpers import editing, tiny
from jedit.io.tensors import write_tensors
from jedit.models import AddAt, ReplaceAt, site
from jedit.models.language_model import LanguageModel
from jedit.models.load import fingerprint
from jedit.models.patch import Patch, Update, merge, patched
from jedit.models.sites import Chain
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


def test_a_file_with_another_id_than_its_patch_is_refused(tmp_path):
  stored = _patch(editing.language_model(), 0).pack()
  facts = {**stored.facts, 'id': 'other'}
  write_tensors(tmp_path / 'p', stored.format, stored.tensors, facts)
  with pytest.raises(UserError, match='The patch stored as other has the id'):
    Patch.load(tmp_path / 'p')


def test_a_patch_that_is_not_finite_is_refused():
  lm = editing.language_model()
  patch = _patch(lm, 0)
  for value in (np.nan, np.inf, 1e30):  # the last one overflows in the product
    left, right = (array.copy() for array in patch.updates[LOW].tensors().values())
    left[1, 1] = right[1, 1] = value
    with pytest.raises(UserError, match=f'change of {LOW} is not finite'):
      lm.apply(Patch({LOW: Update(left_FxR=left, right_RxD=right)}))
  bad = dataclasses.replace(_at(0), delta_NxD=np.full((1, 16), np.nan, np.float32))
  with pytest.raises(UserError, match='change at 1/mlp_out is not finite'):
    lm.apply(Patch({}, {}, {PLACE: bad}))


def test_patches_go_on_in_the_order_of_their_making_unless_they_may_go_anywhere():
  lm = editing.language_model()
  first, second = _patch(lm, 0), _patch(lm, 1)
  third = dataclasses.replace(
    _patch(lm, 2), provenance={'model': lm.fingerprint, 'patches_before': [first.id, second.id]}
  )
  lm.apply(first).apply(second).apply(third)
  for model in (lm, lm.apply(first), lm.apply(second).apply(first)):
    with pytest.raises(UserError, match='was made on top of .*; apply them first, in the order'):
      model.apply(third)
    assert model.apply(third.anywhere()).patches[-1].id == third.id
  elsewhere = dataclasses.replace(first, provenance={'model': 'other'})
  with pytest.raises(UserError, match='with fingerprint other'):
    lm.apply(elsewhere)
  lm.apply(elsewhere.anywhere())


def test_ids_tell_patches_apart():
  lm = editing.language_model()
  patches = [_patch(lm, 0), _patch(lm, 1), _patch(lm, 0, (LOW,)), _patch(lm, 0, rank=3)]
  assert len({patch.id for patch in patches}) == len(patches)
  assert _patch(lm, 0).id == patches[0].id


def test_files_that_are_no_patch_are_named(tmp_path):
  with pytest.raises(UserError, match='absent.safetensors'):
    Patch.load(tmp_path / 'absent.safetensors')
  write_tensors(tmp_path / 'other.safetensors', 'something', {'x': np.ones(2)}, {})
  with pytest.raises(UserError, match="other.safetensors holds 'something' where 'jedit patch"):
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


def test_a_patch_below_another_is_not_reverted():
  lm = editing.language_model()
  first, other = _patch(lm, 0), _patch(lm, 1, (LOW,))
  second = dataclasses.replace(
    _patch(lm, 2), provenance={'model': lm.fingerprint, 'patches_before': [first.id]}
  )
  both = lm.apply(first).apply(other).apply(second)
  words = f'Patch {first.id} lies below {second.id}, made on top of it; revert {second.id} first'
  with pytest.raises(UserError, match=words):
    both.revert(first)
  assert _bits(both.revert(other).params) == _bits(lm.apply(first).apply(second).params)
  assert _bits(both.revert(second).revert(first).params) == _bits(lm.apply(other).params)
  merged = merge([first, other])  # an edit on top of one of its parts is on top of it
  with pytest.raises(UserError, match=f'Patch {merged.id} lies below {second.id}'):
    lm.apply(merged).apply(second).revert(merged)


def test_whatever_has_a_patch_is_applied_and_reverted():
  lm = editing.language_model()
  patch = _patch(lm, 0)
  edited = lm.apply(types.SimpleNamespace(patch=patch))
  assert edited.patches == (patch,)
  assert _bits(edited.revert(types.SimpleNamespace(patch=patch)).params) == _bits(lm.params)
  for wrong, words in ((types.SimpleNamespace(patch=None), 'no common patch'), ('p', 'str is not')):
    with pytest.raises(UserError, match=words):
      lm.apply(wrong)


TOKENS = np.array([[5, 6, 7], [8, 9, 3]], np.int32)
PLACE = site(1, 'mlp_out')


def _vectors(seed):
  """One row for all rows of a batch."""
  return np.random.default_rng(seed).normal(size=(1, 16)).astype(np.float32)


def _at(seed, kind=AddAt, pos=1):
  return kind(np.array([pos], np.int32), _vectors(seed))


def _value(lm, place=PLACE):
  return np.asarray(lm.model(TOKENS, taps=[place])[1][place])


def test_interventions_of_patches_belong_to_the_model():
  lm = editing.language_model()
  patch = Patch({}, {'model': lm.fingerprint}, {PLACE: _at(0)})
  edited = lm.apply(patch)
  assert edited.params is lm.params or _bits(edited.params) == _bits(lm.params)
  change = _value(edited) - _value(lm)
  np.testing.assert_allclose(change[:, 1], np.repeat(_vectors(0), 2, axis=0), atol=1e-5)
  assert not change[:, [0, 2]].any()
  assert np.abs(edited.logits(['Ove plays']) - lm.logits(['Ove plays'])).max() > 1e-3
  # Patches that share a site change it one after the other, in the order they were applied.
  second = Patch({}, {}, {PLACE: _at(1, ReplaceAt)})
  for first, last, expected in (
    (patch, second, _vectors(1)),
    (second, patch, _vectors(1) + _vectors(0)),
  ):
    value = _value(lm.apply(first).apply(last))
    np.testing.assert_allclose(value[:, 1], np.repeat(expected, 2, axis=0), atol=1e-5)
    np.testing.assert_array_equal(_value(lm.apply(merge([first, last]))), value)
  np.testing.assert_array_equal(_value(edited.revert(patch)), _value(lm))
  assert not edited.revert(patch).model.edits
  both = lm.apply(Patch(_patch(lm, 0).updates, {}, {PLACE: _at(0)}))
  assert _bits(both.params) == _bits(lm.apply(_patch(lm, 0)).params)
  assert list(both.model.edits) == [PLACE]


def test_ids_cover_interventions():
  lm = editing.language_model()
  updates, other = _patch(lm, 0).updates, site(2, 'mlp_out')
  patches = [
    Patch(updates, {}, interventions)
    for interventions in (
      {},
      {PLACE: _at(0)},
      {PLACE: _at(1)},
      {PLACE: _at(0, pos=2)},
      {PLACE: _at(0, ReplaceAt)},
      {other: _at(0)},
      {PLACE: Chain((_at(0), _at(1)))},
      {PLACE: Chain((_at(1), _at(0)))},
    )
  ]
  assert len({patch.id for patch in patches}) == len(patches)
  assert patches[0].id == _patch(lm, 0).id
  on_device = jax.tree.map(jnp.asarray, _at(0))
  assert Patch(updates, {}, {PLACE: on_device}).id == patches[1].id


@struct.dataclass
class _Foreign:
  """An intervention of a kind that files do not hold."""

  scale: jax.Array

  def __call__(self, x):
    return self.scale * x


def test_files_give_interventions_back(tmp_path):
  lm = editing.language_model()
  file = tmp_path / 'p.safetensors'
  for updates in ({}, _patch(lm, 0).updates):
    interventions = {
      PLACE: Chain((_at(0), _at(1, ReplaceAt, pos=2))),
      site(0, 'block_out'): _at(2),
    }
    patch = Patch(updates, {'model': lm.fingerprint}, interventions)
    patch.save(file)
    loaded = Patch.load(file)
    assert loaded.id == patch.id and loaded.provenance == patch.provenance
    assert loaded.updates.keys() == updates.keys()
    assert list(loaded.interventions) == list(interventions)
    np.testing.assert_array_equal(_value(lm.apply(loaded)), _value(lm.apply(patch)))


def test_only_known_kinds_are_saved_and_read(tmp_path):
  lm = editing.language_model()
  patch = Patch({}, {}, {PLACE: _Foreign(np.float32(2))})
  np.testing.assert_allclose(_value(lm.apply(patch)), 2 * _value(lm), rtol=1e-5)
  file = tmp_path / 'p.safetensors'
  with pytest.raises(UserError, match='at 1/mlp_out is of kind _Foreign, .* AddAt and ReplaceAt'):
    patch.save(file)
  assert not file.exists()
  pos_1, delta_1xD = np.array([1], np.int32), _vectors(0)
  for kind, tensors in (
    ('_Foreign', {f'{PLACE}:0:scale': delta_1xD}),
    ('AddAt', {f'{PLACE}:0:pos_N': pos_1}),
  ):
    facts = {'id': '', 'provenance': {}, 'interventions': {PLACE: [kind]}}
    write_tensors(file, 'jedit patch 3', tensors, facts)
    with pytest.raises(UserError, match=f'intervention of kind {kind} at 1/mlp_out'):
      Patch.load(file)


def test_interventions_only_go_to_sites_and_stay_out_of_directories(tmp_path):
  lm = editing.language_model()
  for place in ('1/mlp', '3/mlp_out', 'mlp_out', '-1/mlp_out'):
    with pytest.raises(UserError, match=f'changes {place}, but the model has no such site'):
      lm.apply(Patch({}, {}, {place: _at(0)}))
  edited = lm.apply(Patch({}, {}, {PLACE: _at(0)}))
  with pytest.raises(UserError, match='has interventions at 1/mlp_out, .*revert the patches'):
    edited.export(tmp_path / 'model')
  assert not list(tmp_path.iterdir())
  edited.revert(edited.patches[0]).export(tmp_path / 'model')


def test_reprs_fit_ten_lines():
  lm = editing.language_model()
  names = ('mlp/down/kernel', 'attn/out/kernel')
  paths = [f'block_{layer}/{name}' for layer in range(3) for name in names]
  many = _patch(lm, 0, paths)
  provenance = {
    'model': lm.fingerprint,
    'method': {'name': 'pmet'},
    'num_edits': 3,
    'requests': ['text'] * 500,
    'patches_before': [many.id],
  }
  patch = Patch(many.updates, provenance, {PLACE: _at(0)})
  text = repr(patch)
  norm = patch.updates[paths[0]].norm()
  for part in (
    f'Patch {patch.id}: 3 edits by pmet',
    f'base model {lm.fingerprint}',
    f'on top of {many.id}',
    f'{paths[0]}: 24 x 16, rank 2, norm {norm:.4g}',
    'and 2 more',
  ):
    assert part in text
  dense = Update(dense=np.ones((3, 4), np.float32))
  assert repr(dense) == '3 x 4, dense, norm 3.464'
  assert repr(Patch({}, {}, {PLACE: _at(0)})).endswith(f'{PLACE}: AddAt')
  edited = lm.apply(many).apply(patch)
  for number in range(8):
    edited = edited.apply(_patch(lm, 10 + number, (LOW,)))
  text = repr(edited)
  for part in ('gptj, 3 layers, width 16', lm.fingerprint, patch.title, 'and 5 more patches'):
    assert part in text
  assert repr(edited.model) == f'Model({lm.config.title}, interventions at {PLACE})'
  for each in (patch, dense, lm, edited):
    assert repr(each).count('\n') < 10 and len(repr(each)) < 1000


def test_a_notebook_shows_kernels_with_rank_and_norm_as_bars():
  lm = editing.language_model()
  updates = {**_patch(lm, 0).updates, 'a<b>': Update(dense=np.full((3, 4), 2.0, np.float32))}
  patch = Patch(updates, {'model': lm.fingerprint, 'method': {'name': '<i>'}}, {PLACE: _at(0)})
  page = patch._repr_html_()
  assert '<td>a&lt;b&gt;</td><td>3 x 4</td><td>dense</td>' in page and 'by &lt;i&gt;' in page
  norms = {path: update.norm() for path, update in updates.items()}
  for norm in norms.values():
    width = 8 * norm / max(norms.values())
    assert f'<span style="width:{width:.2f}em"></span> {norm:.4g}' in page
  assert f'<td>{PLACE}</td><td>AddAt</td>' in page
  many = Patch(dict.fromkeys(map(str, range(45)), updates['a<b>']))
  assert many._repr_html_().count('<tr>') == 41 and 'and 5 more' in many._repr_html_()
  assert lm._repr_html_().startswith('<pre>LanguageModel')


def test_the_norm_of_factors_is_that_of_their_product():
  rng = np.random.default_rng(0)
  update = Update.from_factors(rng.normal(size=(20, 3)), rng.normal(size=(3, 30)))
  assert update.dense is None
  assert update.norm() == pytest.approx(np.linalg.norm(update.value()), rel=1e-6)
