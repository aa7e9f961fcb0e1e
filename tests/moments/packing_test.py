"""Documents as packed batches: whole, dense, resumable and made ahead."""

import random
import threading

import numpy as np
import pytest

from helpers import vocabularies
from jedit.moments import packing
from jedit.moments.corpus import Corpus
from jedit.moments.packing import START, PackedText, prefetch
from jedit.types import UserError

DOCUMENTS = (
  'The mother tongue of Marta is Swahili.',
  'Ove plays jazz in the city of Paris, and people play the violin.',
  "Vela's harbor was built in 1984.",
  '東京 is a city in 日本.',
  '',
  'It  is big.',
  'Where was Zürich founded? In the city of Paris.',
)


@pytest.fixture(scope='module', name='tokenizer')
def _tokenizer():
  return vocabularies.byte_level(bos=True, trim=True)


@pytest.fixture(name='small_windows')
def _small_windows(monkeypatch):
  """Windows of two rows, so that a few documents fill several."""
  monkeypatch.setattr(packing, '_ROWS_PER_WINDOW', 2)


def test_rows_and_batches_hold_every_document_whole(tokenizer):
  text = PackedText(tokenizer, Corpus.of(DOCUMENTS), row_tokens=24, batch_tokens=50)
  batches = list(text.batches())
  assert len(batches) > 1 and {b.token_NxT.shape for b in batches} == {*text.shapes} == {(2, 24)}
  found = []
  for batch in batches:
    assert batch.num_tokens == (batch.segment_NxT > 0).sum()
    assert batch.num_documents == batch.segment_NxT.max(axis=1).sum()
    assert not batch.token_NxT[batch.segment_NxT == 0].any()
    for token_T, segment_T, position_T in zip(
      batch.token_NxT, batch.segment_NxT, batch.position_NxT, strict=True
    ):
      for number in range(1, segment_T.max() + 1):
        at = segment_T == number
        found.append(token_T[at].tolist())
        np.testing.assert_array_equal(position_T[at], np.arange(at.sum()))
  assert sorted(found) == sorted(ids[:24] for ids in tokenizer(list(DOCUMENTS))['input_ids'])
  assert any((batch.segment_NxT == 2).any() for batch in batches), 'some rows hold several'
  assert all(ids[0] == 0 for ids in found), 'documents start with BOS'


def test_rows_are_no_longer_than_their_longest_document_needs(tokenizer, monkeypatch):
  monkeypatch.setattr(packing, '_SHORTEST_ROW', 6)
  rng = random.Random(0)
  texts = [' '.join(['city'] * rng.choice((2, 2, 2, 7, 16))) for _ in range(90)]
  text = PackedText(tokenizer, Corpus.of(texts), 24, 48)
  assert text.shapes == ((8, 6), (4, 12), (2, 24))
  batches = list(text.batches())
  assert {batch.token_NxT.shape for batch in batches} == set(text.shapes)
  found, room = [], 0
  for batch in batches:
    size, room = batch.token_NxT.shape[1], room + batch.token_NxT.size
    for segment_T in batch.segment_NxT:
      lengths = np.bincount(segment_T)[1:]
      found += lengths.tolist()
      if not batch.end.rest and size > 6:
        assert lengths.max() > size // 2
  assert sorted(found) == sorted(len(ids) for ids in tokenizer(texts)['input_ids'])
  assert sum(batch.end.rest > 0 for batch in batches) < 3, 'rows that are left are joined'
  assert sum(found) / room > 0.85


@pytest.mark.parametrize('shortest', [24, 6])
@pytest.mark.parametrize('batch_tokens', [24, 72])
def test_batches_can_begin_where_an_earlier_one_ended(
  tokenizer, small_windows, monkeypatch, batch_tokens, shortest
):
  monkeypatch.setattr(packing, '_SHORTEST_ROW', shortest)
  text = PackedText(tokenizer, Corpus.of(DOCUMENTS * 5).draw(0, 5), 24, batch_tokens)
  batches = list(text.batches())
  assert any(any(batch.end.rows) for batch in batches[:-1]), 'some end within a window'
  assert len({batch.end.document for batch in batches}) > 2, 'there are several windows'
  for number, batch in enumerate(batches):
    rest = list(text.batches(batch.end))
    assert len(rest) == len(batches) - number - 1
    for ours, theirs in zip(rest, batches[number + 1 :], strict=True):
      np.testing.assert_array_equal(ours.token_NxT, theirs.token_NxT)
      np.testing.assert_array_equal(ours.segment_NxT, theirs.segment_NxT)
      assert ours.end == theirs.end


def test_a_resumed_text_is_not_read_from_its_beginning(tokenizer, small_windows):
  corpus = Corpus.of(DOCUMENTS * 3)
  text = PackedText(tokenizer, corpus, 24, 24)
  end = max(batch.end for batch in text.batches())
  assert end.document > len(DOCUMENTS)
  read = []
  object.__setattr__(corpus, 'fetch', lambda index_N: read.extend(index_N) or iter(()))
  list(text.batches(end))
  assert read == list(range(end.document, len(corpus)))


def test_rows_of_a_window_are_shuffled(monkeypatch, tokenizer):
  texts = [' '.join(['city'] * count) for count in range(1, 21)]
  text = PackedText(tokenizer, Corpus.of(texts), 24, 24)
  sizes = [max(np.bincount(batch.segment_NxT[0])[1:]) for batch in text.batches()]
  assert sizes != sorted(sizes, reverse=True), 'a pass that stops early has not only long ones'


def test_long_documents_are_cut(tokenizer):
  corpus, ids = Corpus.of(DOCUMENTS[1:2]), tokenizer(DOCUMENTS[1])['input_ids']
  (batch,) = PackedText(tokenizer, corpus, 16, 16, max_document_tokens=5).batches()
  assert batch.num_tokens == 5
  assert batch.token_NxT[0, :5].tolist() == ids[:5]
  (whole,) = PackedText(tokenizer, corpus, 16, 16).batches()
  assert whole.num_tokens == 16


def test_a_document_without_tokens_takes_no_room():
  tokenizer = vocabularies.byte_level(bos=False, trim=True)
  text = PackedText(tokenizer, Corpus.of(['', 'It is', '']), 16, 16)
  (batch,) = text.batches()
  assert batch.segment_NxT.max() == batch.num_documents == 1
  assert not list(text.batches(batch.end))
  with pytest.raises(UserError, match='no text in the corpus'):
    list(PackedText(tokenizer, Corpus.of(['', '']), 16, 16).batches())


def test_items_are_made_ahead_in_order():
  made, second = [], threading.Event()

  def items():
    for number in range(5):
      made.append(number)
      if number == 1:
        second.set()
      yield number

  found = prefetch(items(), depth=2)
  assert next(found) == 0 and second.wait(10), 'made without being asked for'
  assert list(found) == [1, 2, 3, 4] == made[1:]


def test_an_error_comes_behind_the_items_before_it():
  def items():
    yield from (1, 2)
    raise UserError('no third')

  found = prefetch(items(), depth=4)
  assert [next(found), next(found)] == [1, 2]
  with pytest.raises(UserError, match='no third'):
    next(found)
  assert START == (0, (), 0)
