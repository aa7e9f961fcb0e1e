"""Values and summaries by hand."""

import math

import numpy as np
from absl.testing import absltest

from jedit.evals import metrics


def _parts(wanted, other, acc):
  return metrics.PartScores(np.array(acc, float), np.array(wanted, float), np.array(other, float))


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
    summary = metrics.summarize_values(np.array([math.nan, 100.0, 0.0]))
    self.assertEqual(summary, {'mean': 50.0, 'ci95': 1.96 * 50 / math.sqrt(2), 'n': 2})
    self.assertEqual(metrics.summarize_values([math.nan]), {'mean': None, 'ci95': None, 'n': 0})

  def test_score_is_zero_if_a_rate_is_and_missing_if_a_rate_is(self):
    rates = {'efficacy': np.array([100.0, 100]), 'paraphrase': np.array([100.0, 50])}
    score = metrics.summarize_score(rates | {'neighborhood': np.zeros(2)})
    self.assertEqual(score, {'mean': 0.0, 'ci95': 0.0, 'n': 2})
    score = metrics.summarize_score(rates | {'neighborhood': np.full(2, math.nan)})
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
      means.append(metrics.harmonic_mean([value_R[chosen].mean() for value_R in values.values()]))
    ci95 = metrics.summarize_score(values)['ci95']
    # 2,000 resamples know their deviation to about 1.6%.
    self.assertAlmostEqual(ci95 / (1.96 * np.std(means)), 1, delta=0.08)

  def test_kept_counts_only_what_was_right_before(self):
    kept_P = metrics.kept(np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0]))
    np.testing.assert_array_equal(kept_P, [100, 0, np.nan, np.nan])
    self.assertEqual(metrics.summarize_values(kept_P)['n'], 2)

  def test_one_run_has_no_interval(self):
    self.assertEqual(metrics.summarize_runs([3.0]), {'mean': 3.0, 'ci95': None, 'n': 1})
    self.assertEqual(metrics.summarize_runs([math.nan]), {'mean': None, 'ci95': None, 'n': 0})
    self.assertEqual(metrics.summarize_runs([math.nan, 1, 3])['n'], 2)
    self.assertEqual(metrics.rounded_score([50.0, 0.0, 50.0]), 0)


if __name__ == '__main__':
  absltest.main()
