"""Several batches: each on the original model, or one after the other."""

import gc
import weakref

import numpy as np
import pytest

from helpers import editing
from helpers.editing import relative
from jedit import methods
from jedit.editing import slots
from jedit.editing.blocks import cut_blocks
from jedit.editing.edit import Separate, Sequential, Together, collect, edit, edit_stream
from jedit.editing.prompts import encode_edits
from jedit.editing.result import EditResult
from jedit.editing.window import forward
from jedit.methods import FineTuning, Recipe, recipe
from jedit.models.patch import Patch, Update, merge
from jedit.types import UserError

REQUESTS = editing.REQUESTS[:5]
CONTEXTS = (('{}',),)
MEMIT = methods.memit(layers=(0, 1), cov_weight=0.5, num_steps=4, weight_decay=0.05)
ROME = methods.rome(layers=(1,), num_steps=4)
ALPHAEDIT = methods.alphaedit(layers=(0, 1), threshold=0.9, ridge=0.1, num_steps=4)

several = pytest.mark.parametrize('batching', [Separate, Sequential])


def _model():
  return editing.language_model('gptj', num_layers=3)


def _stream(batching, method=MEMIT, requests=REQUESTS, **settings):
  lm = _model()
  moments = editing.second_moments(lm, method)
  return edit_stream(
    lm, requests, method, moments, contexts=CONTEXTS, batching=batching, **settings
  )


def _run(batching, method=MEMIT, requests=REQUESTS, **settings):
  return list(_stream(batching, method, requests, **settings))


def _ids(batches):
  return [batch.result.patch.id for batch in batches]


def _assert_close(ours, theirs, bound=1e-3):
  assert ours.updates.keys() == theirs.updates.keys()
  for path, update in ours.updates.items():
    assert relative(update.value(), theirs.updates[path].value()) < bound


def _count(monkeypatch, owner, name, die_after=None):
  """Counts the calls of a function, and kills the run after some of them."""
  function, calls = getattr(owner, name), []

  def counted(*arguments, **keywords):
    if len(calls) == die_after:
      raise KeyboardInterrupt
    calls.append(arguments)
    return function(*arguments, **keywords)

  monkeypatch.setattr(owner, name, counted)
  return calls


def test_separate_batches_are_edits_of_the_original_model():
  lm, moments = _model(), editing.second_moments(_model(), MEMIT)
  found = _run(Separate(2))
  assert [batch.edits for batch in found] == [slice(0, 2), slice(2, 4), slice(4, 5)]
  for batch in found:
    alone = edit(lm, REQUESTS[batch.edits], MEMIT, moments, contexts=CONTEXTS).patch
    patch = batch.result.patch
    _assert_close(patch, alone)
    assert batch.base is found[0].base and batch.base.patches == ()
    assert batch.lm.patches == (patch,)
    assert patch.provenance['patches_before'] == []


def test_separate_batches_have_no_common_patch():
  lm = _model()
  result = collect([batch.result for batch in _stream(Separate(2))], Separate(2))
  assert result.patch is None and len(result.batches) == 3
  words = 'batches were edited separately and have no common patch; take those of result.batches'
  for use in (lm.apply, lm.revert):
    with pytest.raises(UserError, match=words):
      use(result)
  edited = lm.apply(result.batches[1])
  assert edited.revert(result.batches[1]).patches == ()
  assert result.seconds.keys() == {'targets', 'keys', 'solve'}


class _Watching:
  """A method that looks at every edit whether the edited model before is gone."""

  name, kernels = 'watching', ()

  def __init__(self):
    self.before, self.is_gone = (lambda: None), []

  def check(self, config, num_edits):
    pass

  def edit(self, context, requests):
    self.is_gone.append(self.before() is None)
    change = np.full((24, 16), 1e-3, np.float32)
    return EditResult(Patch({'block_0/mlp/down/kernel': Update(dense=change)}))


def test_separate_batches_hold_one_edited_model_at_a_time():
  """The driver holds none while it edits the next batch."""
  method = _Watching()
  gc.disable()
  try:
    stream = edit_stream(_model(), REQUESTS[:3], method, batching=Separate(1))
    for _ in range(3):
      batch = next(stream)
      method.before = weakref.ref(batch.lm)
      del batch
    assert method.before() is not None  # the stream waits at its last batch
    stream.close()
    assert method.before() is None
  finally:
    gc.enable()
  assert method.is_gone == [True] * 3


