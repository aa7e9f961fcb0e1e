"""Values and estimates by hand; the registry."""

import math
import pathlib
from unittest import mock

import numpy as np
from absl.testing import absltest

from jedit.evals import estimates, metrics
from jedit.types import UserError

DOCS = pathlib.Path(__file__).parents[2] / 'docs' / 'metrics.md'


def _parts(wanted, other, acc):
  other = other if other is None else np.array(other, float)
  return metrics.PartScores(np.array(acc, float), np.array(wanted, float), other)


class MetricsTest(absltest.TestCase):
  def test_values_of_one_record_by_hand(self):
    values = metrics.record_values(
      {
        'efficacy': _parts([1.0], [2.0], [1]),
        'paraphrase': _parts([1.0, 3.0], [2.0, 2.0], [0, 1]),
        'neighborhood': _parts([0.5, 1.0, 4.0, 1.0], [1.0, 1.0, 3.0, 2.0], [1, 0, 0, 0]),
      }
    )
    e = math.exp
    expected = {
      'efficacy': 100,
      'efficacy_magnitude': 100 * (e(-1) - e(-2)),
      'efficacy_acc': 100,
      'paraphrase': 50,
      'paraphrase_magnitude': 50 * (e(-1) - e(-2) + e(-3) - e(-2)),
      'paraphrase_acc': 50,
      'neighborhood': 50,  # the tie is a failure
      'neighborhood_magnitude': 25 * (e(-0.5) - e(-1) + e(-4) - e(-3) + e(-1) - e(-2)),
      'neighborhood_acc': 25,
    }
    self.assertEqual(values.keys(), expected.keys())
    for name, value in expected.items():
      self.assertAlmostEqual(values[name], value, places=12, msg=name)

  def test_a_tie_is_a_failure_from_either_side(self):
    np.testing.assert_array_equal(metrics.success([2.0], [2.0]), [0])

  def test_length_normalised_comparison_can_disagree_with_joint_probability(self):
    # Two tokens at 1 nat beat one token at 1.5, although the joint probability is lower.
    self.assertEqual(metrics.success(np.mean([1.0, 1.0]), np.mean([1.5])), 1)

  def test_undefined_is_left_out_and_counted(self):
    values = metrics.record_values(
      {
        'paraphrase': _parts([], [], []),
        'neighborhood': _parts([math.nan, 1], [1, 2], [math.nan, 1]),
      }
    )
    for name in ('paraphrase', 'paraphrase_magnitude', 'paraphrase_acc'):
      self.assertTrue(math.isnan(values[name]))
    self.assertEqual(values['neighborhood'], 100)
    self.assertEqual(values['neighborhood_acc'], 100)
    summary = estimates.summarize_values(np.array([math.nan, 100.0, 0.0]))
    self.assertEqual(summary, {'mean': 50.0, 'ci95': 1.96 * 50 / math.sqrt(2), 'n': 2})
    self.assertEqual(estimates.summarize_values([math.nan]), {'mean': None, 'ci95': None, 'n': 0})

  def test_score_is_zero_if_a_rate_is_and_missing_if_a_rate_is(self):
    rates = {'efficacy': np.array([100.0, 100]), 'paraphrase': np.array([100.0, 50])}
    score = metrics.summarize(rates | {'neighborhood': np.zeros(2)})['score']
    self.assertEqual(score, {'mean': 0.0, 'ci95': 0.0, 'n': 2})
    score = metrics.summarize(rates | {'neighborhood': np.full(2, math.nan)})['score']
    self.assertEqual(score, {'mean': None, 'ci95': None, 'n': 2})

  def test_score_of_single_objects_is_the_harmonic_mean_of_accuracies(self):
    values = {
      'efficacy_acc': np.array([100.0, 50]),
      'paraphrase_acc': np.array([50.0, 50]),
      'neighborhood_acc': np.array([25.0, 25]),
    }
    score = metrics.summarize(values)['score']
    self.assertAlmostEqual(score['mean'], 3 / (1 / 75 + 1 / 50 + 1 / 25), places=12)

  def test_score_interval_agrees_with_resampling(self):
    rng = np.random.default_rng(0)
    efficacy_R = 100.0 * (rng.random(400) < 0.9)
    paraphrase_R = np.where(efficacy_R > 0, 50.0 * rng.integers(1, 3, 400), 0)
    neighborhood_R = 10.0 * rng.binomial(10, 0.7, 400)
    values = {'efficacy': efficacy_R, 'paraphrase': paraphrase_R, 'neighborhood': neighborhood_R}
    means = []
    for _ in range(2000):
      chosen = rng.integers(0, 400, 400)
      means.append(estimates.harmonic_mean([value_R[chosen].mean() for value_R in values.values()]))
    ci95 = metrics.summarize(values)['score']['ci95']
    # 2,000 resamples know their deviation to about 1.6%.
    self.assertAlmostEqual(ci95 / (1.96 * np.std(means)), 1, delta=0.08)

  def test_kept_counts_only_what_was_right_before(self):
    kept_P = metrics.kept(np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0]))
    np.testing.assert_array_equal(kept_P, [100, 0, np.nan, np.nan])
    self.assertEqual(estimates.summarize_values(kept_P)['n'], 2)
    scores = metrics.UneditedScores(np.array([1, 0, math.nan]), np.array([1, 0, 1]))
    values = metrics.record_values({'unedited': scores})
    np.testing.assert_array_equal(values['unedited_acc'], [100, 0, np.nan])
    np.testing.assert_array_equal(values['unedited_kept'], [100, np.nan, 0])  # nan keeps nothing
    values = metrics.record_values({'unedited': metrics.UneditedScores(np.array([1]))})
    self.assertEqual(list(values), ['unedited_acc'])

  def test_one_run_has_no_interval(self):
    self.assertEqual(estimates.summarize_runs([3.0]), {'mean': 3.0, 'ci95': None, 'n': 1})
    self.assertEqual(estimates.summarize_runs([math.nan]), {'mean': None, 'ci95': None, 'n': 0})
    self.assertEqual(estimates.summarize_runs([math.nan, 1, 3])['n'], 2)
    self.assertEqual(estimates.rounded_score([50.0, 0.0, 50.0]), 0)


