"""The driver: what is refused, what an edit promises, and runs that go on after a kill."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from helpers import editing
from helpers.editing import relative
from jedit import methods
from jedit.editing import prompts, schedule
from jedit.editing.edit import edit, find_targets
from jedit.evals.evaluate import check_texts, evaluate
from jedit.models import site
from jedit.models.encoding import encode
from jedit.models.language_model import LanguageModel
from jedit.models.load import fingerprint, name_table
from jedit.moments.files import SecondMoments
from jedit.types import Kernel, Record, Request, UserError

REQUESTS = editing.REQUESTS[:3]
CONTEXTS = (('{}',),)
MEMIT = methods.memit(layers=(0, 1), cov_weight=0.5, num_steps=4, weight_decay=0.05)
JEEP = dict(layers_low=(0,), layers_high=(1,), cov_weight_low=0.5, cov_weight_high=0.5, num_steps=3)


def _model():
  return editing.language_model('gptj', num_layers=3)


def _edit(method=MEMIT, requests=REQUESTS, lm=None, **settings):
  lm = lm or _model()
  settings = {'contexts': CONTEXTS, 'stats': editing.second_moments(lm, method), **settings}
  return edit(lm, requests, method, settings.pop('stats'), **settings)


def _assert_same_bits(ours, theirs):
  assert ours.updates.keys() == theirs.updates.keys()
  for path, update in ours.updates.items():
    np.testing.assert_array_equal(update.value(), theirs.updates[path].value())
  assert ours.id == theirs.id


@pytest.mark.parametrize(
  ('settings', 'words'),
  [
    (dict(requests=[]), 'nothing to edit; give at least one request'),
    (dict(batch_size=0), 'batch_size is 0; give at least 1'),
    (dict(method=methods.memit(layers=(1, 3))), r'layers is \(1, 3\), .* layers 0 to 2; choose'),
    (dict(stats=SecondMoments({})), 'no second moments of the mlp kernel in layer 0 .*nothing'),
    (
      dict(stats=SecondMoments({Kernel(0, 'mlp'): np.eye(24), Kernel(1, 'attn'): np.eye(16)})),
      'no second moments of the mlp kernel in layer 1 .there is 0/mlp, 1/attn.',
    ),
    (
      dict(stats=SecondMoments({Kernel(0, 'mlp'): np.eye(24), Kernel(1, 'mlp'): np.eye(16)})),
      r'mlp kernel in layer 1 have shape \(16, 16\), the model wants \(24, 24\); collect',
    ),
    (dict(contexts=[['A. {}']]), "first context is 'A. {}'"),
    (dict(stats=None), 'Method memit needs second moments; give those of jedit.statistics'),
    (dict(method=methods.rome(layers=(1,))), 'one edit at a time, not 3; edit one by one'),
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


def test_moments_of_both_kernels_have_their_own_sizes():
  method = methods.pmet(layers=(1,), write=('attn', 'mlp'))
  stats = SecondMoments({Kernel(1, 'mlp'): np.eye(24), Kernel(1, 'attn'): np.eye(24)})
  with pytest.raises(
    UserError, match=r'attn kernel in layer 1 have shape \(24, 24\), .*\(16, 16\)'
  ):
    _edit(method, stats=stats)


def test_a_target_that_is_not_finite_names_its_record():
  lm = _model()
  texts = [set(lm.tokenizer(text)['input_ids']) for text in editing.texts(REQUESTS)]
  only_second = min(texts[1] - texts[0] - texts[2])
  embedding = lm.base['embed']['embedding'].at[only_second].set(jnp.nan)
  base = {**lm.base, 'embed': {'embedding': embedding}}
  made = fingerprint(lm.model.replace(params=base))
  broken = LanguageModel(lm.config, base, lm.tokenizer, lm.hf_config, '', made)
  words = "target of record 12 .'Ove plays the' -> 'violin'. is not finite at 'block' in layer"
  with pytest.raises(UserError, match=words):
    _edit(lm=broken)


def test_the_model_is_as_it_was_and_the_patch_says_where_it_is_from():
  lm = _model()
  before = jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), lm.params)
  patch, details = _edit(lm=lm, details=True, seed=5)
  assert jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), lm.params) == before
  assert lm.patches == ()
  assert set(patch.updates) == {'block_0/mlp/down/kernel', 'block_1/mlp/down/kernel'}
  assert patch.provenance['model'] == lm.fingerprint
  assert patch.provenance['method']['name'] == 'memit'
  assert patch.provenance['num_edits'] == 3 and patch.provenance['seed'] == 5
  assert patch.provenance['contexts'] == [list(group) for group in CONTEXTS]
  assert details.contexts == CONTEXTS
  assert set(details.seconds) == {'targets', 'keys', 'solve'}
  assert set(details.keys) == set(details.residuals) == {Kernel(0, 'mlp'), Kernel(1, 'mlp')}
  assert details.solve_errors.keys() == details.keys.keys()
  assert 0 < max(details.solve_errors.values()) < 1e-12
  assert details.updates.keys() == patch.updates.keys()
  assert [row.request for row in details.rows] == list(REQUESTS)
  _assert_same_bits(_edit(lm=lm, seed=5), patch)


@pytest.mark.parametrize('family', ['gptj', 'gpt2'])
def test_an_edited_model_reaches_its_targets(family):
  """Nothing preserved and no contexts: on the bare prompts, the block's output becomes z."""
  lm = editing.language_model(family)
  method = methods.emmet(layers=(1,), key_ridge=0.0, num_steps=4, weight_decay=0.05)
  patch, details = _edit(method, lm=lm, details=True)
  edited = lm.apply(patch)
  for i, request in enumerate(REQUESTS):
    row = encode(lm.tokenizer, request.prompt, subject=request.subject)
    token_1xT = np.array([row.ids], np.int32)
    for model, expected in ((lm, details.targets[0].init), (edited, details.z)):
      _, seen = model.model(token_1xT, taps=[site(1, 'block_out')])
      value_D = np.asarray(seen[site(1, 'block_out')])[0, row.subject_last]
      assert relative(value_D, expected['block'][i]) < 1e-3
  assert relative(details.z['block'], details.targets[0].init['block']) > 0.05


