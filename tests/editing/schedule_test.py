"""Schedules: shares of the residual."""

from jedit.editing.schedule import SCHEDULES


def test_schedules_are_those_of_the_papers():
  assert [SCHEDULES['even'](remaining) for remaining in (3, 2, 1)] == [3, 2, 1]
  assert [SCHEDULES['sqrt'](remaining) for remaining in (9, 4, 1)] == [3, 2, 1]
