"""Published rows of a paper's table, compared with the cells of a sweep."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from jedit.evals import metrics
from jedit.io import tables
from jedit.io.tables import Cell
from jedit.types import UserError

UNEDITED = 'unedited'  # names the row of the model before any edit


@dataclasses.dataclass(frozen=True)
class Published:
  """Rows of a paper's table.

  Attributes:
    source: paper and table.
    note: a reservation about the rows; printed beside them.
    rows: by name of a cell, `UNEDITED`, or another method of the paper, then by metric: the value
      and the half width of its 95% interval, or None.
  """

  source: str
  rows: Mapping[str, Mapping[str, tuple[float, float | None]]]
  note: str = ''

  def beside(self, summaries: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Three rows for each row of the paper that was run here: ours, theirs and the difference.

    The interval of a difference is the root of the sum of squares, or ours if the paper has none.

    Args:
      summaries: of the cells, by name.
    """
    columns = [name for name in metrics.METRICS if any(name in row for row in self.rows.values())]
    rows: list[list[Cell]] = []
    for name, row in self.rows.items():
      theirs = [_estimate(*row[column]) if column in row else None for column in columns]
      ours = _ours(name, summaries, columns)
      if ours is None:
        rows.append([f'{name}, published', *theirs])
      else:
        differences = [_difference(*pair) for pair in zip(ours, theirs, strict=True)]
        rows += [[name, *ours], ['  published', *theirs], ['  difference', *differences]]
    return tables.table(['', *columns], rows)


def read_published(config: Mapping[str, Any]) -> Published | None:
  """Reads the section `published` of a sweep's config; None without rows.

  `published.rows` is a sequence of pairs, since configs sort the names of their sections: a name
  and metrics, each a number or a pair of a number and its interval.

  Raises:
    UserError: for rows of another form, and unknown metrics.
  """
  section = config.get('published')
  if not section or not section.get('rows'):
    return None
  rows = {}
  for pair in section['rows']:
    if len(pair) != 2 or not isinstance(pair[1], Mapping):
      raise UserError(f'The published row {pair!r} must be a pair of a name and its metrics.')
    name, values = pair
    rows[name] = {metric: _value(name, metric, value) for metric, value in values.items()}
  return Published(str(section.get('source', 'Published')), rows, str(section.get('note', '')))


def _value(name: str, metric: str, value: Any) -> tuple[float, float | None]:
  if metric not in metrics.METRICS:
    known = ', '.join(metrics.METRICS)
    raise UserError(f'The published row {name!r} has no metric {metric!r}; choose one of {known}.')
  parts = value if isinstance(value, list | tuple) else (value,)
  if len(parts) > 2 or not all(isinstance(part, int | float) for part in parts):
    raise UserError(
      f'The published {metric} of {name!r} is {value!r}; give a number, or a pair of a number and '
      'its interval.'
    )
  return float(parts[0]), (float(parts[1]) if len(parts) == 2 else None)


def _ours(
  name: str, summaries: Mapping[str, Mapping[str, Any]], columns: list[str]
) -> list[Cell] | None:
  """The metrics of a cell, or for `UNEDITED` those of the first cell before its edit."""
  if name == UNEDITED:
    measured, state = next(iter(summaries.values()))['metrics'], 'before'
  elif name in summaries:
    measured, state = summaries[name]['metrics'], 'after'
  else:
    return None
  return [metrics.as_cell(column, measured.get(column, {}).get(state)) for column in columns]


def _estimate(mean: float, ci95: float | None) -> Cell:
  return mean if ci95 is None else {'mean': mean, 'ci95': ci95, 'n': None}


def _difference(ours: Cell, theirs: Cell) -> Cell:
  if not isinstance(ours, Mapping) or ours['mean'] is None or theirs is None:
    return None
  mean, ci95 = (theirs['mean'], theirs['ci95']) if isinstance(theirs, Mapping) else (theirs, 0.0)
  return {**ours, 'mean': ours['mean'] - mean, 'ci95': math.hypot(ours['ci95'], ci95)}