def test_without_a_step_nothing_changes():
  """One evaluation takes no step: δ = 0 and z = v₀, so all residuals are rounding."""
  lm = _model()
  method = methods.memit(layers=(0, 1), cov_weight=0.5, num_steps=1)
  patch, details = _edit(method, lm=lm, details=True)
  np.testing.assert_array_equal(details.targets[0].delta['block'], 0)
  np.testing.assert_array_equal(details.targets[0].num_steps, 1)
  texts = editing.texts(REQUESTS)
  np.testing.assert_allclose(lm.apply(patch).logits(texts), lm.logits(texts), rtol=0, atol=1e-3)
  assert np.abs(lm.apply(_edit(lm=lm)).logits(texts) - lm.logits(texts)).max() > 0.1


def test_equal_keys_under_an_exact_constraint_name_layer_records_and_field():
  method = methods.emmet(layers=(1,), key_ridge=0.0, num_steps=2)
  twice = dataclasses.replace(REQUESTS[0], target='jazz', case_id=99)
  lm = _model()
  words = r'mlp kernel in layer 1 over 4 edits failed: .*raise key_ridge .*record 99 .*No model was'
  with pytest.raises(UserError, match=words):
    _edit(method, [*REQUESTS, twice], lm=lm)
  assert lm.patches == ()


