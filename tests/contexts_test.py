"""Sampled contexts: five texts of ten tokens, each closed by a full stop, the same for a seed."""

import functools

import pytest

from helpers import editing
from jedit import contexts
from jedit.contexts import NUM_TOKENS, STARTS, sample_contexts
from jedit.data.edit_rows import check_contexts

sample = functools.cache(lambda family, seed: sample_contexts(editing.language_model(family), seed))


@pytest.mark.parametrize('family', ['gptj', 'llama'])
def test_contexts_are_ten_tokens_and_a_full_stop(family, monkeypatch):
  lm, rows = editing.language_model(family), []

  def recorded(config, params, starts, **settings):
    assert settings['top_k'] == 5
    new = contexts_generate(config, params, starts, **settings)
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


def test_contexts_of_one_model_differ_from_those_of_another():
  assert sample('gptj', 3)[1] != sample('llama', 3)[1]
