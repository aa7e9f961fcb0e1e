"""Words, n-gram entropy and TF-IDF by hand and against stored reference numbers."""

import json
import math

import numpy as np
import pytest

from jedit.evals import texts
from jedit.types import UserError


@pytest.fixture(scope='module')
def golden(shared):
  """Reference cases by file."""
  names = ('fluency', 'consistency')
  return {n: json.loads((shared / f'golden/evaluation/{n}.json').read_text()) for n in names}


def test_entropy_of_reference_words(golden):
  for case in golden['fluency']['texts']:
    for n, name in ((2, 'bigram_entropy'), (3, 'trigram_entropy')):
      assert texts.ngram_entropy(case['words'], n) == pytest.approx(case[name], abs=1e-9)
    assert texts.fluency(case['words']) == pytest.approx(case['fluency'], abs=1e-9)


def test_fluency_of_reference_texts(golden):
  words = texts.Words()
  name = {'english': 'fluency', 'untrained': 'fluency_with_untrained_sentence_split'}
  cases = golden['fluency']['texts']
  wanted = [case[name[words.sentence_split]] for case in cases]
  assert [texts.fluency(words(case['text'])) for case in cases] == pytest.approx(wanted, abs=1e-9)
  mean = texts.mean_fluency([case['text'] for case in cases], words)
  assert mean == pytest.approx(np.mean(wanted), abs=1e-9)


def test_the_english_split_is_taken_where_it_is(golden, tmp_path, monkeypatch):
  nltk = pytest.importorskip('nltk')
  from nltk.tokenize.punkt import PunktParameters, save_punkt_params

  parameters = PunktParameters()
  parameters.abbrev_types |= {'dr', 'st', 'jan', 'u.s', 'j', 'r'}
  folder = tmp_path / 'tokenizers/punkt_tab/english'
  folder.mkdir(parents=True)
  monkeypatch.setattr(nltk.data, 'path', [str(tmp_path)])
  save_punkt_params(parameters, str(folder))
  words = texts.Words()
  assert words.sentence_split == 'english'
  for case in golden['fluency']['texts']:
    assert words(case['text']) == case['words']


def test_no_split_but_the_untrained_one_without_the_tables(monkeypatch):
  nltk = pytest.importorskip('nltk')
  monkeypatch.setattr(nltk.data, 'path', [])
  words = texts.Words()
  assert words.sentence_split == 'untrained'
  assert words('A cat. A dog.') == ['A', 'cat', '.', 'A', 'dog', '.']


def test_without_nltk_the_package_to_install_is_named(monkeypatch):
  monkeypatch.setattr(texts, 'has_nltk', lambda: False)
  with pytest.raises(UserError, match=r"pip install 'jedit\[metrics\]'"):
    texts.Words()


def test_texts_are_cleaned_in_order(golden):
  for case in golden['fluency']['clean_up']:
    assert texts.clean_up(case['raw']) == case['clean']


@pytest.mark.parametrize(
  ('words', 'wanted'),
  [
    ([], 0),
    (['a'], 0),
    (['a', 'b'], 0),
    (['a', 'b', 'c'], (2 / 3 * 1 + 0) / 2),
    (['a'] * 9, 0),
    (list('abab'), (2 / 3 * (math.log2(3) - 2 / 3) + 4 / 3 * 1) / 2),
  ],
)
def test_fluency_by_hand(words, wanted):
  value = texts.fluency(words)
  assert value == pytest.approx(wanted, abs=1e-12)
  assert math.copysign(1, value) == 1


def test_short_texts_count_nothing_beside_others_and_are_undefined_alone():
  words = str.split  # any split will do
  assert math.isnan(texts.mean_fluency(['', 'old harbor'], words))
  assert math.isnan(texts.mean_fluency([], words))
  assert texts.mean_fluency(['old harbor', 'the old harbor'], words) == pytest.approx(1 / 6)


def _cosine(tfidf, one, other):
  return texts.cosine(tfidf.weights(one), tfidf.weights(other))


def test_reference_vocabulary_and_cosines(golden, tmp_path):
  case = golden['consistency']
  made = texts.TfIdf.fit(case['documents'])
  assert made.columns == case['vocabulary']
  np.testing.assert_allclose(made.idf_W, case['idf'], rtol=1e-15)
  made.save(tmp_path / 'idf.npy', tmp_path / 'tfidf_vocab.json')
  for tfidf in (made, texts.TfIdf.load(tmp_path / 'idf.npy', tmp_path / 'tfidf_vocab.json')):
    for pair in case['pairs']:
      found = _cosine(tfidf, ' '.join(pair['a']), ' '.join(pair['b']))
      wanted = math.nan if pair['cosine'] is None else pair['cosine']
      assert found == pytest.approx(wanted, abs=1e-9, nan_ok=True)


def test_a_word_without_weight_is_no_direction():
  tfidf = texts.TfIdf({'aa': 0, 'bb': 1}, np.array([0.0, 1.0]))
  assert math.isnan(_cosine(tfidf, 'aa', 'bb'))
  assert _cosine(tfidf, 'aa bb', 'bb') == 1
  with pytest.raises(UserError, match='contain no words'):
    texts.TfIdf.fit(['a', ''])


def test_files_that_do_not_belong_together_are_refused(tmp_path):
  idf, vocabulary = tmp_path / 'idf.npy', tmp_path / 'vocab.json'
  np.save(idf, np.ones(2))
  vocabulary.write_text('{"aa": 2}')
  with pytest.raises(UserError, match='columns that .* lacks'):
    texts.TfIdf.load(idf, vocabulary)
  vocabulary.write_text('["aa"]')
  with pytest.raises(UserError, match='give an object'):
    texts.TfIdf.load(idf, vocabulary)
  vocabulary.write_text('{"aa": 1}')
  idf.write_bytes(b'no array')
  with pytest.raises(UserError, match='not a numeric array'):
    texts.TfIdf.load(idf, vocabulary)
  with pytest.raises(UserError, match='Cannot read'):
    texts.TfIdf.load(tmp_path / 'absent.npy', vocabulary)
