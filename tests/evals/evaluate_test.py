"""Batched scoring against a plain loop, and the table it ends in."""

import dataclasses
import functools
import json
import math
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import transformers
from absl.testing import absltest, parameterized

from jedit import types
from jedit.evals import evaluate as evaluate_lib
from jedit.evals import metrics, scoring
from jedit.evals.samples import Sample, sample_texts
from jedit.evals.scoring import Scores
from jedit.models import FAMILIES, Model, encoding, init_params
from jedit.parallel.shapes import pad

_VOCAB = 96
_HF_CONFIG = {
  'gptj': dict(vocab_size=_VOCAB, n_layer=2, n_embd=32, n_head=4, n_positions=64, rotary_dim=4),
  'llama': dict(
    vocab_size=_VOCAB,
    num_hidden_layers=2,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
  ),
}


@functools.cache
def _model(family='gptj', seed=0):
  config = FAMILIES[family].read_config(_HF_CONFIG[family], 'float32')
  params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(seed))
  # Larger weights: the untrained model would call every token equally likely.
  return Model(jax.tree.map(lambda x: x * 4, params), config=config)


def _tokenizer():
  """Words of the test's sentences; anything else is one unknown token."""
  words = 'Anna Bert lives in works at Rome Oslo New York the old town who where is ? a b c'
  vocab = {word: i for i, word in enumerate(['[UNK]', *words.split()])}
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token='[UNK]'))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token='[UNK]')


def _names(*kinds):
  return [f'{part}{kind}' for kind in kinds for part in metrics.PARTS]


def _lm(seed=0):
  model = jax.tree.map(lambda x: x, _model(seed=seed))  # a test may replace a leaf
  return SimpleNamespace(config=model.config, model=model, tokenizer=_tokenizer())


def _record(case_id=7, **fields):
  request = types.Request('{} lives in', 'Anna', 'Rome', target_true='New York', case_id=case_id)
  record = types.Record(
    case_id,
    request,
    paraphrase_prompts=('the old town where Anna lives is', 'a b c Anna is at'),
    neighborhood_prompts=('Bert lives in', 'Bert works in', 'who lives in'),
  )
  return dataclasses.replace(record, **fields)


def _rows(rng, count, longest=40):
  rows = []
  for _ in range(count):
    length = int(rng.integers(2, longest))
    start = int(rng.integers(max(1, length - 5), length))
    ids = tuple(int(i) for i in rng.integers(1, _VOCAB, length))
    rows.append(encoding.Encoded('', ids, None, start - 1, start))
  return rows


@jax.jit
def _padded_logits(model, token_1xT):
  return model.head(model(token_1xT)[0])[0]


def _logits(model, ids):
  """Logits of one row; padded to one length, which causal attention does not see."""
  token_1xT, _ = pad([ids], 64)
  return np.asarray(_padded_logits(model, token_1xT))[: len(ids)]


def _plain_scores(model, row):
  """One row at a time, log-softmax in float64."""
  logits_TxV = _logits(model, row.ids).astype(np.float64)
  logp, is_top = [], []
  for t in range(row.target_start, len(row.ids)):
    logits_V = logits_TxV[t - 1]
    logp.append(logits_V[row.ids[t]] - np.log(np.sum(np.exp(logits_V))))
    is_top.append(int(np.argmax(logits_V)) == row.ids[t])
  return np.array(logp), np.array(is_top)


def _plain_nll(lm, prompt, target):
  row = encoding.encode(lm.tokenizer, prompt, target=target)
  logp, is_top = _plain_scores(lm.model, row)
  return -logp.mean(), is_top


