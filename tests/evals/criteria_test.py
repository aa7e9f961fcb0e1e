"""Criteria of KnowEdit, RippleEdits and MQuAKE against plain loops and by hand."""

import dataclasses
import math

import numpy as np
import pytest

import jedit
from helpers import tiny
from jedit.evals import criteria, evaluate, metrics
from jedit.models.patch import Patch, Update
from jedit.types import Criterion, Query, Record, Request, UserError

PROMPTS = ('Marta lives in', 'Ove plays the', 'People of Zürich play')


@pytest.fixture(scope='module')
def lm(made):
  return jedit.load(made / 'model')


@pytest.fixture(scope='module')
def edited(lm):
  """The model with an update that moves many of its top tokens."""
  rng = np.random.default_rng(0)
  update = Update.from_factors(rng.normal(size=(48, 1)), 0.1 * rng.normal(size=(1, 32)))
  path = '/'.join(jedit.models.kernel_path(jedit.Kernel(1, 'mlp')))
  return lm.apply(Patch({path: update}, {}))


def _record(*tests, case_id=0, **fields):
  request = Request('{} lives in', 'Marta', 'Paris', None, case_id)
  return Record(case_id, request, criteria=tests, **fields)


def _tops(lm, prompt, answer):
  """The answer's tokens, and the top token at each of their places."""
  before = lm.tokenizer(prompt)['input_ids']
  after = lm.tokenizer(f'{prompt} {answer}')['input_ids'][len(before) :]
  logits_TxV = tiny.logits(lm.model, [*before, *after])
  return after, logits_TxV[len(before) - 1 : -1].argmax(-1).tolist()


def test_portability_and_locality_are_shares_of_top_tokens(lm, edited):
  first = lm.generate([PROMPTS[0]], max_new_tokens=3)[0].removeprefix(PROMPTS[0]).strip()
  answers = ('jazz and violin', 'Swahili', 'in São Tomé')
  tests = [
    Criterion(name, (Query(prompt, ((answer, 'other'),)),))
    for name, prompt, answer in [
      ('reasoning', PROMPTS[0], first or 'x'),
      ('reasoning', PROMPTS[1], answers[0]),
      ('subject_aliasing', PROMPTS[2], answers[1]),
      ('relation_specificity', PROMPTS[0], answers[2]),
      ('relation_specificity', PROMPTS[1], answers[0]),
    ]
  ]
  others = [_record(case_id=1), _record(tests[1], case_id=2)]
  table = evaluate.evaluate(edited, [_record(*tests), *others], before=lm)

  def share(model, test):
    after, tops = _tops(model, test.queries[0].prompt, test.queries[0].answers[0][0])
    return 100 * np.mean(np.equal(after, tops))

  def kept(test):
    asked = test.queries[0].prompt, test.queries[0].answers[0][0]
    return 100 * np.mean(np.equal(_tops(lm, *asked)[1], _tops(edited, *asked)[1]))

  for values, model in ((table.before, lm), (table.after, edited)):
    reasoning = np.mean([share(model, test) for test in tests[:2]])
    assert values['reasoning'][0] == pytest.approx(reasoning)
    assert values['portability'][0] == pytest.approx(np.mean([reasoning, share(model, tests[2])]))
    assert values['portability'][2] == pytest.approx(share(model, tests[1]))
    assert math.isnan(values['portability'][1])
    assert 'one_hop' not in values and 'multi_hop' not in values
  assert table.after['locality'][0] == pytest.approx(np.mean([kept(test) for test in tests[3:]]))
  assert 0 < table.after['locality'][0] < 100, 'the edit moves some of them'
  assert 'locality' not in table.before
  assert table.metrics['reasoning']['after']['n'] == 2


def test_texts_hold_every_answer_by_one_of_its_names(lm, edited):
  text = edited.generate([PROMPTS[0]], max_new_tokens=criteria.NEW_TOKENS)[0][len(PROMPTS[0]) :]
  words = text.split()
  found = Query(PROMPTS[0], (('nowhere to be found', words[0]), (words[-1],)))
  lacking = Query(PROMPTS[0], ((words[0],), ('nowhere to be found',)))
  record = _record(
    Criterion('ripple_edit', (found,)),
    Criterion('ripple_preservation', (lacking, found)),
    Criterion('ripple_preservation', (lacking, found), needs_all=True),
    Criterion('ripple_compositionality_1', (found,), conditions=(lacking,)),
  )
  [outcomes] = criteria.measure(edited, [record])
  assert outcomes == [([True], []), ([False, True], []), ([False, True], []), ([True], [False])]
  table = evaluate.evaluate(edited, [record], before=lm)
  assert table.after['ripple_edit'] == [100] and table.after['ripple_preservation'] == [50]
  assert math.isnan(table.after['ripple_compositionality_1'][0]), 'its condition fails before'
  assert any('RippleEdits' in note for note in table.notes)


