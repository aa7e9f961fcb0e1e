"""A language model answers for a text alone as in a batch, and its directory loads again."""

import json

import jax
import numpy as np
import pytest

from helpers import editing
from jedit.models.language_model import load
from jedit.models.patch import Patch, Update
from jedit.types import UserError

both_families = pytest.mark.parametrize('family', ['gptj', 'llama'])
TEXTS = editing.texts(editing.REQUESTS)


@jax.jit
def _logits(model, token_1xT):
  hidden, _ = model(token_1xT)
  return model.head(hidden[0])


@both_families
def test_padding_does_not_move_logits(family):
  lm = editing.language_model(family)
  together = lm.logits(TEXTS)
  assert together.shape == (len(TEXTS), lm.config.vocab_size) and together.dtype == np.float32
  for i in (1, 3):  # a short text and a long one, with no padding at all
    row = lm.tokenizer(TEXTS[i])['input_ids']
    alone_TxV = _logits(lm.model, np.array([row], np.int32))
    np.testing.assert_allclose(together[i], alone_TxV[-1], rtol=0, atol=1e-4)


def test_bos_counts_where_the_tokenizer_adds_it():
  assert editing.language_model('llama').tokenizer('Ove')['input_ids'][0] == 0
  assert editing.language_model('gptj').tokenizer('Ove')['input_ids'][0] != 0


@both_families
def test_generation_continues_each_text_with_the_most_probable_tokens(family):
  lm = editing.language_model(family)
  texts = lm.generate(TEXTS[:3], max_new_tokens=3)
  for before, after in zip(TEXTS[:3], texts, strict=True):
    assert after.startswith(before)
    row = lm.tokenizer(before)['input_ids']
    for _ in range(3):
      padded = np.array([row + [0] * (24 - len(row))], np.int32)
      row = [*row, int(_logits(lm.model, padded)[len(row) - 1].argmax())]
      if row[-1] == lm.tokenizer.eos_token_id:
        break
    assert after == lm.tokenizer.decode(row, skip_special_tokens=True)


def test_a_given_token_ends_a_text():
  lm = editing.language_model()
  [text] = lm.generate(TEXTS[:1], max_new_tokens=6)
  ids = lm.tokenizer(text)['input_ids']
  third = len(lm.tokenizer(TEXTS[0])['input_ids']) + 2
  [cut] = lm.generate(TEXTS[:1], max_new_tokens=6, stop=[ids[third]])
  end = ids.index(ids[third], len(lm.tokenizer(TEXTS[0])['input_ids']))  # may come before
  assert cut == lm.tokenizer.decode(ids[: end + 1], skip_special_tokens=True)


def test_samples_follow_their_seed():
  lm = editing.language_model()
  settings = dict(max_new_tokens=8, top_k=5)
  first = lm.generate(TEXTS[:2], seed=1, **settings)
  assert lm.generate(TEXTS[:2], seed=1, **settings) == first
  assert lm.generate(TEXTS[:2], seed=2, **settings) != first


@both_families
def test_exports_load_again(family, tmp_path):
  lm = editing.language_model(family)
  shape = lm.params['block_1']['mlp']['down']['kernel'].shape
  change = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  patch = Patch({'block_1/mlp/down/kernel': Update(dense=change)})
  edited = lm.apply(patch)
  exported = edited.export(tmp_path / 'model')
  assert exported.dtype == 'float32' and not exported.rounding
  loaded = load(tmp_path / 'model')
  assert loaded.config == lm.config
  assert loaded.tokenizer(TEXTS)['input_ids'] == lm.tokenizer(TEXTS)['input_ids']
  np.testing.assert_array_equal(loaded.logits(TEXTS), edited.logits(TEXTS))
  assert np.abs(loaded.logits(TEXTS) - lm.logits(TEXTS)).max() > 0.1
  assert loaded.fingerprint != lm.fingerprint  # the patch is part of its weights now
  assert lm.apply(patch).revert(patch).fingerprint == lm.fingerprint
  config = json.loads((tmp_path / 'model' / 'config.json').read_text())
  assert config['dtype'] == 'float32'
  with pytest.raises(UserError, match='made on a model with fingerprint'):
    loaded.apply(Patch(patch.updates, {'model': lm.fingerprint}))


def test_mistakes_are_sentences(tmp_path):
  lm = editing.language_model()
  for texts in ([], ['Ove', '']):
    with pytest.raises(UserError, match='empty text'):
      lm.logits(texts)
  with pytest.raises(UserError, match='list of texts'):
    lm.generate('Ove')
  with pytest.raises(UserError, match="dtype is 'float8'; choose one of float32"):
    load(tmp_path, dtype='float8')
