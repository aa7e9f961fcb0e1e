"""Second moments of packed text are those of one document at a time."""

import itertools

import jax
import numpy as np
import pytest

from helpers import editing
from jedit import second_moment
from jedit.data.corpus import pack, read_corpus
from jedit.models import functions, site
from jedit.patch import Patch, Update
from jedit.second_moment import SecondMoments, accumulate, statistics
from jedit.types import UserError

DOCUMENTS = (
  'The mother tongue of Marta is Swahili.',
  'Ove plays jazz in the city of Paris, and people play the violin.',
  "Vela's harbor was built in 1984.",
  '東京 is a city in 日本.',
  'It  is big.',
  'Where was Zürich founded? In the city of Paris.',
)
SETTINGS = dict(row_tokens=24, batch_tokens=48)
PLACE = {'mlp': 'mlp_in', 'attn': 'attn_in'}


def _model():
  return editing.language_model('llama')


def _ids(cap=24):
  return [ids[:cap] for ids in _model().tokenizer(list(DOCUMENTS))['input_ids']]


def _plain(kernel, layer, cap=24):
  """Outer products of keys, one document and one token after the other, in float64."""
  lm = _model()
  forward = functions(lm.config)[0]
  run = jax.jit(lambda params, token: forward(params, token, taps=[site(layer, PLACE[kernel])])[1])
  total, count = 0.0, 0
  for ids in _ids(cap):
    token_1xT = np.array([ids + [0] * (24 - len(ids))], np.int32)
    key_TxF = np.asarray(run(lm.params, token_1xT)[site(layer, PLACE[kernel])], np.float64)[0]
    for key_F in key_TxF[: len(ids)]:
      total, count = total + np.outer(key_F, key_F), count + 1
  return total / count, count


def test_packed_moments_are_those_of_single_documents():
  stats = statistics(_model(), DOCUMENTS, [2, 1], ('mlp', 'attn'), **SETTINGS)
  assert set(stats.cov) == set(itertools.product(('mlp', 'attn'), (1, 2)))
  for kernel, layer in (('mlp', 2), ('attn', 1)):
    expected_FxF, count = _plain(kernel, layer)
    assert stats.num_tokens == count  # BOS of every document counts
    cov_FxF = stats.covariance(kernel, layer)
    assert cov_FxF.dtype == np.float32
    assert editing.relative(cov_FxF, expected_FxF) < 1e-5
    assert np.linalg.eigvalsh(cov_FxF.astype(np.float64)).min() > -1e-5 * np.abs(cov_FxF).max()


def test_rows_and_batches_hold_every_document_whole():
  tokenizer = _model().tokenizer
  batches = pack(tokenizer, DOCUMENTS, **SETTINGS)
  assert len(batches) > 1 and len({b.token_NxT.shape for b in batches}) == 1
  assert batches[0].token_NxT.shape == (2, 24)
  found = []
  for batch in batches:
    assert batch.num_tokens == (batch.segment_NxT > 0).sum()
    assert not batch.token_NxT[batch.segment_NxT == 0].any()
    for token_T, segment_T, position_T in zip(
      batch.token_NxT, batch.segment_NxT, batch.position_NxT, strict=True
    ):
      for number in range(1, segment_T.max() + 1):
        at = segment_T == number
        found.append(token_T[at].tolist())
        np.testing.assert_array_equal(position_T[at], np.arange(at.sum()))
  assert found == _ids()
  assert any((batch.segment_NxT == 2).any() for batch in batches), 'some rows hold several'
  assert all(ids[0] == 0 for ids in found), 'documents start with BOS'


def test_long_documents_are_cut():
  tokenizer = _model().tokenizer
  (batch,) = pack(tokenizer, DOCUMENTS[1:2], row_tokens=16, batch_tokens=16, max_document_tokens=5)
  assert batch.num_tokens == 5
  assert batch.token_NxT[0, :5].tolist() == _ids()[1][:5]
  (whole,) = pack(tokenizer, DOCUMENTS[1:2], row_tokens=16, batch_tokens=16)
  assert whole.num_tokens == 16


class _Counted:
  """Counts the passes over the text that are started."""

  def __init__(self, monkeypatch):
    self.count, inner = 0, second_moment.accumulate

    def accumulate(*arguments):
      self.count += 1
      return inner(*arguments)

    monkeypatch.setattr(second_moment, 'accumulate', accumulate)


def test_results_are_kept_and_only_read_back_for_the_same_settings(tmp_path, monkeypatch):
  lm, cache, passes = _model(), tmp_path / 'moments.safetensors', _Counted(monkeypatch)
  first = statistics(lm, DOCUMENTS, [1], cache=cache, **SETTINGS)
  again = statistics(lm, list(DOCUMENTS), (1,), ('mlp',), cache=cache, **SETTINGS)
  assert passes.count == 1
  np.testing.assert_array_equal(again.cov['mlp', 1], first.cov['mlp', 1])
  assert again.num_tokens == first.num_tokens and again.provenance == first.provenance
  assert [path.name for path in tmp_path.iterdir()] == ['moments.safetensors']
  for corpus, settings, words in (
    (DOCUMENTS[:4], SETTINGS, 'other settings: corpus is'),
    (DOCUMENTS, dict(row_tokens=24, batch_tokens=24), 'batch_tokens is'),
  ):
    with pytest.raises(
      UserError, match=f'moments.safetensors holds .*{words}.*choose another file'
    ):
      statistics(lm, corpus, [1], cache=cache, **settings)
  assert passes.count == 1