def test_single_edits_suit_rome_which_takes_one():
  found = _run(Separate(1), ROME)
  assert len(found) == len(REQUESTS) and len(set(_ids(found))) == len(REQUESTS)
  with pytest.raises(UserError, match='one edit at a time, not 2'):
    _run(Separate(2), ROME)


@several
def test_what_cannot_be_edited_is_refused_before_the_work(batching, monkeypatch):
  monkeypatch.setattr(slots, '_run_block', lambda *_: pytest.fail('it was begun'))
  lm = _model()
  with pytest.raises(UserError, match='memit needs second moments'):
    next(edit_stream(lm, REQUESTS, MEMIT, contexts=CONTEXTS, batching=batching(2)))
  with pytest.raises(UserError, match='one edit at a time, not 2'):
    next(_stream(batching(2), ROME))


def test_a_sequence_edits_the_running_model():
  lm, moments = _model(), editing.second_moments(_model(), MEMIT)
  found = _run(Sequential(2))
  for batch in found:
    assert len(batch.base.patches) == len(lm.patches)
    patch = edit(lm, REQUESTS[batch.edits], MEMIT, moments, contexts=CONTEXTS).patch
    _assert_close(batch.result.patch, patch, 1e-5)
    lm = lm.apply(patch)
  assert [patch.id for patch in found[-1].lm.patches] == _ids(found)


def test_a_sequence_can_be_stopped(monkeypatch):
  calls = _count(monkeypatch, Recipe, 'edit')
  stream = _stream(Sequential(2))
  first = next(stream)
  stream.close()
  assert len(calls) == 1 and first.lm.patches == (first.result.patch,)


def test_a_sequence_preserves_the_keys_of_earlier_batches(monkeypatch):
  free = _run(Sequential(1), ALPHAEDIT)
  calls = _count(monkeypatch, Recipe, 'edit')
  bound = _run(Sequential(1, accumulate_keys=True), ALPHAEDIT)
  _assert_close(bound[0].result.patch, free[0].result.patch, 1e-6)
  for number, (_, context, _) in enumerate(calls):
    for kernel in ALPHAEDIT.kernels if number else ():
      keys = [batch.result.details.keys[kernel] for batch in bound[:number]]
      np.testing.assert_array_equal(context.earlier_keys[kernel], np.concatenate(keys))
  path = 'block_0/mlp/down/kernel'
  ours, theirs = (run[-1].result.patch.updates[path].value() for run in (bound, free))
  assert relative(ours, theirs) > 1e-2


def test_the_merged_patch_is_the_whole_sequence():
  found = _run(Sequential(2))
  result = collect([batch.result for batch in found], Sequential(2))
  patch = result.patch
  assert [each.patch.id for each in result.batches] == _ids(found)
  assert patch.provenance['num_edits'] == len(REQUESTS)
  assert [each['num_edits'] for each in patch.provenance['merged']] == [2, 2, 1]
  prompts = editing.texts(REQUESTS)
  ours, theirs = _model().apply(result).logits(prompts), found[-1].lm.logits(prompts)
  assert relative(ours, theirs) < 1e-5
  assert relative(ours, _model().logits(prompts)) > 1e-2


def test_a_merge_of_dense_and_thin_updates_is_their_sum():
  thin = _run(Separate(1), ROME, REQUESTS[:1])[0].result.patch
  assert all(update.left_FxR is not None for update in thin.updates.values())
  ((path, update),) = thin.updates.items()
  dense = Patch({path: type(update)(dense=2 * update.value())})
  np.testing.assert_allclose(
    merge([thin, dense]).updates[path].value(), 3 * update.value(), rtol=1e-6, atol=1e-9
  )


def test_one_batch_is_the_same_in_every_mode():
  found = [_run(batching)[0] for batching in (Together(), Separate(9), Sequential(9))]
  assert len(set(_ids(found))) == 1
  result = collect([found[1].result], Separate(9))
  assert result is found[1].result


def test_targets_of_separate_batches_are_found_once(monkeypatch):
  calls = _count(monkeypatch, slots, '_run_block')
  _run(Together())
  together = len(calls)
  calls.clear()
  _run(Separate(1))
  assert len(calls) == together
  assert [len(arguments[2]) for arguments in calls] == [len(REQUESTS)] * together


