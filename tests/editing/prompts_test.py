"""Rows of edits: texts and positions, and the padded arrays of their blocks."""

import dataclasses

import numpy as np
import pytest

from helpers import editing
from jedit.data.records import load_records
from jedit.editing.prompts import (
  check_contexts,
  cut_blocks,
  encode_edits,
  fill_arrays,
  fit_shapes,
  position,
  window_start,
)
from jedit.models.encoding import encode
from jedit.models.tokenizer import load_tokenizer
from jedit.types import Request, UserError

TOKENS = ('subject_last', 'prompt_last')


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
        tokenizer, request.prompt, **parts, target=request.target, context=template
      )
      assert short == encode(tokenizer, request.prompt, **parts, context=template)
      assert whole.text == template.replace('{}', request.text) + ' ' + request.target
    assert edit.bare == edit.without_target[0]
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


@pytest.mark.parametrize('batch_size', [1, 3, 7, 100])
@pytest.mark.parametrize('tokens', [TOKENS, TOKENS[:1], TOKENS[1:]])
def test_blocks_hold_every_edit_once(batch_size, tokens):
  _, rows = _rows()
  blocks = cut_blocks(rows, tokens, batch_size, num_steps=20)
  assert sorted(i for block in blocks for i in block.indices) == list(range(len(rows)))
  for block in blocks:
    assert block.fill <= block.size <= batch_size
    # Slots and rounds are shared out evenly: no more than a slot per round runs empty.
    rounds = -(-len(block.indices) // block.size)
    assert 0 <= rounds * block.size - len(block.indices) <= max(rounds, len(blocks))
    for text in (text for i in block.indices for text in rows[i].with_target):
      start = window_start(text, tokens)
      assert start == min(getattr(text, token) for token in tokens)
      assert start <= block.past
      assert len(text.ids) - 1 - start <= block.window
      assert len(text.ids) - 1 <= block.num_tokens
      assert len(text.target_ids) <= block.num_targets
    assert max(len(rows[i].kl.ids) for i in block.indices) <= block.kl_tokens


@pytest.mark.parametrize('tokens', [TOKENS, TOKENS[:1]])
def test_arrays_point_at_the_tokens(tokens):
  _, rows = _rows()
  for block in cut_blocks(rows, tokens, 3, num_steps=20):
    block = dataclasses.replace(block, fill=len(block.indices) + 1)
    arrays = fill_arrays([rows[i] for i in block.indices], block, tokens)
    count = len(rows[0].with_target)
    assert arrays.token_BxPxT.shape == (block.fill, count, block.num_tokens)
    assert arrays.label_BxPxJ.shape == (block.fill, count, block.num_targets)
    for b, i in enumerate([*block.indices, block.indices[0]]):
      assert arrays.kl_start_B[b] == rows[i].kl.subject_last
      assert tuple(arrays.kl_token_BxT[b, : len(rows[i].kl.ids)]) == rows[i].kl.ids
      for p, text in enumerate(rows[i].with_target):
        token_T, start = arrays.token_BxPxT[b, p], arrays.start_BxP[b, p]
        assert tuple(token_T[: len(text.ids) - 1]) == text.ids[:-1]
        assert not token_T[len(text.ids) - 1 :].any()
        for token in tokens:
          assert start + arrays.token_at_BxP[token][b, p] == getattr(text, token)
        mask_J = arrays.label_mask_BxPxJ[b, p]
        assert tuple(arrays.label_BxPxJ[b, p][mask_J]) == text.target_ids
        read = start + arrays.read_at_BxPxJ[b, p][mask_J]
        assert list(read) == list(range(text.target_start - 1, len(text.ids) - 1))


def test_thousands_of_edits_need_few_shapes(shared):
  """Real texts in a real tokenizer: as many programs as shapes, and at most twelve."""
  tokenizer = load_tokenizer(shared / 'data' / 'tokenizers' / 'gpt2')
  records = load_records(shared / 'data' / 'counterfact' / 'counterfact_edit_10k.json')
  rows = encode_edits(tokenizer, [record.request for record in records], editing.CONTEXTS)
  for tokens, batch_size in ((TOKENS[:1], 32), (TOKENS[:1], 256), (TOKENS, 32)):
    blocks = cut_blocks(rows, tokens, batch_size, num_steps=30)
    shapes = {dataclasses.replace(block, indices=()) for block in blocks}
    assert 2 <= len(shapes) <= 12
    assert sum(len(block.indices) for block in blocks) == len(records) > 9_000


@pytest.mark.parametrize(('size', 'most'), [(1, 12), (10, 30), (100, 30)])
def test_parts_of_a_sequence_share_shapes(shared, size, most):
  """Few programs for single edits, and little padding for larger parts."""
  tokenizer = load_tokenizer(shared / 'data' / 'tokenizers' / 'gpt2')
  records = load_records(shared / 'data' / 'counterfact' / 'counterfact_edit_10k.json')[:3000]
  rows = encode_edits(tokenizer, [record.request for record in records], editing.CONTEXTS)
  fitted = fit_shapes(rows, TOKENS[:1], num_steps=25)
  programs, run = {}, {}
  for kind, shapes in (('shared', fitted), ('alone', None)):
    programs[kind], run[kind] = set(), 0
    for first in range(0, len(rows), size):
      part = rows[first : first + size]
      blocks = cut_blocks(part, TOKENS[:1], 64, num_steps=25, shapes=shapes)
      assert sorted(i for block in blocks for i in block.indices) == list(range(len(part)))
      for block in blocks:
        fill_arrays([part[i] for i in block.indices[: block.fill]], block, TOKENS[:1])
        programs[kind].add(dataclasses.replace(block, indices=()))
        run[kind] += block.window * block.size * -(-len(block.indices) // block.size)
  assert len(programs['shared']) <= most
  assert run['shared'] <= run['alone']
  if size == 1:
    assert len(programs['alone']) > 4 * len(programs['shared'])


def test_shapes_of_other_edits_are_refused():
  _, rows = _rows()
  windows = [len(e.bare.ids) - e.bare.subject_last + len(e.target_ids) for e in rows]
  shortest = fit_shapes([rows[int(np.argmin(windows))]], TOKENS[:1], num_steps=20)
  with pytest.raises(ValueError, match='is beyond all shapes'):
    cut_blocks(rows, TOKENS[:1], 8, num_steps=20, shapes=shortest)


def test_braces_in_subjects_and_targets_are_text():
  tokenizer, _ = _rows()
  request = Request('{} is in', 'The {} café', '{}')
  (edit,) = encode_edits(tokenizer, [request], (('{}',), ('In {1}. {}',)))
  assert edit.with_target[1].text == 'In {1}. The {} café is in {}'
