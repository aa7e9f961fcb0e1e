"""Results of probes as rows of numbers.

A summary is a dict of `num_requests`, `notes` by name, and `rows`: each a place in the model, with
the `mean`, `ci95` and `n` of a measure there over the prompts, as fractions, not percent.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jedit.evals.estimates import summarize_values

Row = dict[str, Any]


def by_layer(values_LxN: np.ndarray, axis: str = 'layer', **place: Any) -> list[Row]:
  """A row for each layer, or each place along another axis."""
  return [
    {**place, axis: layer, **summarize_values(values_N)}
    for layer, values_N in enumerate(values_LxN)
  ]


def range_of(window: Sequence[int]) -> str:
  """A window of layers in words."""
  return str(window[0]) if len(window) == 1 else f'{window[0]} to {window[-1]}'
