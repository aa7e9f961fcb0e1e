"""Checks of a solution."""

import numpy as np
import pytest

from jedit.solvers.base import UnsolvableError, check_error, check_finite


@pytest.mark.parametrize('error', [float('nan'), float('inf'), 1e-3])
def test_an_inexact_solution_is_refused(error):
  with pytest.raises(UnsolvableError, match='too close to singular'):
    check_error(error)
  check_error(1e-5)


def test_a_solution_that_is_not_finite_is_refused():
  left_FxB = np.ones((3, 2))
  check_finite(left_FxB)
  left_FxB[1, 1] = np.nan
  with pytest.raises(UnsolvableError, match=r'the key size, 3\), or raise ridge'):
    check_finite(left_FxB, ', or raise ridge')
