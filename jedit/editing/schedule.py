"""Schedules: how the residual is shared over the layers of a region."""

import math
from collections.abc import Callable, Mapping

# The divisor of the residual while `remaining` layers, this one included, are still to be updated.
SCHEDULES: Mapping[str, Callable[[int], float]] = {
  'even': float,  # MEMIT (arXiv:2210.07229), algorithm 1: equal shares of the remaining residual
  'sqrt': math.sqrt,  # PMET (arXiv:2308.08742), eq. 13: larger shares next to the target layer
}
