"""The tests catch mutants of the numerical modules."""

import pytest

from mutation import run
from mutation.mutants import FAST, SLOW


def test_every_mutant_has_its_place():
  assert not run.misplaced([*FAST, *SLOW])


@pytest.mark.slow
def test_the_fast_mutants_are_caught():
  outcomes = list(run.run(FAST, jobs=1))
  assert not [str(outcome.mutant) for outcome in outcomes if outcome.verdict != 'caught']
