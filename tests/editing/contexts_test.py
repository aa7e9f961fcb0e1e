"""Sampled contexts: five texts of ten tokens, each closed by a full stop, the same for a seed."""

import dataclasses
import functools

import pytest

from helpers import editing, vocabularies
from jedit import methods
from jedit.editing import contexts
from jedit.editing.contexts import (
  NUM_TOKENS,
  STARTS,
  contexts_of,
  sample_contexts,
  sample_rome_contexts,
)
from jedit.editing.prompts import BARE, check_contexts
from jedit.types import UserError

sample = functools.cache(lambda family, seed: sample_contexts(editing.language_model(family), seed))


@pytest.mark.parametrize('family', ['gptj', 'llama'])
def test_contexts_are_ten_tokens_and_a_full_stop(family, monkeypatch):
  lm, rows = editing.language_model(family), []

  def recorded(model, starts, **settings):
    assert settings['top_k'] == 5
    new = contexts_generate(model, starts, **settings)
    rows.extend([*start, *ids] for start, ids in zip(starts, new, strict=True))
    return new

  contexts_generate = contexts.generate
  monkeypatch.setattr(contexts, 'generate', recorded)
  groups = sample_contexts(lm, 0)
  assert groups[0] == ('{}',) and len(groups) == 2 and len(groups[1]) == len(STARTS)
  assert check_contexts(groups) == groups
  for start, template, row in zip(STARTS, groups[1], rows, strict=True):
    assert template.startswith(start) and template.endswith('. {}')
    without_bos = row[1:] if family == 'llama' else row
    assert len(without_bos) == NUM_TOKENS == 10
    assert template == ' '.join(lm.tokenizer.decode(without_bos).split()) + '. {}'


def test_contexts_follow_their_seed():
  assert sample_contexts(editing.language_model(), 3) == sample('gptj', 3)
  assert sample('gptj', 4) != sample('gptj', 3)


@pytest.mark.parametrize(('family', 'start'), [('gptj', '</s>'), ('llama', '<s>')])
def test_contexts_of_rome_are_twenty_texts_of_two_lengths(family, start, monkeypatch):
  lm, rows = editing.language_model(family), []

  def recorded(model, starts, **settings):
    new = contexts_generate(model, starts, **settings)
    rows.extend([*row, *ids] for row, ids in zip(starts, new, strict=True))
    return new

  contexts_generate = contexts.generate
  monkeypatch.setattr(contexts, 'generate', recorded)
  groups = sample_rome_contexts(lm, 0)
  assert check_contexts(groups) == groups == sample_rome_contexts(lm, 0)
  assert sample_rome_contexts(lm, 1) != groups
  assert groups[0] == ('{}',) and len(groups) == 2
  assert [len(row) for row in rows[:20]] == [5] * 10 + [10] * 10
  assert len(set(map(tuple, rows[:20]))) > 15  # equal beginnings, other draws
  for row, template in zip(rows[:20], groups[1], strict=True):
    assert lm.tokenizer.convert_ids_to_tokens(row[0]) == start
    text = lm.tokenizer.decode(row, skip_special_tokens=True)
    assert template == ' '.join(text.split()) + '. {}'


def test_every_method_gets_its_kind():
  lm = editing.language_model()
  rome, memit = methods.rome(layers=(1,)), methods.memit(layers=(1,))
  assert contexts_of(lm, rome, 3) == sample_rome_contexts(lm, 3)
  assert contexts_of(lm, memit, 3) == sample('gptj', 3)
  assert contexts_of(lm, methods.ft(layers=(1,)), 3) == BARE  # it would use none
  assert contexts_of(lm, methods.rome(layers=(1,), prefixes='memit'), 3) == sample('gptj', 3)
  assert contexts_of(lm, rome, 3, [['{}', 'A. {}']]) == (('{}', 'A. {}'),)
  with pytest.raises(UserError, match="prefixes is 'none'; choose one of memit, rome"):
    methods.rome(layers=(1,), prefixes='none')
  bare = dataclasses.replace(lm, tokenizer=vocabularies.byte_level(trim=True))
  bare.tokenizer.eos_token = None
  with pytest.raises(UserError, match="no BOS or EOS token.*or choose prefixes='me"):
    sample_rome_contexts(bare, 0)


def test_contexts_of_one_model_differ_from_those_of_another():
  assert sample('gptj', 3)[1] != sample('llama', 3)[1]
