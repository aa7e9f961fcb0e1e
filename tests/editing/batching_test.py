"""Several batches: each on the original model, or one after the other."""

import numpy as np
import pytest

from helpers import editing
from helpers.editing import relative
from jedit import methods
from jedit.editing import batches, schedule
from jedit.editing.batches import edit_separately, edit_sequentially
from jedit.editing.edit import edit
from jedit.models.patch import Patch, merge
from jedit.types import UserError

REQUESTS = editing.REQUESTS[:5]
CONTEXTS = (('{}',),)
MEMIT = methods.memit(layers=(0, 1), cov_weight=0.5, num_steps=4, weight_decay=0.05)
ROME = methods.rome(layers=(1,), num_steps=4)
ALPHAEDIT = methods.alphaedit(layers=(0, 1), threshold=0.9, ridge=0.1, num_steps=4)


def _model():
  return editing.language_model('gptj', num_layers=3)


def _run(mode, method, size, requests=REQUESTS, **settings):
  lm = _model()
  stats = editing.second_moments(lm, method)
  return list(mode(lm, requests, method, stats, size=size, contexts=CONTEXTS, **settings))


def _assert_close(ours, theirs, bound=1e-3):
  assert ours.updates.keys() == theirs.updates.keys()
  for path, update in ours.updates.items():
    assert relative(update.value(), theirs.updates[path].value()) < bound


def test_separate_batches_are_edits_of_the_original_model():
  lm, stats = _model(), editing.second_moments(_model(), MEMIT)
  found = _run(edit_separately, MEMIT, 2)
  assert [batch.edits for batch in found] == [slice(0, 2), slice(2, 4), slice(4, 5)]
  for batch in found:
    alone = edit(lm, REQUESTS[batch.edits], MEMIT, stats, contexts=CONTEXTS)
    _assert_close(batch.patch, alone)
    assert batch.lm.patches == (batch.patch,)
    assert batch.patch.provenance['patches_before'] == []


def test_single_edits_suit_rome_which_takes_one():
  found = _run(edit_separately, ROME, 1)
  assert len(found) == len(REQUESTS) and len({batch.patch.id for batch in found}) == len(REQUESTS)
  with pytest.raises(UserError, match='one edit at a time, not 2'):
    _run(edit_separately, ROME, 2)


@pytest.mark.parametrize('mode', [edit_separately, edit_sequentially])
def test_what_cannot_be_edited_is_refused_before_the_work(mode, monkeypatch):
  monkeypatch.setattr(schedule, '_run_block', lambda *_: pytest.fail('it was begun'))
  lm = _model()
  with pytest.raises(UserError, match='memit needs second moments'):
    next(mode(lm, REQUESTS, MEMIT, None, size=2, contexts=CONTEXTS))
  with pytest.raises(UserError, match='one edit at a time, not 2'):
    next(mode(lm, REQUESTS, ROME, editing.second_moments(lm, ROME), size=2, contexts=CONTEXTS))


def test_a_sequence_edits_the_running_model():
  lm, stats = _model(), editing.second_moments(_model(), MEMIT)
  found = _run(edit_sequentially, MEMIT, 2)
  for batch in found:
    patch = edit(lm, REQUESTS[batch.edits], MEMIT, stats, contexts=CONTEXTS)
    _assert_close(batch.patch, patch, 1e-5)
    lm = lm.apply(patch)
  assert [patch.id for patch in found[-1].lm.patches] == [batch.patch.id for batch in found]


def test_a_sequence_preserves_the_keys_of_earlier_batches():
  free = _run(edit_sequentially, ALPHAEDIT, 1)
  bound = _run(edit_sequentially, ALPHAEDIT, 1, accumulate_keys=True)
  _assert_close(bound[0].patch, free[0].patch, 1e-6)
  lm, stats = _model(), editing.second_moments(_model(), ALPHAEDIT)
  earlier = {}
  for batch in bound:
    patch, details = edit(
      lm,
      REQUESTS[batch.edits],
      ALPHAEDIT,
      stats,
      contexts=CONTEXTS,
      earlier_keys=earlier,
      details=True,
    )
    _assert_close(batch.patch, patch, 1e-5)
    for kernel, key_1xF in details.keys.items():
      earlier[kernel] = np.concatenate([earlier.get(kernel, key_1xF[:0]), key_1xF])
    lm = lm.apply(patch)
  path = 'block_0/mlp/down/kernel'
  assert (
    relative(bound[-1].patch.updates[path].value(), free[-1].patch.updates[path].value()) > 1e-2
  )