class ScoringTest(parameterized.TestCase):
  @parameterized.parameters('gptj', 'llama')
  def test_batches_agree_with_a_plain_loop(self, family):
    model = _model(family)
    rows = _rows(np.random.default_rng(0), 40)
    # Rows that share all but the last token, three ways, and rows that are equal.
    last = [dataclasses.replace(rows[0], ids=(*rows[0].ids[:-1], i)) for i in (1, 2, 3)]
    rows += [*last, rows[5], rows[5]]
    scores = scoring.score(model, rows, tokens_per_batch=256)
    for n, row in enumerate(rows):
      logp, is_top = _plain_scores(model, row)
      size = len(logp)
      self.assertEqual(scores.length_N[n], size)
      # float32 sums in another order
      np.testing.assert_allclose(scores.logp_NxT[n, :size], logp, atol=2e-5)
      self.assertTrue(np.isnan(scores.logp_NxT[n, size:]).all())
      np.testing.assert_array_equal(scores.is_top_NxT[n, :size], is_top)
      self.assertAlmostEqual(scores.nll_N[n], -logp.mean(), delta=2e-5)
      self.assertEqual(scores.exact_N[n], is_top.all())
      self.assertAlmostEqual(scores.token_acc_N[n], is_top.mean())

  def test_rows_beyond_the_trained_context_do_not_feel_padding(self):
    # With dynamic rotary scaling the angles depend on a row's length, which padding is no part of.
    model = _model('llama')
    rope = dataclasses.replace(model.config.rope, kind='dynamic', factor=2.0, original_positions=6)
    model = model.replace(config=dataclasses.replace(model.config, rope=rope))
    rows = _rows(np.random.default_rng(0), 6, longest=8)
    rows += _rows(np.random.default_rng(1), 1, longest=60)
    alone = scoring.score(model, rows[:6])
    together = scoring.score(model, rows)
    np.testing.assert_allclose(together.nll_N[:6], alone.nll_N, atol=2e-5)

  def test_few_programs_and_bounded_batches(self):
    rows = _rows(np.random.default_rng(0), 500, longest=60)
    plan = scoring.plan_batches(rows, tokens_per_batch=512)
    self.assertLen(plan.shapes, 1)
    for num_rows, length in plan.shapes:
      self.assertLessEqual(num_rows * length, 512)
    answered = [n for batch in plan.batches for n in set(batch.found[2])]
    self.assertCountEqual(answered, range(500))
    self.assertEqual(sum(batch.num_answered for batch in plan.batches), 500)

  def test_batches_are_full(self):
    rows = _rows(np.random.default_rng(0), 800, longest=20)
    plan = scoring.plan_batches(rows, tokens_per_batch=256)
    room = sum(batch.token_NxT.size for batch in plan.batches)
    self.assertGreater(plan.num_tokens / room, 0.95)

  def test_programs_do_not_depend_on_the_number_of_rows(self):
    rows = _rows(np.random.default_rng(0), 500)
    shapes = {scoring.plan_batches(rows[:count]).shapes for count in (150, 300, 500)}
    self.assertLen(shapes, 1)

  def test_long_rows_are_compared_with_a_program_for_short_ones(self):
    rows = [encoding.Encoded('', (number, *[1] * 50), None, 49, 50) for number in range(1, 200)]
    long = encoding.Encoded('', (1,) * 1000, None, 998, 999)
    few, many = (scoring.plan_batches([*rows[:count], long]).shapes for count in (3, 199))
    self.assertEqual(few, ((2, 1024),))  # no gap of the long row holds a short one
    self.assertEqual({size for _, size in many}, {64, 1024})

  def test_a_small_job_is_one_program(self):
    plan = scoring.plan_batches(_rows(np.random.default_rng(0), 20))
    self.assertLen(plan.shapes, 1)

  def test_two_answers_of_one_token_cost_one_pass(self):
    row = encoding.Encoded('', (1, 2, 3), None, 1, 2)
    plan = scoring.plan_batches([row, dataclasses.replace(row, ids=(1, 2, 4))])
    self.assertEqual(plan.num_tokens, 2)

  def test_a_prompt_is_read_once_for_answers_of_several_tokens(self):
    row = encoding.Encoded('', (1, 2, 3, 4), None, 1, 2)
    rows = [row, dataclasses.replace(row, ids=(1, 2, 5, 6, 7))]
    self.assertEqual(scoring.plan_batches(rows).num_tokens, 2 + 1 + 2)

  def test_of_equal_logits_the_lowest_id_is_on_top(self):
    model = _model('gptj')
    model = jax.tree.map(jnp.zeros_like, model)
    row = encoding.Encoded('', (5, 6, 0), None, 1, 2)
    rows = [row, dataclasses.replace(row, ids=(5, 6, 1))]
    scores = scoring.score(model, rows)
    np.testing.assert_array_equal(scores.exact_N, [1, 0])
    np.testing.assert_allclose(scores.nll_N, math.log(_VOCAB), rtol=1e-6)

  def test_a_row_without_prompt_or_answer_is_refused(self):
    for start in (0, 3):
      row = encoding.Encoded('text', (1, 2, 3), None, start - 1, start)
      with self.assertRaises(types.UserError):
        scoring.plan_batches([row])

  def test_a_model_that_returns_nan_has_no_accuracy(self):
    model = _model('gptj')
    model = jax.tree.map(lambda x: x * jnp.nan, model)
    scores = scoring.score(model, _rows(np.random.default_rng(0), 3))
    self.assertTrue(np.isnan(scores.exact_N).all())
    self.assertTrue(np.isnan(scores.token_acc_N).all())