def test_a_cache_grows_by_the_kernels_that_it_lacks(tmp_path, monkeypatch):
  lm, cache, passes = _model(), tmp_path / 'moments.safetensors', _Counted(monkeypatch)
  statistics(lm, DOCUMENTS, [1], cache=cache, **SETTINGS)
  found = statistics(lm, DOCUMENTS, [0, 1], ('mlp', 'attn'), cache=cache, **SETTINGS)
  assert passes.count == 2
  whole = statistics(lm, DOCUMENTS, [0, 1], ('mlp', 'attn'), **SETTINGS)
  assert found.cov.keys() == whole.cov.keys() == SecondMoments.load(cache).cov.keys()
  for kernel, array in whole.cov.items():
    assert editing.relative(found.cov[kernel], array) < 1e-5
  statistics(lm, DOCUMENTS, [0], cache=cache, **SETTINGS)
  assert passes.count == 3


def test_a_killed_pass_goes_on_with_the_same_bits(tmp_path, monkeypatch):
  monkeypatch.setattr(second_moment, '_BATCHES_PER_SAVE', 1)
  lm, store = _model(), tmp_path / 'moments.partial'
  batches = pack(lm.tokenizer, DOCUMENTS, row_tokens=24, batch_tokens=24)
  assert len(batches) > 3
  kernels = [('mlp', 0)]
  forward, _ = functions(lm.config)
  whole = accumulate(forward, lm.params, batches, kernels)

  class Dying(list):
    """Batches whose third one kills the run."""

    def __getitem__(self, index):
      if index == 2:
        raise KeyboardInterrupt
      return super().__getitem__(index)

  class Late(list):
    """Batches of which those done before must not be asked for again."""

    def __getitem__(self, index):
      assert index >= 2
      return super().__getitem__(index)

  with pytest.raises(KeyboardInterrupt):
    accumulate(forward, lm.params, Dying(batches), kernels, store)
  resumed = accumulate(forward, lm.params, Late(batches), kernels, store)
  np.testing.assert_array_equal(resumed.cov['mlp', 0], whole.cov['mlp', 0])
  assert resumed.num_tokens == whole.num_tokens == sum(b.num_tokens for b in batches)
  # Sums of another run are not gone on with.
  other = accumulate(forward, lm.params, batches, kernels, store, {'corpus': 'other'})
  np.testing.assert_array_equal(other.cov['mlp', 0], whole.cov['mlp', 0])


def test_files_give_moments_back(tmp_path):
  cov = {('mlp', 10): np.eye(3, dtype=np.float32), ('attn', 2): np.ones((2, 2), np.float32)}
  stats = SecondMoments(cov, 77, {'model': 'abc', 'row_tokens': 24})
  stats.save(tmp_path / 's.safetensors')
  loaded = SecondMoments.load(tmp_path / 's.safetensors')
  assert (loaded.num_tokens, loaded.provenance) == (77, stats.provenance)
  assert loaded.cov.keys() == cov.keys()
  for kernel, array in cov.items():
    np.testing.assert_array_equal(loaded.covariance(*kernel), array)
  with pytest.raises(UserError, match='mlp kernel in layer 2 .there is attn of layer 2, mlp of la'):
    loaded.covariance('mlp', 2)


def test_a_corpus_is_a_file_or_a_directory(tmp_path):
  (tmp_path / 'b.txt').write_text('third\n')
  (tmp_path / 'a.txt').write_text('first\n\n  second \n')
  (tmp_path / 'c.md').write_text('not text')
  assert read_corpus(tmp_path) == ['first', 'second', 'third']
  assert read_corpus(tmp_path / 'b.txt') == ['third']
  (tmp_path / 'bad.txt').write_bytes(b'\xff\xfe\xfa')
  with pytest.raises(UserError, match='bad.txt cannot be read .*; give a UTF-8 text file'):
    read_corpus(tmp_path)
  with pytest.raises(UserError, match='nowhere'):
    read_corpus(tmp_path / 'nowhere')
  (tmp_path / 'blank.txt').write_text(' \n\n')
  with pytest.raises(UserError, match='no text in the corpus .*blank'):
    read_corpus(tmp_path / 'blank.txt')


def test_mistakes_are_sentences(tmp_path):
  lm = _model()
  with pytest.raises(UserError, match='Layer 3 is outside the model, which has 0 to 2'):
    statistics(lm, DOCUMENTS, [1, 3])
  with pytest.raises(UserError, match="no site 'mlp_in'; choose mlp or attn"):
    statistics(lm, DOCUMENTS, [1], ('mlp_in',))
  with pytest.raises(UserError, match='no text in the corpus'):
    statistics(lm, [], [1])
  with pytest.raises(UserError, match='no layer or no site'):
    statistics(lm, DOCUMENTS, [])
  with pytest.raises(UserError, match='no layer or no site'):
    statistics(lm, DOCUMENTS, [1], ())
  patch = Patch({'x': Update(dense=np.ones((2, 2), np.float32))})
  patch.save(tmp_path / 'p.safetensors')
  with pytest.raises(UserError, match='p.safetensors holds no second moments'):
    SecondMoments.load(tmp_path / 'p.safetensors')


def test_moments_that_are_not_finite_name_their_layer():
  lm = _model()
  kernel = lm.params['block_1']['mlp']['up']['kernel']
  block = {**lm.params['block_1']['mlp'], 'up': {'kernel': kernel.at[0, 0].set(np.inf)}}
  params = {**lm.params, 'block_1': {**lm.params['block_1'], 'mlp': block}}
  batches = pack(lm.tokenizer, DOCUMENTS[:1], row_tokens=24, batch_tokens=24)
  with pytest.raises(UserError, match='mlp kernel in layer 1 are not finite'):
    accumulate(functions(lm.config)[0], params, batches, [('mlp', 0), ('mlp', 1)])
