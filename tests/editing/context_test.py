"""The context of an edit: every text is tokenised once, in every batching mode."""

import collections
import gc
import weakref

import pytest

from helpers import editing
from jedit import methods
from jedit.editing.context import TokenizedRequests
from jedit.editing.edit import Separate, Sequential, Together, edit
from jedit.editing.prompts import BARE
from jedit.models import encoding

REQUESTS = editing.REQUESTS[:3]
MEMIT = methods.memit(layers=(0, 1), cov_weight=0.5, num_steps=2)
JEEP = methods.jeep(layers_low=(0,), layers_high=(1,), num_steps=2, is_joint=False)
FT = methods.ft(layers=(0,), num_epochs=1)

# Texts of a request: with and without its target in every context, and the one of the KL term.
NUM_TEXTS = 2 * sum(map(len, editing.CONTEXTS)) + 1


@pytest.mark.parametrize('batching', [Together(), Separate(2), Sequential(2)], ids=repr)
@pytest.mark.parametrize(('method', 'num_texts'), [(MEMIT, 7), (JEEP, 7), (FT, 1)])
def test_every_text_is_tokenised_once(method, num_texts, batching, monkeypatch):
  assert num_texts in (1, NUM_TEXTS)
  lm, tokenise, texts = editing.language_model(), encoding._ids_and_spans, []

  def recorded(tokenizer, given):
    texts.extend(given)
    return tokenise(tokenizer, given)

  monkeypatch.setattr(encoding, '_ids_and_spans', recorded)
  moments = editing.second_moments(lm, method)
  edit(lm, REQUESTS, method, moments, contexts=editing.CONTEXTS, batching=batching)
  assert len(texts) == num_texts * len(REQUESTS)
  assert set(collections.Counter(texts).values()) == {1}


def test_rows_are_those_of_the_requests_and_shapes_fit_all():
  lm = editing.language_model()
  rows = TokenizedRequests(lm.tokenizer, [*REQUESTS, REQUESTS[0]], BARE, None)
  assert [row.request for row in rows(REQUESTS[::-1])] == list(REQUESTS[::-1])
  shapes = rows.shapes(('subject_last',), 5)
  assert rows.shapes(('subject_last',), 5) is shapes
  assert rows.shapes(('subject_last', 'prompt_last'), 5) is not shapes
  longest = max(len(row.with_target[0].ids) for row in rows(REQUESTS))
  assert shapes[-1].num_tokens >= longest - 1


def test_rows_live_no_longer_than_their_call():
  lm = editing.language_model()
  rows = TokenizedRequests(lm.tokenizer, REQUESTS, BARE, None)
  rows.shapes(('subject_last',), 5)
  reference = weakref.ref(rows)
  gc.disable()
  try:
    del rows
    assert reference() is None
  finally:
    gc.enable()