class EvaluateTest(absltest.TestCase):
  def test_values_agree_with_a_plain_loop(self):
    before, after = _lm(0), _lm(1)
    records = [_record(7), _record(9, paraphrase_prompts=('Anna works in',))]
    table = evaluate_lib.evaluate(after, records, before=before)
    for lm, values in ((before, table.before), (after, table.after)):
      for r, record in enumerate(records):
        parts = {
          'efficacy': (('Anna lives in',), 'Rome', 'New York'),
          'paraphrase': (record.paraphrase_prompts, 'Rome', 'New York'),
          'neighborhood': (record.neighborhood_prompts, 'New York', 'Rome'),
        }
        for part, (texts, wanted, other) in parts.items():
          wanted_nll, flags = zip(*[_plain_nll(lm, text, wanted) for text in texts])
          other_nll = [_plain_nll(lm, text, other)[0] for text in texts]
          success = np.mean([w < o for w, o in zip(wanted_nll, other_nll)])
          size = np.mean([math.exp(-w) - math.exp(-o) for w, o in zip(wanted_nll, other_nll)])
          self.assertAlmostEqual(values[part][r], 100 * success)
          self.assertAlmostEqual(values[f'{part}_magnitude'][r], 100 * size, delta=1e-3)
          self.assertAlmostEqual(
            values[f'{part}_acc'][r], 100 * np.mean([flag.all() for flag in flags])
          )

  def test_single_objects_are_scored_by_token_accuracy(self):
    lm = _lm(0)
    request = types.Request('where is {} ?', 'Anna', 'the old town')
    record = types.Record(0, request, ('who is Anna ?',), ('who is Bert ?',))
    record = dataclasses.replace(record, neighborhood_target='New York')
    table = evaluate_lib.evaluate(lm, [record])
    self.assertIsNone(table.before)
    self.assertEqual(list(table.metrics), ['score', *_names('_acc')])
    _, is_top = _plain_nll(lm, 'where is Anna ?', 'the old town')
    self.assertAlmostEqual(table.metrics['efficacy_acc']['after']['mean'], 100 * is_top.mean())
    _, is_top = _plain_nll(lm, 'who is Bert ?', 'New York')
    self.assertAlmostEqual(table.metrics['neighborhood_acc']['after']['mean'], 100 * is_top.mean())

  def test_what_the_model_knew_about_others(self):
    before, after = _lm(0), _lm(1)
    prompt = 'Bert works in'
    logits = {}
    for state, lm in (('before', before), ('after', after)):
      ids = encoding.encode(lm.tokenizer, prompt).ids
      logits[state] = _logits(lm.model, ids)[-1]
    words = {i: word for word, i in before.tokenizer.get_vocab().items() if i}
    first = {state: max(words, key=lambda i: logits[state][i]) for state in logits}
    if any(first[state] != logits[state].argmax() for state in logits):
      # Make the best word of the vocabulary the best token.
      for lm in (before, after):
        head = lm.model.params['head']
        head['bias'] = head['bias'].at[0].add(-1e3)
        head['bias'] = head['bias'].at[len(words) + 1 :].add(-1e3)
    self.assertNotEqual(first['before'], first['after'])
    unedited = [(prompt, words[first['before']]), (prompt, words[first['after']])]
    table = evaluate_lib.evaluate(after, [_record()], before=before, unedited=unedited)
    self.assertEqual(table.metrics['unedited_acc']['before']['mean'], 50)
    self.assertEqual(table.metrics['unedited_acc']['after']['mean'], 50)
    # Of the one answer that was right before, none is left.
    self.assertEqual(table.metrics['unedited_kept'], {'after': {'mean': 0, 'ci95': 0, 'n': 1}})
    same = evaluate_lib.evaluate(before, [_record()], before=before, unedited=unedited)
    self.assertEqual(same.metrics['unedited_kept']['after']['mean'], 100)

  def test_table_summary_and_records_say_the_same(self):
    records = [_record(7), _record(9, paraphrase_prompts=())]
    table = evaluate_lib.evaluate(_lm(1), records, before=_lm(0))
    rows = json.loads(json.dumps(table.to_records(), allow_nan=False))
    summary = json.loads(json.dumps(table.to_summary(), allow_nan=False))['metrics']
    self.assertEqual([row['case_id'] for row in rows], [7, 9])
    self.assertIsNone(rows[1]['after']['paraphrase'])
    for state in ('before', 'after'):
      self.assertEqual(summary['efficacy'][state]['n'], 2)
      self.assertEqual(summary['paraphrase'][state]['n'], 1)
      for name in _names('', '_magnitude', '_acc'):
        values = [row[state][name] for row in rows if row[state][name] is not None]
        self.assertAlmostEqual(summary[name][state]['mean'], np.mean(values))
    lines = str(table).split('\n')
    self.assertEqual(lines[0].split(), ['before', 'after', 'n'])
    self.assertTrue(any(line.startswith('score') for line in lines))
    self.assertIn('paraphrase after: 1 record has no value and is left out', lines)

  def test_records_are_means_of_their_prompts(self):
    records = [_record(7), _record(9, paraphrase_prompts=())]
    table = evaluate_lib.evaluate(_lm(1), records, before=_lm(0))
    frame = table.to_prompts()
    sizes = [1 + len(r.paraphrase_prompts) + len(r.neighborhood_prompts) for r in records]
    self.assertLen(frame, sum(sizes))
    request = records[0].request
    first = frame.iloc[0]
    self.assertEqual(first['prompt'], request.text)
    self.assertEqual((first['new'], first['true']), (request.target_new, request.target_true))
    signs = np.where(frame['part'] == 'neighborhood', -1, 1)
    for state, values in (('before', table.before), ('after', table.after)):
      new, true = (np.exp(-frame[f'nll_{name}_{state}']) for name in ('new', 'true'))
      by_prompt = {
        '': frame[f'success_{state}'], '_acc': frame[f'acc_{state}'],
        '_magnitude': signs * (new - true),
      }  # fmt: skip
      for ending, value_P in by_prompt.items():
        means = (100 * value_P).groupby([frame['case_id'], frame['part']], observed=True).mean()
        for part in ('efficacy', 'paraphrase', 'neighborhood'):
          for r, case_id in enumerate((7, 9)):
            self.assertEqual((case_id, part) in means, not np.isnan(values[part + ending][r]))
            if (case_id, part) in means:
              self.assertAlmostEqual(means[case_id, part], values[part + ending][r])

  def test_same_object_twice_is_no_success(self):
    request = types.Request('{} lives in', 'Anna', 'Rome', target_true='Rome')
    table = evaluate_lib.evaluate(_lm(0), [_record(request=request)])
    self.assertEqual(table.metrics['efficacy']['after']['mean'], 0)
    self.assertEqual(table.metrics['neighborhood']['after']['mean'], 0)

  def test_records_that_cannot_be_measured_together_are_refused(self):
    with self.assertRaisesRegex(types.UserError, 'no records'):
      evaluate_lib.evaluate(_lm(0), [])
    other = _record(9, request=types.Request('{} lives in', 'Anna', 'Rome'))
    with self.assertRaisesRegex(types.UserError, 'Record 9'):
      evaluate_lib.evaluate(_lm(0), [_record(7), other])

  def test_without_memory_half_the_tokens_are_scored_once(self):
    lm, records, score_plan = _lm(0), [_record(i) for i in range(3)], evaluate_lib.score_plan
    whole = evaluate_lib.evaluate(lm, records, tokens_per_batch=128)

    def evaluate(most):
      def limited(model, plan, **options):
        if max(rows * tokens for rows, tokens in plan.shapes) > most:
          raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory.')
        return score_plan(model, plan, **options)

      with mock.patch.object(evaluate_lib, 'score_plan', limited):
        return evaluate_lib.evaluate(lm, records, tokens_per_batch=128)

    half = evaluate(64)
    for name, value_R in whole.after.items():
      np.testing.assert_allclose(half.after[name], value_R, atol=1e-5)
    with self.assertRaisesRegex(types.UserError, 'of 64; lower evaluation.tokens_per_batch'):
      evaluate(8)

  def test_samples_are_the_same_records_before_and_after(self):
    def says(word):
      return SimpleNamespace(
        generate=lambda texts, max_new_tokens, seed: [f'{text} {word}' for text in texts]
      )

    records = [_record(i, generation_prompts=(f'a {i}',)) for i in range(5)] + [_record(5)]
    samples = sample_texts(says('new'), records, says('old'), count=9)
    self.assertLen(samples, 23)
    asked = ['Anna lives in', 'the old town where Anna lives is', 'Bert lives in']
    self.assertEqual([sample.prompt for sample in samples[:3]], asked)
    self.assertEqual(samples[3], Sample(0, 'a 0', 'a 0 old', 'a 0 new'))
    self.assertEqual(samples[22].case_id, 5)
    chosen = sample_texts(says('new'), records, count=2, seed=3)
    self.assertEqual(chosen, sample_texts(says('new'), records, count=2, seed=3))
    self.assertIsNone(chosen[0].before)
    # Requests have one prompt, and the number of their place.
    requests = [types.Request('{} lives in', f'<{name}>', 'Rome') for name in 'ab']
    samples = sample_texts(says('new'), requests, says('old'))
    self.assertEqual(samples[1], Sample(1, '<b> lives in', '<b> lives in old', '<b> lives in new'))
    self.assertIn('Record 1\n  before  <b> lives in old\n  after   <b> lives in new', repr(samples))
    cells = '<td>&lt;b&gt; lives in</td><td> <mark>old</mark></td><td> <mark>new</mark></td>'
    self.assertIn(cells, samples._repr_html_())
    self.assertIn(
      '<td>&lt;b&gt; lives in</td><td> new</td>', sample_texts(says('new'), requests)._repr_html_()
    )


if __name__ == '__main__':
  absltest.main()


def test_an_answer_is_exact_if_all_its_tokens_are_on_top():
  is_top_NxT = np.array([[True, True], [True, False], [False, False], [True, False]])
  scores = Scores(np.full((4, 2), -1.0), is_top_NxT, np.array([2, 2, 2, 1]))
  assert scores.exact_N.tolist() == [1, 0, 0, 1]
  assert scores.token_acc_N.tolist() == [1, 0.5, 0, 1]


def test_long_answers_of_one_prompt_do_not_share_a_batch():
  # Whole texts after BOS, as perplexities score them.
  rows = [encoding.Encoded('', (1, *[2 + n] * 30), None, 0, 1) for n in range(40)]
  plan = scoring.plan_batches(rows, tokens_per_batch=128)
  assert plan.shapes == ((2, 64),)
  assert len(plan.batches) >= 40 * 29 / 128
