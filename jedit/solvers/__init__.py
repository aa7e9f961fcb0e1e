"""Closed-form solvers of kernel updates, and the cache of factors they share."""

from jedit.solvers.base import Solver, UnsolvableError, check_error
from jedit.solvers.equality import EqualityConstrained
from jedit.solvers.factor_cache import Covariance, FactorCache
from jedit.solvers.least_squares import LeastSquares
from jedit.solvers.null_space import NullSpace
from jedit.solvers.rank_one import RankOne

__all__ = [
  'Covariance',
  'EqualityConstrained',
  'FactorCache',
  'LeastSquares',
  'NullSpace',
  'RankOne',
  'Solver',
  'UnsolvableError',
  'check_error',
]