def test_a_sequence_shares_programs():
  """Batches are padded to shapes of the whole call; alone, each would have its own."""
  method = methods.memit(layers=(0, 1), cov_weight=0.5, num_steps=7)
  rows = encode_edits(_model().tokenizer, REQUESTS, CONTEXTS)
  alone = {cut_blocks([row], ('subject_last',), 1, token_flop=1e6)[0] for row in rows}
  forward.clear_cache()
  _run(Sequential(1), method)
  assert forward._cache_size() == 2 < 2 * len(alone), 'the block with the δ, and those above'


@pytest.mark.parametrize(
  'batching',
  [Separate(2), Sequential(2), Sequential(2, accumulate_keys=True)],
  ids=['separate', 'sequential', 'accumulated'],
)
def test_killed_batches_go_on_with_the_same_bits(tmp_path, monkeypatch, batching):
  whole = _ids(_run(batching, ALPHAEDIT))
  with monkeypatch.context() as patch:
    _count(patch, Recipe, 'edit', die_after=2)
    with pytest.raises(KeyboardInterrupt):
      _run(batching, ALPHAEDIT, store=tmp_path)
  with monkeypatch.context() as patch:
    calls = _count(patch, Recipe, 'edit')
    again = _run(batching, ALPHAEDIT, store=tmp_path)
    assert len(calls) == 1  # the last batch alone was missing
  assert _ids(again) == whole
  # Batches of another edit are not taken for this one's.
  other = _run(batching, MEMIT, store=tmp_path)
  assert _ids(other) == _ids(_run(batching, MEMIT))


@pytest.mark.parametrize('batching', [Separate(2), Sequential(2, accumulate_keys=True)])
def test_targets_of_a_killed_batch_are_kept(tmp_path, monkeypatch, batching):
  whole = _run(batching, ALPHAEDIT)
  with monkeypatch.context() as patch:
    _count(patch, recipe, 'update_region', die_after=1)
    with pytest.raises(KeyboardInterrupt):
      _run(batching, ALPHAEDIT, store=tmp_path)
  with monkeypatch.context() as patch:
    calls = _count(patch, slots, '_run_block')
    again = _run(batching, ALPHAEDIT, store=tmp_path)
    # The first batch was finished, and the targets of the second were found.
    assert len(calls) == (0 if isinstance(batching, Separate) else 1)
  assert _ids(again) == _ids(whole)
  for stored, made in zip(again, whole, strict=True):
    assert stored.result.details.keys.keys() == made.result.details.keys.keys()
    for kernel, key_BxF in made.result.details.keys.items():
      np.testing.assert_array_equal(stored.result.details.keys[kernel], key_BxF)


@several
def test_stored_fine_tuning_is_not_repeated(tmp_path, monkeypatch, batching):
  method = methods.ft_w(layers=(1,), num_epochs=2)
  first = _ids(_run(batching(2), method, store=tmp_path))
  monkeypatch.setattr(FineTuning, 'edit', None)  # whoever edits again fails
  assert _ids(_run(batching(2), method, store=tmp_path)) == first


def test_stored_batches_of_other_settings_are_made_anew(tmp_path):
  """Keys that were not accumulated are not taken for none."""
  _run(Sequential(2), ALPHAEDIT, store=tmp_path)
  again = _run(Sequential(2, accumulate_keys=True), ALPHAEDIT, store=tmp_path)
  assert _ids(again) == _ids(_run(Sequential(2, accumulate_keys=True), ALPHAEDIT))


def test_a_stored_batch_is_a_patch_file(tmp_path):
  found = _run(Sequential(2, accumulate_keys=True), store=tmp_path)
  files = sorted((tmp_path / 'batches').iterdir())
  assert [Patch.load(file).id for file in files] == _ids(found)
  assert Patch.load(files[1]).provenance['patches_before'] == _ids(found)[:1]


@several
def test_mistakes_are_sentences(batching):
  with pytest.raises(UserError, match='edits_per_batch is 0; give at least 1'):
    _run(batching(0))
  with pytest.raises(UserError, match='nothing to edit'):
    _run(batching(1), requests=[])
