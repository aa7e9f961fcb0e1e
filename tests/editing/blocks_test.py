"""Blocks of edits: every edit once, few shapes, and arrays that point at the right tokens."""

import dataclasses

import numpy as np
import pytest

from helpers import editing
from jedit.data.records import load_records
from jedit.editing.blocks import cut_blocks, fit_shapes, row_batch, window_start
from jedit.editing.prompts import encode_edits
from jedit.models.tokenizer import load_tokenizer

TOKENS = ('subject_last', 'prompt_last')
TOKEN_FLOP = 2e8  # of a model with eight blocks of width 256 and 25 evaluations


def _rows():
  tokenizer = editing.language_model('llama').tokenizer
  return encode_edits(tokenizer, editing.REQUESTS, editing.CONTEXTS)


@pytest.mark.parametrize('batch_size', [1, 3, 7, 100])
@pytest.mark.parametrize('tokens', [TOKENS, TOKENS[:1], TOKENS[1:]])
def test_blocks_hold_every_edit_once(batch_size, tokens):
  rows = _rows()
  blocks = cut_blocks(rows, tokens, batch_size, TOKEN_FLOP)
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
  rows = _rows()
  for block in cut_blocks(rows, tokens, 3, TOKEN_FLOP):
    block = dataclasses.replace(block, fill=len(block.indices) + 1)
    arrays = row_batch([rows[i] for i in block.indices], block, tokens)
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


@pytest.fixture(name='real_rows', scope='module')
def _real_rows(shared):
  """Ten thousand edits in a real tokenizer."""
  tokenizer = load_tokenizer(shared / 'data' / 'tokenizers' / 'gpt2')
  records = load_records(shared / 'data' / 'counterfact' / 'counterfact_edit_10k.json')
  return encode_edits(tokenizer, [record.request for record in records], editing.CONTEXTS)


def test_thousands_of_edits_need_few_shapes(real_rows):
  """As many programs as shapes, and at most twelve."""
  for tokens, batch_size in ((TOKENS[:1], 32), (TOKENS[:1], 256), (TOKENS, 32)):
    blocks = cut_blocks(real_rows, tokens, batch_size, TOKEN_FLOP)
    shapes = {dataclasses.replace(block, indices=()) for block in blocks}
    assert 2 <= len(shapes) <= 12
    assert sum(len(block.indices) for block in blocks) == len(real_rows) > 9_000


@pytest.mark.parametrize(('size', 'most'), [(1, 12), (10, 30), (100, 30)])
def test_parts_of_a_sequence_share_shapes(real_rows, size, most):
  """Few programs for single edits, and little padding for larger parts."""
  rows = real_rows[:3000]
  fitted = fit_shapes(rows, TOKENS[:1], TOKEN_FLOP)
  programs, run = {}, {}
  for kind, shapes in (('shared', fitted), ('alone', None)):
    programs[kind], run[kind] = set(), 0
    for first in range(0, len(rows), size):
      part = rows[first : first + size]
      blocks = cut_blocks(part, TOKENS[:1], 64, TOKEN_FLOP, shapes=shapes)
      assert sorted(i for block in blocks for i in block.indices) == list(range(len(part)))
      for block in blocks:
        row_batch([part[i] for i in block.indices[: block.fill]], block, TOKENS[:1])
        programs[kind].add(dataclasses.replace(block, indices=()))
        run[kind] += block.window * block.size * -(-len(block.indices) // block.size)
  assert len(programs['shared']) <= most
  # A single edit alone is not padded at all.
  assert run['shared'] <= (1.02 if size == 1 else 1) * run['alone']
  if size == 1:
    assert len(programs['alone']) > 4 * len(programs['shared'])


def test_shapes_of_other_edits_are_refused():
  rows = _rows()
  windows = [len(e.bare.ids) - e.bare.subject_last + len(e.target_ids) for e in rows]
  shortest = fit_shapes([rows[int(np.argmin(windows))]], TOKENS[:1], TOKEN_FLOP)
  with pytest.raises(ValueError, match='is beyond all shapes'):
    cut_blocks(rows, TOKENS[:1], 8, TOKEN_FLOP, shapes=shortest)
