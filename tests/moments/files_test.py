"""Second moments as files: their own, published archives, and parts that are joined."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from helpers import editing
from jedit.models.patch import Patch, Update
from jedit.moments.files import SecondMoments, read_moments
from jedit.types import Kernel, UserError


def test_files_give_moments_back(tmp_path):
  cov = {
    Kernel(10, 'mlp'): np.eye(3, dtype=np.float32),
    Kernel(2, 'attn'): np.ones((2, 2), np.float32),
  }
  stats = SecondMoments(cov, 77, {'model': 'abc', 'row_tokens': 24})
  stats.save(tmp_path / 's.safetensors')
  loaded = SecondMoments.load(tmp_path / 's.safetensors')
  assert (loaded.num_tokens, loaded.provenance) == (77, stats.provenance)
  assert loaded.cov.keys() == cov.keys()
  for kernel, array in cov.items():
    np.testing.assert_array_equal(loaded.covariance(kernel), array)
  with pytest.raises(UserError, match='mlp kernel in layer 2 .there is 2/attn, 10/mlp.; coll'):
    loaded.covariance(Kernel(2, 'mlp'))


def test_files_of_earlier_versions_are_read(tmp_path, capsys):
  tensors = {'mlp/10': np.eye(3, dtype=np.float32), 'attn/2': np.ones((2, 2), np.float32)}
  facts = {'format': 'jedit-second-moments-1', 'num_tokens': 5, 'provenance': {'model': 'abc'}}
  old, new = tmp_path / 'old.safetensors', tmp_path / 'new.safetensors'
  safetensors.numpy.save_file(tensors, old, {'jedit': json.dumps(facts)})
  SecondMoments.load(old).save(new)
  assert 'without a digest' in capsys.readouterr().err
  loaded = SecondMoments.load(new)
  assert set(loaded.cov) == {Kernel(10, 'mlp'), Kernel(2, 'attn')}
  assert (loaded.num_tokens, loaded.provenance) == (5, {'model': 'abc'})
  assert capsys.readouterr().err == ''


def test_the_repr_is_short():
  sizes = {'mlp': 4, 'attn': 2}
  cov = {Kernel(layer, name): np.eye(sizes[name]) for layer in range(40) for name in sizes}
  provenance = {
    'model': 'abc',
    'corpus': {'dataset': '<wiki>', 'config': 'en'},
    'archives': {str(number): 'a long name of a file.npz' for number in range(40)},
  }
  moments = SecondMoments(cov, 41657, provenance)
  text, page = repr(moments), moments._repr_html_()
  assert text.startswith('SecondMoments of 80 kernels\n  2 x 2: 0/attn, 1/attn, ')
  assert 'tokens: 41,657' in text and '"dataset": "<wiki>"' in text
  assert len(text.splitlines()) <= 10 and max(map(len, text.splitlines())) < 200
  assert '<td>41,657</td>' in page and '&lt;wiki&gt;' in page and len(page) < 2000
  assert repr(SecondMoments({})).splitlines()[1:] == ['  tokens: unknown', '  source: unknown']


def test_other_files_are_refused(tmp_path):
  patch = Patch({'x': Update(dense=np.ones((2, 2), np.float32))})
  patch.save(tmp_path / 'p.safetensors')
  with pytest.raises(UserError, match="holds 'jedit patch 3' where 'jedit second moments"):
    SecondMoments.load(tmp_path / 'p.safetensors')


_PART = SecondMoments(
  {Kernel(1, 'mlp'): np.full((2, 2), 1.0, np.float32)},
  30,
  {'model': 'abc', 'seed': 0, 'parts': [[1, 3]], 'num_tokens': 30},
)


def _part(value, num_tokens, number, **changes):
  provenance = {**_PART.provenance, 'parts': [[number, 3]], 'num_tokens': num_tokens, **changes}
  return SecondMoments(
    {Kernel(1, 'mlp'): np.full((2, 2), value, np.float32)}, num_tokens, provenance
  )


def test_merged_moments_are_weighted_by_tokens():
  some = SecondMoments.merge([_PART, _part(4.0, 60, 3)])
  assert some.cov[Kernel(1, 'mlp')].tolist() == [[3.0, 3.0], [3.0, 3.0]]
  assert some.num_tokens == some.provenance['num_tokens'] == 90
  assert some.provenance['parts'] == [[1, 3], [3, 3]]
  whole = SecondMoments.merge([some, _part(0.0, 90, 2)])
  assert (
    whole.cov[Kernel(1, 'mlp')].dtype == np.float32 and whole.cov[Kernel(1, 'mlp')][0, 0] == 1.5
  )
  assert whole.provenance == {**_PART.provenance, 'parts': [[1, 1]], 'num_tokens': 180}


@pytest.mark.parametrize(
  ('other', 'words'),
  [
    (_part(1.0, 9, 2, model='xyz'), "cannot be merged: model is 'abc' in one and 'xyz' in another"),
    (_part(1.0, 9, 2, dtype='bfloat16'), "dtype is None in one and 'bfloat16'"),
    (_part(1.0, 9, 1), 'of the parts 1/3, 1/3 of the corpus, which overlap'),
    (_part(1.0, 9, 1, parts=[[2, 4]]), 'of the parts 1/3, 2/4 of the corpus, which overlap'),
    (SecondMoments(_PART.cov, 9), 'whose text is unknown'),
    (dataclasses.replace(_PART, cov={Kernel(1, 'attn'): np.eye(2)}), 'of different kernels'),
  ],
)
def test_what_does_not_belong_together_is_not_merged(other, words):
  with pytest.raises(UserError, match=words):
    SecondMoments.merge([_PART, other])


MODULE = {'gptj': 'transformer.h.{}.mlp.fc_out', 'llama': 'model.layers.{}.mlp.down_proj'}


def _archive(folder, lm, layer, count=50, **changes):
  """As the published programs write them; its path."""
  size = lm.config.ffn_width
  keys_NxF = np.random.default_rng(layer).normal(size=(count, size)).astype(np.float32)
  values = {
    'mom2.constructor': np.array('util.runningstats.SecondMoment()'),
    'mom2.count': np.array(count),
    'mom2.mom2': keys_NxF.T @ keys_NxF,
    'sample_size': np.array(7),
    **changes,
  }
  module = MODULE[lm.config.family].format(layer)
  path = folder / f'{module}_float32_mom2_100000.npz'
  np.savez(path, **{name: value for name, value in values.items() if value is not None})
  return path, keys_NxF


@pytest.mark.parametrize('family', ['gptj', 'llama'])
def test_published_archives_hold_sums(tmp_path, family):
  lm = editing.language_model(family)
  keys = {layer: _archive(tmp_path, lm, layer)[1] for layer in (0, 1, 2)}
  stats = SecondMoments.from_npz(tmp_path, lm, [2, 1])
  assert stats.cov.keys() == {Kernel(1, 'mlp'), Kernel(2, 'mlp')} and stats.num_tokens == 50
  for layer in (1, 2):
    expected_FxF = keys[layer].T @ keys[layer] / 50
    np.testing.assert_allclose(stats.covariance(Kernel(layer, 'mlp')), expected_FxF, rtol=1e-6)
  file = tmp_path / f'{MODULE[family].format(1)}_float32_mom2_100000.npz'
  one = read_moments(file, lm, [1])
  np.testing.assert_array_equal(one.cov[Kernel(1, 'mlp')], stats.cov[Kernel(1, 'mlp')])
  assert one.provenance['archives'] == {'1/mlp': file.name}
  # The own format carries them on.
  stats.save(tmp_path / 's.safetensors')
  assert read_moments(tmp_path / 's.safetensors', lm, [1, 2]).cov.keys() == stats.cov.keys()
  with pytest.raises(UserError, match='no second moments of the mlp kernel in layer 0'):
    read_moments(tmp_path / 's.safetensors', lm, [0])
  with pytest.raises(UserError, match=f'a model with fingerprint {lm.fingerprint}, this one has'):
    read_moments(tmp_path / 's.safetensors', editing.language_model(family, num_layers=4), [1])


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'mom2.count': None}, 'is no archive of second moments'),
    ({'mom2.mom2': np.eye(5)}, r'shape \(5, 5\), the model wants \(24, 24\)'),
    ({'mom2.count': np.array(0)}, 'its count is 0'),
    ({'mom2.mom2': np.full((24, 24), np.nan)}, 'every number must be finite'),
    ({'mom2.mom2': -np.eye(24)}, 'none negative on the diagonal'),
  ],
)
def test_bad_archives_are_sentences(tmp_path, changes, words):
  lm = editing.language_model()
  path, _ = _archive(tmp_path, lm, 1, **changes)
  with pytest.raises(UserError, match=words):
    SecondMoments.from_npz(path, lm, [1])


def test_archives_of_other_models_and_layers_are_refused(tmp_path):
  lm = editing.language_model()
  path, _ = _archive(tmp_path, lm, 1)
  for where, model, layers in (
    (path, lm, [2]),
    (tmp_path, lm, [1, 2]),
    (tmp_path, editing.language_model('llama'), [1]),
  ):
    with pytest.raises(UserError, match='has no archive of .*, the module of this model whose'):
      SecondMoments.from_npz(where, model, layers)
  path.rename(tmp_path / path.name.replace('100000', '50000'))
  _archive(tmp_path, lm, 1)
  with pytest.raises(UserError, match='has 2 archives of transformer.h.1.mlp.fc_out'):
    SecondMoments.from_npz(tmp_path, lm, [1])
  (tmp_path / 'transformer.h.0.mlp.fc_out_text.npz').write_bytes(b'no archive')
  with pytest.raises(UserError, match='is no archive of second moments'):
    SecondMoments.from_npz(tmp_path, lm, [0])