def test_the_merged_patch_is_the_whole_sequence():
  found = _run(edit_sequentially, MEMIT, 2)
  patch = merge([batch.patch for batch in found])
  assert patch.provenance['num_edits'] == len(REQUESTS)
  assert [each['num_edits'] for each in patch.provenance['merged']] == [2, 2, 1]
  prompts = editing.texts(REQUESTS)
  ours, theirs = _model().apply(patch).logits(prompts), found[-1].lm.logits(prompts)
  assert relative(ours, theirs) < 1e-5
  assert relative(ours, _model().logits(prompts)) > 1e-2


def test_a_merge_of_dense_and_thin_updates_is_their_sum():
  thin = _run(edit_separately, ROME, 1, REQUESTS[:1])[0].patch
  assert all(update.left_FxR is not None for update in thin.updates.values())
  ((path, update),) = thin.updates.items()
  dense = Patch({path: type(update)(dense=2 * update.value())})
  np.testing.assert_allclose(
    merge([thin, dense]).updates[path].value(), 3 * update.value(), rtol=1e-6, atol=1e-9
  )


@pytest.mark.parametrize(
  ('mode', 'settings'),
  [(edit_separately, {}), (edit_sequentially, {}), (edit_sequentially, {'accumulate_keys': True})],
  ids=['separate', 'sequential', 'accumulated'],
)
def test_killed_batches_go_on_with_the_same_bits(tmp_path, monkeypatch, mode, settings):
  whole = [batch.patch.id for batch in _run(mode, ALPHAEDIT, 2, **settings)]
  calls = []

  def counted(*arguments, **keywords):
    if len(calls) == 2:
      raise KeyboardInterrupt
    calls.append(1)
    return edit(*arguments, **keywords)

  with monkeypatch.context() as patch:
    patch.setattr(batches, 'edit', counted)
    with pytest.raises(KeyboardInterrupt):
      _run(mode, ALPHAEDIT, 2, store=tmp_path, **settings)
    del calls[1:]
    again = _run(mode, ALPHAEDIT, 2, store=tmp_path, **settings)
    assert len(calls) == 2  # the last batch alone was missing
  assert [batch.patch.id for batch in again] == whole
  # Batches of another edit are not taken for this one's.
  other = _run(mode, MEMIT, 2, store=tmp_path, **settings)
  assert [b.patch.id for b in other] == [b.patch.id for b in _run(mode, MEMIT, 2, **settings)]


@pytest.mark.parametrize('mode', [edit_separately, edit_sequentially])
def test_stored_fine_tuning_is_not_repeated(tmp_path, monkeypatch, mode):
  method = methods.ft_w(layers=(1,), num_epochs=2)
  first = [batch.patch.id for batch in _run(mode, method, 2, store=tmp_path)]
  monkeypatch.setattr(batches, 'edit', None)  # whoever edits again fails
  assert [batch.patch.id for batch in _run(mode, method, 2, store=tmp_path)] == first


def test_stored_batches_of_other_settings_are_made_anew(tmp_path):
  """Keys that were not kept are not taken for none."""
  _run(edit_sequentially, ALPHAEDIT, 2, store=tmp_path)
  again = _run(edit_sequentially, ALPHAEDIT, 2, store=tmp_path, accumulate_keys=True)
  whole = _run(edit_sequentially, ALPHAEDIT, 2, accumulate_keys=True)
  assert [batch.patch.id for batch in again] == [batch.patch.id for batch in whole]


@pytest.mark.parametrize('mode', [edit_separately, edit_sequentially])
def test_mistakes_are_sentences(mode):
  with pytest.raises(UserError, match='size of a batch is 0; give at least 1'):
    _run(mode, MEMIT, 0)
  with pytest.raises(UserError, match='nothing to edit'):
    _run(mode, MEMIT, 1, requests=[])