class RegistryTest(absltest.TestCase):
  def test_a_single_object_has_accuracies_alone(self):
    values = metrics.record_values({'efficacy': _parts([1.0, 2.0], None, [1, 0.5])})
    self.assertEqual(values, {'efficacy_acc': 75})
    self.assertEqual(metrics.find('efficacy', values), 'efficacy_acc')
    self.assertEqual(metrics.rates(values), ['efficacy_acc'])

  def test_records_without_the_evidence_are_nan(self):
    texts = metrics.GeneratedTexts(('a b c d',), ('d',), True)
    scores = _parts([1.0], None, [1])
    values = metrics.all_values([{'efficacy': scores}, {'efficacy': scores, 'texts': texts}])
    self.assertEqual(list(values), ['efficacy_acc', 'free_generation_acc'])  # no words, no snippets
    np.testing.assert_array_equal(values['free_generation_acc'], [np.nan, 100])

  def test_names_are_taken_once(self):
    with self.assertRaisesRegex(UserError, "A metric named 'score' already exists"):
      metrics.register(metrics.Metric('score'))

  def test_a_metric_that_enters_the_score_changes_it(self):
    values = {name: np.array([100.0]) for name in ('efficacy', 'paraphrase', 'neighborhood')}
    values['toy_locality'] = np.array([50.0])
    with mock.patch.dict(metrics.METRICS):
      metrics.register(metrics.Metric('toy_locality', in_score=True))
      score = metrics.summarize(values)['score']['mean']
    self.assertAlmostEqual(score, 4 / (3 / 100 + 1 / 50))
    self.assertEqual(metrics.summarize(values)['score']['mean'], 100)

  def test_units_are_said_where_they_are_not_percent(self):
    self.assertEqual(metrics.units(['efficacy', 'score']), 'percent')
    words = metrics.units(['efficacy', 'fluency', 'fluency_without_prompt', 'essence'])
    self.assertEqual(
      words, 'percent, except fluency, fluency_without_prompt (bits x 100), essence (perplexity)'
    )

  def test_every_metric_is_documented(self):
    text = DOCS.read_text()
    for name, metric in metrics.METRICS.items():
      self.assertIn(f'`{name}`', text)
      self.assertTrue(metric.definition)

  def test_stand_ins_are_registered(self):
    for metric in metrics.METRICS.values():
      if metric.stand_in:
        self.assertEqual(metrics.METRICS[metric.stand_in].evidence, metric.evidence)


if __name__ == '__main__':
  absltest.main()
