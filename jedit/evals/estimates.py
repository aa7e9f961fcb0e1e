"""Means with 95% intervals, over records and over runs."""

import math
from collections.abc import Sequence

import numpy as np

Estimate = dict[str, float | int | None]  # `mean`, `ci95` (half width) and `n`


def mean_of_defined(values: np.ndarray) -> float:
  """Mean of the values that are not nan; nan without any."""
  values = np.asarray(values, np.float64)
  defined = values[~np.isnan(values)]
  return float(np.mean(defined)) if defined.size else math.nan


def harmonic_mean(values: Sequence[float]) -> float:
  """Harmonic mean k / Σ 1/x of k values >= 0; 0 if one is 0, nan if one is nan."""
  if any(math.isnan(value) for value in values):
    return math.nan
  return len(values) / sum(1 / value for value in values) if min(values) > 0 else 0.0


def summarize_values(values_R: np.ndarray) -> Estimate:
  """Mean over records with its 95% interval, as MEMIT and PMET print it.

  ci95 = 1.96 x population standard deviation over records / sqrt(number of records), the half
  width. The papers' notebooks divide by a fixed number of records in every column; here by the
  number of records with a value.

  Args:
    values_R: one value per record, in the unit of the metric; nan where undefined.

  Returns:
    `mean`, `ci95` and `n`; mean and ci95 are None for n = 0.
  """
  values_R = np.asarray(values_R, np.float64)
  defined = values_R[~np.isnan(values_R)]
  if not defined.size:
    return {'mean': None, 'ci95': None, 'n': 0}
  ci95 = 1.96 * np.std(defined) / math.sqrt(defined.size)
  return {'mean': float(np.mean(defined)), 'ci95': float(ci95), 'n': int(defined.size)}


def summarize_harmonic(rate_KxR: np.ndarray) -> Estimate:
  """Harmonic mean H of the means of K rates over records, with its 95% interval.

  The interval of the means, propagated to first order: dH = H²/K Σᵢ dmᵢ / mᵢ², where mᵢ is the
  mean of rate i over records. Differentials are summed per record, since its rates are correlated.

  Args:
    rate_KxR: percent; nan where a record has no value.

  Returns:
    `mean`, `ci95` and `n`, the number of records with any value; mean and ci95 are None if a rate
    has no value at all.
  """
  is_defined_KxR = ~np.isnan(rate_KxR)
  num_records = int(np.any(is_defined_KxR, axis=0).sum())
  mean_K = np.array([mean_of_defined(rate_R) for rate_R in rate_KxR])
  mean = harmonic_mean(mean_K.tolist())
  if math.isnan(mean):
    return {'mean': None, 'ci95': None, 'n': num_records}
  if mean == 0:  # a rate of 0 is 0 in every record: no first-order variation
    return {'mean': 0.0, 'ci95': 0.0, 'n': num_records}
  slope_K = mean**2 / len(mean_K) / mean_K**2
  count_Kx1 = is_defined_KxR.sum(axis=1)[:, None]
  change_KxR = np.where(is_defined_KxR, rate_KxR - mean_K[:, None], 0) / count_Kx1
  change_R = slope_K @ change_KxR
  return {'mean': mean, 'ci95': float(1.96 * np.sqrt(np.sum(change_R**2))), 'n': num_records}


def summarize_runs(values_M: np.ndarray) -> Estimate:
  """Mean over M runs (seeds) with the interval of JEEP (arXiv:2412.17872).

  ci95 = t x sample standard deviation / sqrt(M), the half width of the two-sided 95% Student-t
  interval with M - 1 degrees of freedom.

  Args:
    values_M: a metric's mean in each run; nan without one.

  Returns:
    `mean`, `ci95` and `n`, the number of runs; ci95 is None below two runs, mean for none.
  """
  values_M = np.asarray(values_M, np.float64)
  defined = values_M[~np.isnan(values_M)]
  num_runs = int(defined.size)
  if not num_runs:
    return {'mean': None, 'ci95': None, 'n': 0}
  ci95 = None
  if num_runs > 1:
    import scipy.special  # a tenth of the time that the package takes to import

    width = scipy.special.stdtrit(num_runs - 1, 0.975)
    ci95 = float(width * np.std(defined, ddof=1) / math.sqrt(num_runs))
  return {'mean': float(np.mean(defined)), 'ci95': ci95, 'n': num_runs}


def rounded_score(means: Sequence[float]) -> int:
  """Score as in JEEP's tables: from means rounded to one decimal, itself an integer."""
  return round(harmonic_mean([round(mean, 1) for mean in means]))