def test_conflicts_are_reported_and_the_result_is_finite(caplog):
  contradiction = dataclasses.replace(REQUESTS[0], target='jazz')
  same_subject = dataclasses.replace(REQUESTS[1], prompt='{} was')
  for method in (MEMIT, methods.emmet(layers=(1,), num_steps=3)):
    caplog.clear()
    patch = _edit(method, [*REQUESTS, contradiction, same_subject])
    assert '1 prompts have several targets' in caplog.text
    assert '2 subjects occur in several requests' in caplog.text
    for update in patch.updates.values():
      assert np.isfinite(update.value()).all()


def test_targets_found_before_give_the_same_bits(tmp_path):
  lm = _model()
  found = find_targets(lm, REQUESTS, MEMIT, contexts=CONTEXTS, store=tmp_path)
  _assert_same_bits(_edit(lm=lm, targets=found), _edit(lm=lm))
  part = _edit(lm=lm, requests=REQUESTS[1:], targets=found.part(slice(1, 3)))
  alone = _edit(lm=lm, requests=REQUESTS[1:])
  for path, update in part.updates.items():
    assert relative(update.value(), alone.updates[path].value()) < 1e-4


def test_earlier_keys_are_moved_less():
  lm = _model()
  _, details = _edit(lm=lm, requests=REQUESTS[:1], details=True)
  kernel, path = Kernel(0, 'mlp'), 'block_0/mlp/down/kernel'
  key_1xF = details.keys[kernel]
  free = _edit(lm=lm, requests=REQUESTS[1:])
  bound = _edit(lm=lm, requests=REQUESTS[1:], earlier_keys=details.keys)
  moved = [np.linalg.norm(key_1xF @ patch.updates[path].value()) for patch in (free, bound)]
  assert moved[1] < 0.9 * moved[0]


def test_a_method_without_second_moments_needs_none():
  lm = _model()
  method = methods.rome(layers=(1,), use_cov=False, num_steps=3)
  patch = edit(lm, REQUESTS[:1], method, contexts=CONTEXTS)
  stats = SecondMoments({Kernel(1, 'mlp'): np.eye(24)})
  same = edit(lm, REQUESTS[:1], methods.rome(layers=(1,), num_steps=3), stats, contexts=CONTEXTS)
  for path, update in patch.updates.items():
    assert relative(update.value(), same.updates[path].value()) < 1e-6


def _count_blocks(monkeypatch, die_after=None):
  """Counts the blocks that are optimised, and kills the run after some of them."""
  run_block, ran = schedule._run_block, []

  def counted(*arguments, **settings):
    if len(ran) == die_after:
      raise KeyboardInterrupt
    result = run_block(*arguments, **settings)
    ran.append(1)
    return result

  monkeypatch.setattr(schedule, '_run_block', counted)
  return ran


def test_a_killed_edit_goes_on_with_the_same_bits(tmp_path, monkeypatch):
  monkeypatch.setattr(prompts, '_ROUNDS_PER_BLOCK', 1)  # a block for each edit
  whole = _edit(batch_size=1)
  store = tmp_path / 'targets'
  with monkeypatch.context() as patch:
    _count_blocks(patch, die_after=2)
    with pytest.raises(KeyboardInterrupt):
      _edit(batch_size=1, store=store)
  with monkeypatch.context() as patch:
    ran = _count_blocks(patch)
    _assert_same_bits(_edit(batch_size=1, store=store), whole)
    assert len(ran) == 1
    _edit(batch_size=1, store=store)
    assert len(ran) == 1
  # Whatever the targets depend on makes them anew.
  with monkeypatch.context() as patch:
    ran = _count_blocks(patch)
    other = [dataclasses.replace(REQUESTS[0], target='jazz'), *REQUESTS[1:]]
    _assert_same_bits(
      _edit(requests=other, batch_size=1, store=store), _edit(requests=other, batch_size=1)
    )
    assert len(ran) == 6


def test_targets_of_a_later_stage_depend_on_what_was_written(tmp_path):
  method = methods.jeep(**JEEP, is_joint=False)
  lm = _model()
  stats = [editing.second_moments(lm, method, seed) for seed in (0, 1)]
  first = _edit(method, stats=stats[0], store=tmp_path)
  second = _edit(method, stats=stats[1], store=tmp_path)
  assert first.id != second.id
  _assert_same_bits(second, _edit(method, stats=stats[1]))


