"""The driver: input that is refused, promises of an edit, and resume after a kill."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jedit
from helpers import editing
from helpers.editing import relative
from jedit import methods
from jedit.editing import blocks, contexts, prompts, slots
from jedit.editing.edit import Separate, Sequential, edit
from jedit.evals.evaluate import check_texts, evaluate
from jedit.models.encoding import encode
from jedit.models.language_model import LanguageModel
from jedit.models.load import name_table
from jedit.moments.files import SecondMoments
from jedit.solvers import FactorCache, factor_cache
from jedit.types import Kernel, Record, Request, UserError

REQUESTS = editing.REQUESTS[:3]
CONTEXTS = (('{}',),)
MEMIT = methods.memit(layers=(0, 1), cov_weight=0.5, num_steps=4, weight_decay=0.05)


def _model():
  return editing.language_model('gptj', num_layers=3)


def _edit(method=MEMIT, requests=REQUESTS, lm=None, **settings):
  lm = lm or _model()
  settings = {'contexts': CONTEXTS, 'moments': editing.second_moments(lm, method), **settings}
  return edit(lm, requests, method, settings.pop('moments'), **settings)


def _assert_same_bits(ours, theirs):
  ours, theirs = ours.patch, theirs.patch
  assert ours.updates.keys() == theirs.updates.keys()
  for path, update in ours.updates.items():
    np.testing.assert_array_equal(update.value(), theirs.updates[path].value())
  assert ours.id == theirs.id


@pytest.mark.parametrize(
  ('settings', 'words'),
  [
    (dict(requests=[]), 'nothing to edit; give at least one request'),
    (dict(target_batch_size=0), 'target_batch_size is 0; give at least 1'),
    (dict(method=methods.memit(layers=(1, 3))), r'layers is \(1, 3\), .* layers 0 to 2; choose'),
    (dict(moments=SecondMoments({})), 'no second moments of the mlp kernel in layer 0 .*nothing'),
    (
      dict(moments=SecondMoments({Kernel(0, 'mlp'): np.eye(24), Kernel(1, 'attn'): np.eye(16)})),
      'no second moments of the mlp kernel in layer 1 .there is 0/mlp, 1/attn.',
    ),
    (
      dict(moments=SecondMoments({Kernel(0, 'mlp'): np.eye(24), Kernel(1, 'mlp'): np.eye(16)})),
      r'mlp kernel in layer 1 have shape \(16, 16\), the model wants \(24, 24\); collect',
    ),
    (dict(contexts=[['A. {}']]), "first context is 'A. {}'"),
    (dict(moments=None), 'Method memit needs second moments; give those of jedit.statistics'),
    (
      dict(method=methods.rome(layers=(1,))),
      'one edit at a time, not 3; .*edits_per_batch 1',
    ),
    (
      dict(method=methods.emmet(layers=(1,), key_ridge=0.0), requests=list(REQUESTS[:1]) * 25),
      '25 edits cannot all hold exactly with keys of 24 dimensions; raise key_ridge',
    ),
    (dict(contexts=[]), 'contexts is empty'),
    (dict(contexts=[['{}', 'no hole']]), "context 'no hole' has no '{}'"),
  ],
)
def test_mistakes_are_sentences(settings, words):
  with pytest.raises(UserError, match=words):
    _edit(**settings)


def test_a_method_by_name_is_sent_to_the_presets():
  with pytest.raises(UserError, match=r"The method is 'pmet'; .*jedit.preset\('pmet', 'gptj-6b'\)"):
    edit(_model(), REQUESTS, 'pmet')
  assert jedit.preset('pmet', 'gptj-6b').name == 'pmet'


def test_factors_of_other_second_moments_are_refused():
  moments = editing.second_moments(_model(), MEMIT)
  with pytest.raises(UserError, match='The factors are of other second moments; make them'):
    _edit(moments=moments, factors=FactorCache(editing.second_moments(_model(), MEMIT)))


def test_factors_are_shared_by_the_edits_that_are_given_them(monkeypatch):
  made, make = [], factor_cache.make_factor
  monkeypatch.setattr(factor_cache, 'make_factor', lambda *a: made.append(1) or make(*a))
  moments = editing.second_moments(_model(), MEMIT)
  factors = FactorCache(moments)
  shared = [_edit(moments=moments, factors=factors) for _ in range(2)]
  assert len(made) == len(MEMIT.kernels)
  alone = _edit(moments=moments)
  assert len(made) == 2 * len(MEMIT.kernels)
  for result in shared:
    _assert_same_bits(result, alone)


def test_contexts_are_sampled_once_for_all_batches(monkeypatch):
  sampled, sample = [], contexts.sample_contexts
  monkeypatch.setattr(contexts, 'sample_contexts', lambda *a: sampled.append(a) or sample(*a))
  result = _edit(contexts=None, seed=5, batching=Sequential(1))
  assert [seed for _, seed in sampled] == [5]
  groups = [list(group) for group in sample(_model(), 5)]
  assert [b.patch.provenance['contexts'] for b in result.batches] == [groups] * 3


def test_moments_of_both_kernels_have_their_own_sizes():
  method = methods.pmet(layers=(1,), write=('attn', 'mlp'))
  moments = SecondMoments({Kernel(1, 'mlp'): np.eye(24), Kernel(1, 'attn'): np.eye(24)})
  with pytest.raises(
    UserError, match=r'attn kernel in layer 1 have shape \(24, 24\), .*\(16, 16\)'
  ):
    _edit(method, moments=moments)


def test_a_target_that_is_not_finite_names_its_record():
  lm = _model()
  texts = [set(lm.tokenizer(text)['input_ids']) for text in editing.texts(REQUESTS)]
  only_second = min(texts[1] - texts[0] - texts[2])
  embedding = lm.base['embed']['embedding'].at[only_second].set(jnp.nan)
  base = {**lm.base, 'embed': {'embedding': embedding}}
  broken = LanguageModel(lm.config, base, lm.tokenizer, lm.hf_config, '', lm.fingerprint)
  words = "target of record 12 .'Ove plays the' -> 'violin'. is not finite at 'block' in layer"
  with pytest.raises(UserError, match=words):
    _edit(lm=broken)


def test_the_model_is_unchanged_and_the_patch_has_its_provenance():
  lm = _model()
  before = jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), lm.params)
  result = _edit(lm=lm, seed=5)
  patch, details = result.patch, result.details
  assert jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), lm.params) == before
  assert lm.patches == ()
  assert set(patch.updates) == {'block_0/mlp/down/kernel', 'block_1/mlp/down/kernel'}
  assert patch.provenance['model'] == lm.fingerprint
  assert patch.provenance['method']['name'] == 'memit'
  assert patch.provenance['num_edits'] == 3 and patch.provenance['seed'] == 5
  assert patch.provenance['contexts'] == [list(group) for group in CONTEXTS]
  assert details.contexts == CONTEXTS
  assert set(result.seconds) == {'targets', 'keys', 'solve'}
  assert set(details.keys) == set(details.residuals) == {Kernel(0, 'mlp'), Kernel(1, 'mlp')}
  assert details.solve_errors.keys() == details.keys.keys()
  assert 0 < max(details.solve_errors.values()) < 1e-12
  assert result.batches == ()
  assert [row.request for row in details.rows] == list(REQUESTS)
  _assert_same_bits(_edit(lm=lm, seed=5), result)


def test_conflicts_are_reported_and_the_result_is_finite(caplog):
  contradiction = dataclasses.replace(REQUESTS[0], target_new='jazz')
  same_subject = dataclasses.replace(REQUESTS[1], prompt='{} was')
  for method in (MEMIT, methods.emmet(layers=(1,), num_steps=3)):
    caplog.clear()
    patch = _edit(method, [*REQUESTS, contradiction, same_subject]).patch
    assert '1 prompts have several targets' in caplog.text
    assert '2 subjects occur in several requests' in caplog.text
    for update in patch.updates.values():
      assert np.isfinite(update.value()).all()


def test_a_method_without_second_moments_needs_none():
  lm = _model()
  method = methods.rome(layers=(1,), use_cov=False, num_steps=3)
  result = edit(lm, REQUESTS[:1], method, contexts=CONTEXTS)
  same = _edit(
    methods.rome(layers=(1,), num_steps=3),
    REQUESTS[:1],
    lm,
    moments=SecondMoments({Kernel(1, 'mlp'): np.eye(24)}),
  )
  for path, update in result.patch.updates.items():
    assert relative(update.value(), same.patch.updates[path].value()) < 1e-6


def _count_blocks(monkeypatch, die_after=None):
  """Counts the blocks that are optimised, and kills the run after some of them."""
  run_block, ran = slots._run_block, []

  def counted(*arguments, **settings):
    if len(ran) == die_after:
      raise KeyboardInterrupt
    result = run_block(*arguments, **settings)
    ran.append(1)
    return result

  monkeypatch.setattr(slots, '_run_block', counted)
  return ran


def test_a_killed_edit_goes_on_with_the_same_bits(tmp_path, monkeypatch):
  monkeypatch.setattr(blocks, '_ROUNDS_PER_BLOCK', 1)  # a block for each edit
  whole = _edit(target_batch_size=1)
  with monkeypatch.context() as patch:
    _count_blocks(patch, die_after=2)
    with pytest.raises(KeyboardInterrupt):
      _edit(target_batch_size=1, store=tmp_path)
  with monkeypatch.context() as patch:
    ran = _count_blocks(patch)
    _assert_same_bits(_edit(target_batch_size=1, store=tmp_path), whole)
    assert len(ran) == 1
    _edit(target_batch_size=1, store=tmp_path)
    assert len(ran) == 1
  # Whatever the targets depend on makes them anew.
  with monkeypatch.context() as patch:
    ran = _count_blocks(patch)
    other = [dataclasses.replace(REQUESTS[0], target_new='jazz'), *REQUESTS[1:]]
    _assert_same_bits(
      _edit(requests=other, target_batch_size=1, store=tmp_path),
      _edit(requests=other, target_batch_size=1),
    )
    assert len(ran) == 6


@pytest.mark.parametrize(
  ('family', 'method'),
  [
    ('gpt_neox', methods.pmet(layers=(1,), write=('attn', 'mlp'), num_steps=4)),
    ('gpt2', MEMIT),
  ],
)
def test_an_edit_is_reverted_and_exported(family, method, tmp_path):
  """The exported file differs from the loaded one in the patched kernels alone."""
  lm = editing.language_model(family)
  before = jax.tree.map(np.asarray, lm.params)
  result = _edit(method, REQUESTS[:2], lm)
  edited = lm.apply(result)
  texts = editing.texts(REQUESTS)
  assert np.abs(edited.logits(texts) - lm.logits(texts)).max() > 1e-3
  jax.tree.map(np.testing.assert_array_equal, edited.revert(result).params, before)

  lm.export(tmp_path / 'before')
  edited.export(tmp_path / 'after')
  stored = [load_file(tmp_path / name / 'model.safetensors') for name in ('before', 'after')]
  table = name_table(lm.config)
  changed = {table[name][0] for name in table if not np.array_equal(*(s[name] for s in stored))}
  assert changed == set(result.patch.updates)
  assert stored[0].keys() == stored[1].keys() == table.keys()

  torch, transformers = (pytest.importorskip(name) for name in ('torch', 'transformers'))
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'after')
  for text, ours in zip(texts, edited.logits(texts), strict=True):
    with torch.no_grad():
      theirs = model(torch.tensor([lm.tokenizer(text)['input_ids']])).logits[0, -1]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_texts_reach_to_the_last_learned_position_and_not_beyond():
  lm = editing.language_model('gpt2')
  limit = lm.config.position_limit
  assert limit == 128

  def request(num_tokens):
    """Its text, object included, has so many tokens."""
    short = Request('{} is a', 'Marta', 'violin', case_id=1)
    ids = encode(lm.tokenizer, 'The {} is a', subject='Marta', target='violin').ids
    long = dataclasses.replace(short, prompt='The' * (num_tokens - len(ids) + 1) + ' {} is a')
    (row,) = prompts.encode_edits(lm.tokenizer, [long], CONTEXTS)
    assert len(row.with_target[0].ids) == num_tokens
    return long

  record = Record(1, request(limit))
  table = evaluate(lm.apply(_edit(requests=record, lm=lm)), [record], lm)
  assert np.isfinite(table.after['efficacy_acc']).all()
  message = f'has {limit + 1} tokens, but the model has positions for {limit}; shorten it'
  long = request(limit + 1)
  for call in (
    lambda: _edit(requests=[REQUESTS[0], long], lm=lm),
    lambda: _edit(requests=[REQUESTS[0], long], lm=lm, batching=Sequential(1)),
    lambda: _edit(requests=[REQUESTS[0], long], lm=lm, batching=Separate(1)),
    lambda: edit(lm, [long], methods.ft(layers=(0,))),
    lambda: evaluate(lm, [dataclasses.replace(record, request=long)]),
    lambda: check_texts(lm.tokenizer, lm.config, [dataclasses.replace(record, request=long)]),
  ):
    with pytest.raises(UserError, match=message):
      call()
