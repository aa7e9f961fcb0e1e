"""The updates themselves, in closed form: what each method's paper solves, given C and the keys.

All are linear in the residuals, so each returns `left_FxB` and the update is left · R.

λ goes into the keys: with K/√λ for K, λC + KᵀK is λ (C + KᵀK), so that one factor of C serves every
weight, every batch and all three methods that solve with it (`jedit.solvers.factor_cache`).
"""

import math

import numpy as np

from jedit.solvers import factor_cache
from jedit.solvers.factor_cache import preserve, solve_whole


def least_squares(
  cov_FxF: np.ndarray,
  key_BxF: np.ndarray,
  cov_weight: float,
  earlier_key_NxF: np.ndarray | None = None,
) -> np.ndarray:
  """(λC + EᵀE + KᵀK)⁻¹ Kᵀ.

  MEMIT (arXiv:2210.07229), eq. 14; PMET (arXiv:2308.08742), eq. 9. The normal equations of
  preserving C with weight λ, and the earlier keys E, while K maps to R.

  Up to a quarter as many edits as dimensions are solved with the factor that is kept of
  M = λC + EᵀE, as M⁻¹ Kᵀ (I + K M⁻¹ Kᵀ)⁻¹ (Woodbury). That takes 2 F² B operations; a factor of the
  whole sum, which more edits get, and a C that is not positive definite, takes F³/3 every time.

  Args:
    cov_FxF: second moment of the keys, symmetric.
    key_BxF: one key per edit.
    cov_weight: λ > 0; larger keeps more of the old behaviour.
    earlier_key_NxF: keys of earlier edits.

  Returns:
    left_FxB, float64; not finite if the matrix is not positive definite.
  """
  key_BxF, earlier_NxF = key_BxF / math.sqrt(cov_weight), weighted(cov_weight, earlier_key_NxF)
  if is_small(*key_BxF.shape):
    kept = preserve(cov_FxF, 0.0, earlier_NxF)
    if kept.is_definite:
      return kept.left(key_BxF, 1.0) / math.sqrt(cov_weight)
  all_JxF = key_BxF if earlier_NxF is None else np.concatenate([earlier_NxF, key_BxF])
  return solve_whole(cov_FxF, all_JxF, key_BxF.T) / math.sqrt(cov_weight)


def equality_constrained(
  cov_FxF: np.ndarray,
  key_BxF: np.ndarray,
  cov_weight: float,
  cov_ridge: float,
  key_ridge: float,
  earlier_key_NxF: np.ndarray | None = None,
) -> np.ndarray:
  """C'⁻¹ Kᵀ (K C'⁻¹ Kᵀ + key_ridge I)⁻¹ with C' = λC + EᵀE + cov_ridge I.

  EMMET (arXiv:2403.14236), eq. 14, with the two ridges of its released code; for one edit
  without ridges this is ROME's update, and with a key ridge of 1 `least_squares`.

  Returns:
    left_FxB, float64; not finite where C' or the inner matrix is not positive definite.
  """
  cov_weight = float(cov_weight)
  key_BxF, earlier_NxF = key_BxF / math.sqrt(cov_weight), weighted(cov_weight, earlier_key_NxF)
  kept = preserve(np.asarray(cov_FxF), float(cov_ridge) / cov_weight, earlier_NxF)
  return kept.left(key_BxF, float(key_ridge)) / math.sqrt(cov_weight)


def rank_one(
  cov_FxF: np.ndarray | None,
  key_1xF: np.ndarray,
  through_1xF: np.ndarray,
  earlier_key_NxF: np.ndarray | None = None,
) -> np.ndarray:
  """Direction u / (k' · u), u = (C + EᵀE)⁻¹ k, of ROME's update (arXiv:2202.05262, eq. 2).

  C is the identity where it is None.
  """
  if cov_FxF is None and earlier_key_NxF is None:
    u_Fx1 = key_1xF.T
  else:
    cov_FxF = np.eye(key_1xF.shape[1], dtype=np.float32) if cov_FxF is None else cov_FxF
    u_Fx1 = preserve(cov_FxF, 0.0, earlier_key_NxF).spread(key_1xF)
  return u_Fx1 / np.einsum('bf,fb->b', through_1xF, u_Fx1)[None, :]


def null_space(
  cov_FxF: np.ndarray,
  key_BxF: np.ndarray,
  threshold: float,
  ridge: float,
  earlier_key_NxF: np.ndarray | None = None,
) -> np.ndarray:
  """The solution X of (P (KᵀK + EᵀE) + ridge I) X = P Kᵀ, P = U Uᵀ, as a symmetric system.

  AlphaEdit (arXiv:2410.02355), eq. 14, with the weight of ‖ΔW‖² of its released code. U are the
  eigenvectors of C whose eigenvalue is below the threshold, taken once for each C. X lies in the
  range of P, so X = U Y with (Uᵀ (KᵀK + EᵀE) U + ridge I) Y = Uᵀ Kᵀ: least squares that preserve
  the identity with weight `ridge`.

  Args:
    cov_FxF: second moment of the keys, symmetric.
    key_BxF: one key per edit.
    threshold: above the lowest eigenvalue.
    ridge: above 0.
    earlier_key_NxF: keys of earlier edits.

  Returns:
    left_FxB, float64.
  """
  spectrum = factor_cache.spectrum(cov_FxF)
  num_free = spectrum.count_below(threshold)
  key_BxG = spectrum.into(key_BxF, num_free)
  earlier_NxG = None if earlier_key_NxF is None else spectrum.into(earlier_key_NxF, num_free)
  left_GxB = least_squares(spectrum.identity(num_free), key_BxG, ridge, earlier_NxG)
  return spectrum.out_of(left_GxB)


def is_small(num_edits: int, key_size: int) -> bool:
  """Whether solving with a kept factor takes fewer operations than making one."""
  return 4 * num_edits <= key_size


def weighted(cov_weight: float, earlier_key_NxF: np.ndarray | None) -> np.ndarray | None:
  """E/√λ."""
  return None if earlier_key_NxF is None else earlier_key_NxF / math.sqrt(cov_weight)
