"""Rows of edits: texts, tokens and positions."""

import pytest

from helpers import editing
from jedit.editing.prompts import check_contexts, encode_edits, position
from jedit.models.encoding import encode
from jedit.types import Request, UserError


def _rows(family='llama'):
  tokenizer = editing.language_model(family).tokenizer
  return tokenizer, encode_edits(tokenizer, editing.REQUESTS, editing.CONTEXTS)


@pytest.mark.parametrize('family', ['gptj', 'llama'])
def test_rows_hold_the_texts_of_their_edit(family):
  tokenizer, rows = _rows(family)
  templates = [template for group in editing.CONTEXTS for template in group]
  for request, edit in zip(editing.REQUESTS, rows, strict=True):
    assert edit.request is request
    parts = dict(subject=request.subject)
    for template, whole, short in zip(templates, edit.with_target, edit.without_target):
      assert whole == encode(
        tokenizer, request.prompt, **parts, target=request.target_new, context=template
      )
      assert short == encode(tokenizer, request.prompt, **parts, context=template)
      assert whole.text == template.replace('{}', request.text) + ' ' + request.target_new
    assert edit.bare == encode(tokenizer, request.prompt, **parts)
    assert edit.kl.text == f'{request.subject} is a'
    assert edit.target_ids == edit.with_target[0].ids[edit.with_target[0].target_start :]
    assert position(edit.bare, 'subject_last') == edit.bare.subject_last
    assert position(edit.bare, 'prompt_last') == len(edit.bare.ids) - 1


def test_contexts_are_checked():
  assert check_contexts([['{}'], ['A. {}']]) == (('{}',), ('A. {}',))
  assert check_contexts(iter([iter(['{}'])])) == (('{}',),)
  for empty in ([], [['{}'], []]):
    with pytest.raises(UserError, match='contexts is empty'):
      check_contexts(empty)
  with pytest.raises(UserError, match="first context is 'A. {}'; it must be"):
    check_contexts([['A. {}'], ['{}']])
  tokenizer, _ = _rows()
  with pytest.raises(UserError, match="context 'A.' has no '{}'"):
    encode_edits(tokenizer, editing.REQUESTS[:1], check_contexts([['{}'], ['A.']]))


def test_braces_in_subjects_and_targets_are_text():
  tokenizer, _ = _rows()
  request = Request('{} is in', 'The {} café', '{}')
  (edit,) = encode_edits(tokenizer, [request], (('{}',), ('In {1}. {}',)))
  assert edit.with_target[1].text == 'In {1}. The {} café is in {}'