def _values(before, *after):
  """Values after an edit of a record for which the outcomes are given."""
  tests = [Criterion('ripple_edit', (Query('a', (('b',),)),))]
  tests += [Criterion('ripple_preservation', (Query('a', (('b',),)),))] * (len(after) - 1)
  found = [[([each], [True]) for each in after]]
  old = None if before is None else [[([False], [each]) for each in before]]
  return criteria.values([_record(*tests)], old, found)


def test_tests_count_where_conditions_hold_and_the_edit_took_effect():
  states = _values([True, True, False, True], True, True, False, False)
  assert states['after']['ripple_preservation'] == [50]  # of the second and the fourth
  assert states['before']['ripple_preservation'] == [0]
  failed = _values([True, True], False, True)
  assert failed['after']['ripple_edit'] == [0]
  assert math.isnan(failed['after']['ripple_preservation'][0])
  alone = _values(None, True, True, False, False)
  assert alone.keys() == {'after'}
  assert alone['after']['ripple_preservation'] == [pytest.approx(100 / 3)]


def test_an_instance_is_right_if_one_of_its_questions_is(lm):
  demonstrations = 'Q: Where is Ove? A: Paris\n'
  asked = [f'Q: Where is Ove? A: Paris\nQ: {text} A:' for text in ('Who?', 'Why?')]
  texts = lm.generate(asked, max_new_tokens=criteria.NEW_TOKENS)
  answers = [text[len(prompt) :].strip().split('\n')[0] for text, prompt in zip(texts, asked)]
  right = answers[1].split('Q:')[0].strip().rstrip('.')
  queries = [Query('Who?', (('no', 'none'),)), Query('Why?', (('no', right or 'x'),))]
  records = [
    _record(instance=1),
    _record(Criterion('multi_hop', tuple(queries)), case_id=1, instance=1),
    _record(Criterion('multi_hop', tuple(queries[:1])), case_id=2, instance=2),
  ]
  assert criteria.rows(records, demonstrations)[1] == asked
  table = evaluate.evaluate(lm, records, demonstrations=demonstrations)
  np.testing.assert_array_equal(table.after['multi_hop'], [np.nan, 100, 0])
  assert not any('demonstrations' in note for note in table.notes)
  assert criteria.rows(records)[1] == ['Q: Who? A:', 'Q: Why? A:']


def test_finished_chunks_have_the_criteria(lm, edited, tmp_path, monkeypatch):
  tests = (
    Criterion('relation_specificity', (Query(PROMPTS[0], (('jazz',),)),)),
    Criterion('multi_hop', (Query('Who?', (('Ove',),)),)),
  )
  records = [_record(*tests, case_id=n) for n in range(3)]
  monkeypatch.setattr(evaluate, '_CHUNK', 2)
  store = tmp_path / 'chunks.jsonl'
  first = evaluate.evaluate(edited, records, before=lm, store=store)
  monkeypatch.setattr(evaluate, '_run', None)  # calling it would fail
  again = evaluate.evaluate(edited, records, before=lm, store=store)
  for name, values in first.after.items():
    np.testing.assert_array_equal(again.after[name], values)
  assert set(first.after['locality']) == set(first.after['locality'][:1])


def test_texts_that_are_too_long_are_refused_before_any_work(lm):
  record = _record(Criterion('multi_hop', (Query('why ' * 120, (('x',),)),)))
  config = dataclasses.replace(lm.config, rope=None)
  with pytest.raises(UserError, match='has positions for 128'):
    evaluate.check_texts(lm.tokenizer, config, [record])


def test_every_criterion_is_a_metric():
  named = {name for name, each in metrics.METRICS.items() if each.evidence == metrics.CRITERIA}
  assert set(criteria._WAYS) | {'portability', 'locality'} == named