def test_separate_stages_are_two_edits_in_a_row():
  lm = _model()
  patch, details = _edit(methods.jeep(**JEEP, is_joint=False), lm=lm, details=True)
  low = _edit(methods.jeep(**JEEP, optimise=('low',)), lm=lm)
  high = _edit(methods.jeep(**JEEP, optimise=('high',)), lm=lm.apply(low))
  assert set(low.updates) == {'block_0/mlp/down/kernel'}
  assert set(high.updates) == {'block_1/mlp/down/kernel'}
  assert len(details.targets) == 2 and set(details.z) == {'low', 'high'}
  for part in (low, high):
    for path, update in part.updates.items():
      assert relative(patch.updates[path].value(), update.value()) < 1e-6
  assert high.provenance['patches_before'] == [low.id]
  joint = _edit(methods.jeep(**JEEP), lm=lm)
  path = 'block_1/mlp/down/kernel'
  assert relative(joint.updates[path].value(), patch.updates[path].value()) > 1e-3


def test_regions_that_are_not_written_are_still_optimised():
  lm = _model()
  joint, details = _edit(methods.jeep(**JEEP), lm=lm, details=True)
  for name, path in (('low', 'block_0/mlp/down/kernel'), ('high', 'block_1/mlp/down/kernel')):
    patch, part = _edit(methods.jeep(**JEEP, write=(name,)), lm=lm, details=True)
    assert set(patch.updates) == {path}
    for delta, value in details.z.items():
      np.testing.assert_array_equal(part.z[delta], value)
    # High keys are read on the model with the low region written; here they are not.
    changed = relative(patch.updates[path].value(), joint.updates[path].value())
    assert changed == 0 if name == 'low' else changed > 1e-3


@pytest.mark.parametrize(
  ('family', 'method'),
  [
    ('gpt_neox', methods.pmet(layers=(1,), write=('attn', 'mlp'), num_steps=4)),
    ('gpt2', MEMIT),
  ],
)
def test_an_edit_is_reverted_and_exported(family, method, tmp_path):
  """The file that leaves differs from the one that came in only where the patch says so."""
  lm = editing.language_model(family)
  before = jax.tree.map(np.asarray, lm.params)
  patch = _edit(method, REQUESTS[:2], lm)
  edited = lm.apply(patch)
  texts = editing.texts(REQUESTS)
  assert np.abs(edited.logits(texts) - lm.logits(texts)).max() > 1e-3
  jax.tree.map(np.testing.assert_array_equal, edited.revert(patch).params, before)

  lm.export(tmp_path / 'before')
  edited.export(tmp_path / 'after')
  stored = [load_file(tmp_path / name / 'model.safetensors') for name in ('before', 'after')]
  table = name_table(lm.config)
  changed = {table[name][0] for name in table if not np.array_equal(*(s[name] for s in stored))}
  assert changed == set(patch.updates)
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

  patch = _edit(requests=[request(limit)], lm=lm)
  record = Record(1, request(limit))
  table = evaluate(lm.apply(patch), [record], lm)
  assert np.isfinite(table.after['efficacy_acc']).all()
  message = f'has {limit + 1} tokens, but the model has positions for {limit}; shorten it'
  long = request(limit + 1)
  for call in (
    lambda: _edit(requests=[REQUESTS[0], long], lm=lm),
    lambda: find_targets(lm, [long], MEMIT, contexts=CONTEXTS),
    lambda: edit(lm, [long], methods.ft(layers=(0,))),
    lambda: evaluate(lm, [dataclasses.replace(record, request=long)]),
    lambda: check_texts(lm, [dataclasses.replace(record, request=long)]),
  ):
    with pytest.raises(UserError, match=message):
      call()
