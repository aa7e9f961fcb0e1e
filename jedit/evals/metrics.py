"""What the numbers of an edit mean: per-record values and their summary, in plain numpy.

A record has three parts: `efficacy` (the edited prompt), `paraphrase` (other wordings) and
`neighborhood` (other subjects, whose answer must stay). In the first two the wanted object is the
new one and the other object the true one; in the third the roles are swapped. With

  nll(y | x) = mean over the tokens of y of the negative natural-log probability of each token
               under teacher forcing (so texts of different lengths compare per token),

a prompt of a part has these values (ROME, arXiv:2202.05262, section 3.4 and appendix; accuracy
from MEMIT's released code, which ROME's lacks):

  <part>            1 if nll(wanted) < nll(other), else 0; equal counts as failure
  <part>_magnitude  exp(-nll(wanted)) - exp(-nll(other)), a difference of geometric means
  <part>_acc        1 if every token of the wanted object is the model's top token

Records without a true object (zsRE; MEND, arXiv:2110.11309, as evaluated by MEMIT) have only
`<part>_acc`, there the share of answer tokens that are on top in one teacher-forced pass.

A record's value is the mean over its prompts, in percent; a metric is the mean over records. What
is not defined (no prompts in that part, a model that returns nan) is nan in a record and is left
out of the mean, never counted as zero: `n` says how many records a mean stands on.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special

PARTS = ('efficacy', 'paraphrase', 'neighborhood')
SUCCESS = PARTS
MAGNITUDE = tuple(f'{part}_magnitude' for part in PARTS)
ACCURACY = tuple(f'{part}_acc' for part in PARTS)
GENERATION = (
  'fluency',
  'fluency_without_prompt',
  'consistency',
  'essence',
  'free_generation_acc',
)

# One line for each metric, for reports; the docstrings of the package say the same at length.
DEFINITIONS = {
  'score': 'harmonic mean of efficacy, paraphrase and neighborhood; where there are no two objects '
  'to compare, of the three accuracies',
  'efficacy': 'share of records in which the new object is likelier per token than the true one '
  'after the edited prompt; a tie fails',
  'paraphrase': 'the same after other wordings, mean over the prompts of a record',
  'neighborhood': 'share of prompts about other subjects after which the true object is likelier',
  'efficacy_magnitude': 'exp(-nll) of the new object minus that of the true one, nll in nats per '
  'token',
  'paraphrase_magnitude': 'the same after other wordings',
  'neighborhood_magnitude': 'the same for other subjects, true minus new object',
  'efficacy_acc': 'every token of the new object is the top one under teacher forcing; for a '
  'single object the share of its tokens',
  'paraphrase_acc': 'the same after other wordings',
  'neighborhood_acc': 'the same for the answers that must stay',
  'fluency': '(2/3 H2 + 4/3 H3) / 2 with the entropies of word bigrams and trigrams in bits, '
  'x 100, mean over generated texts with their prompts',
  'fluency_without_prompt': 'the same of the continuations alone',
  'consistency': 'cosine of TF-IDF vectors, x 100, of generated texts and snippets about entities '
  'that have the new object',
  'essence': 'perplexity of the first 100 tokens of snippets about the edited subject; lower is '
  'better',
  'free_generation_acc': 'greedy decoding gives the new object and ends there',
  'unedited_acc': 'share of questions about unedited subjects whose known answer is on top, every '
  'token',
  'unedited_kept': 'the same among the questions answered right before',
}


@dataclasses.dataclass(frozen=True)
class PartScores:
  """What a model said to the prompts of one part of one record.

  Attributes:
    acc_P: per prompt, 1 or 0 (every token of the wanted object on top) where a record compares two
      objects, else the share of the object's tokens on top; nan where the model gave none.
    wanted_nll_P: nats per token of the object that this part wants.
    other_nll_P: nats per token of the object it is compared with.
      Both are None where a record has a single object.
  """

  acc_P: np.ndarray
  wanted_nll_P: np.ndarray | None = None
  other_nll_P: np.ndarray | None = None


def success(wanted_nll: np.ndarray, other_nll: np.ndarray) -> np.ndarray:
  """1 where the wanted object is the likelier one per token, 0 elsewhere, ties included.

  Args:
    wanted_nll: nats per token, any shape.
    other_nll: the same for the object it is compared with.

  Returns:
    float64 of the same shape; nan where either is nan.
  """
  wanted_nll, other_nll = np.asarray(wanted_nll, np.float64), np.asarray(other_nll, np.float64)
  is_undefined = np.isnan(wanted_nll) | np.isnan(other_nll)
  return np.where(is_undefined, np.nan, wanted_nll < other_nll)


def magnitude(wanted_nll: np.ndarray, other_nll: np.ndarray) -> np.ndarray:
  """exp(-nll(wanted)) - exp(-nll(other)), between -1 and 1; arguments as of `success`."""
  return np.exp(-np.asarray(wanted_nll, np.float64)) - np.exp(-np.asarray(other_nll, np.float64))


def mean_of_defined(values: np.ndarray) -> float:
  """Mean of the values that are not nan; nan where there is none."""
  values = np.asarray(values, np.float64)
  defined = values[~np.isnan(values)]
  return float(np.mean(defined)) if defined.size else math.nan


def record_values(parts: Mapping[str, PartScores]) -> dict[str, float]:
  """The values of one record: each metric's mean over the prompts of its part.

  Args:
    parts: by name in `PARTS`.

  Returns:
    Percent by metric name; nan where a part has no prompts or no prompt has a value.
  """
  values = {}
  for part, scores in parts.items():
    if scores.wanted_nll_P is not None and scores.other_nll_P is not None:
      nlls = scores.wanted_nll_P, scores.other_nll_P
      values[part] = 100 * mean_of_defined(success(*nlls))
      values[f'{part}_magnitude'] = 100 * mean_of_defined(magnitude(*nlls))
    values[f'{part}_acc'] = 100 * mean_of_defined(scores.acc_P)
  return values


def harmonic_mean(values: Sequence[float]) -> float:
  """Harmonic mean k / Σ 1/x of k values >= 0; 0 where one is 0, nan where one is nan."""
  if any(math.isnan(value) for value in values):
    return math.nan
  return len(values) / sum(1 / value for value in values) if min(values) > 0 else 0.0


def summarize_values(values_R: np.ndarray) -> dict[str, float | int | None]:
  """Mean over records with its 95% interval, as MEMIT and PMET print it.

  ci95 = 1.96 x population standard deviation over records / sqrt(number of records), the half
  width. The papers' notebooks divide by one fixed number of records for every column; here it is
  the number of records that have a value.

  Args:
    values_R: one value per record, in the unit of the metric; nan where undefined.

  Returns:
    `mean`, `ci95` and `n`; mean and ci95 are None where n is 0.
  """
  values_R = np.asarray(values_R, np.float64)
  defined = values_R[~np.isnan(values_R)]
  if not defined.size:
    return {'mean': None, 'ci95': None, 'n': 0}
  ci95 = 1.96 * np.std(defined) / math.sqrt(defined.size)
  return {'mean': float(np.mean(defined)), 'ci95': float(ci95), 'n': int(defined.size)}


def summarize_score(values: Mapping[str, np.ndarray]) -> dict[str, float | int | None]:
  """Score: harmonic mean of the mean success rates, unrounded (ROME; MEMIT rounds them first).

  Records with a single object have no success; their score is the harmonic mean of the three
  accuracies, as ROME falls back to and JEEP (arXiv:2412.17872) prints. It is 0 if a rate is 0.
  The papers print no interval for it. Ours is the one of the means carried through the harmonic
  mean H to first order: dH = H²/k Σᵢ dmᵢ / mᵢ², with mᵢ the mean over records of metric i, so that
  each record's parts stay together (they are correlated).

  Args:
    values: per-record values by metric name, as `summarize` takes them.

  Returns:
    `mean`, `ci95` and `n`, the number of records that any of the three rates stands on; mean and
    ci95 are None where one of the rates has no value.
  """
  names = SUCCESS if SUCCESS[0] in values else ACCURACY
  rate_KxR = np.stack([np.asarray(values[name], np.float64) for name in names])
  is_defined_KxR = ~np.isnan(rate_KxR)
  num_records = int(np.any(is_defined_KxR, axis=0).sum())
  mean_K = np.array([mean_of_defined(rate_R) for rate_R in rate_KxR])
  score = harmonic_mean(mean_K.tolist())
  if math.isnan(score):
    return {'mean': None, 'ci95': None, 'n': num_records}
  if score == 0:  # a rate of 0 is 0 in every record: nothing varies to first order
    return {'mean': 0.0, 'ci95': 0.0, 'n': num_records}
  slope_K = score**2 / len(names) / mean_K**2
  count_Kx1 = is_defined_KxR.sum(axis=1)[:, None]
  change_KxR = np.where(is_defined_KxR, rate_KxR - mean_K[:, None], 0) / count_Kx1
  change_R = slope_K @ change_KxR
  return {'mean': score, 'ci95': float(1.96 * np.sqrt(np.sum(change_R**2))), 'n': num_records}


def summarize(values: Mapping[str, np.ndarray]) -> dict[str, dict[str, float | int | None]]:
  """Summary of every metric and of the score.

  Args:
    values: by metric name, one value per record in percent, nan where undefined; the three
      accuracies at least.

  Returns:
    By metric name, `score` first: `mean`, `ci95` (half width) and `n` (the true count).
  """
  return {
    'score': summarize_score(values),
    **{name: summarize_values(values_R) for name, values_R in values.items()},
  }


def summarize_runs(values_M: np.ndarray) -> dict[str, float | int | None]:
  """Mean over M runs (seeds) with the interval of JEEP (arXiv:2412.17872).

  ci95 is the half width of the two-sided 95% Student-t interval with M - 1 degrees of freedom,
  t x sample standard deviation / sqrt(M).

  Args:
    values_M: a metric's mean of each run; nan where it has none.

  Returns:
    `mean`, `ci95` and `n`, the number of runs; ci95 is None for fewer than two runs, mean for none.
  """
  values_M = np.asarray(values_M, np.float64)
  defined = values_M[~np.isnan(values_M)]
  num_runs = int(defined.size)
  if not num_runs:
    return {'mean': None, 'ci95': None, 'n': 0}
  ci95 = None
  if num_runs > 1:
    width = scipy.special.stdtrit(num_runs - 1, 0.975)
    ci95 = float(width * np.std(defined, ddof=1) / math.sqrt(num_runs))
  return {'mean': float(np.mean(defined)), 'ci95': ci95, 'n': num_runs}


def rounded_score(means: Sequence[float]) -> int:
  """Score as JEEP's tables have it: the means (percent) to one decimal, the score to none."""
  return round(harmonic_mean([round(mean, 1) for mean in means]))


def kept(is_right_before_P: np.ndarray, is_right_after_P: np.ndarray) -> np.ndarray:
  """Which answers that a model gave right before an edit it still gives right after.

  Args:
    is_right_before_P: per prompt, whether every token of the known answer was on top.
    is_right_after_P: the same after the edit.

  Returns:
    Percent (0 or 100) per prompt; nan where the answer was wrong before, for there was nothing
    to keep.
  """
  before_P = np.asarray(is_right_before_P, np.float64)
  after_P = np.asarray(is_right_after_P, np.float64)
  return np.where(before_P == 1, 100 * after_P, np.nan)
