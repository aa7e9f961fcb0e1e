"""What a paper prints for the cells of a sweep, beside what they gave here."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jedit.reports.tables import Cell, Grid
from jedit.types import UserError

UNEDITED = 'unedited'  # names the row of the model before any edit

# Metrics that papers print, in the order of their tables.
_METRICS = (
  'score',
  'efficacy',
  'efficacy_acc',
  'paraphrase',
  'paraphrase_acc',
  'neighborhood',
  'neighborhood_acc',
  'fluency',
  'consistency',
)


@dataclasses.dataclass(frozen=True)
class Published:
  """Rows of a paper's table.

  Attributes:
    source: paper and table.
    rows: by name of a cell, `UNEDITED`, or whatever else the paper compares with: by metric, the
      value and the half width of its 95% interval, None where there is none.
  """

  source: str
  rows: Mapping[str, Mapping[str, tuple[float, float | None]]]

  def beside(self, summaries: Mapping[str, Mapping[str, Any]]) -> Grid:
    """Three rows for each row of the paper that was run here: ours, theirs and the difference.

    The interval of a difference is the root of the sum of both squares, or ours where the paper
    has none.

    Args:
      summaries: of the cells by name.
    """
    columns = [name for name in _METRICS if any(name in row for row in self.rows.values())]
    rows: list[list[Cell]] = []
    for name, row in self.rows.items():
      theirs = [_summary(*row[column]) if column in row else None for column in columns]
      ours = _ours(name, summaries, columns)
      if ours is None:
        rows.append([f'{name}, published', *theirs])
      else:
        differences = [_difference(*pair) for pair in zip(ours, theirs, strict=True)]
        rows += [[name, *ours], ['  published', *theirs], ['  difference', *differences]]
    return Grid(('', *columns), rows)


def read_published(config: Mapping[str, Any]) -> Published | None:
  """The section `published` of a sweep's config; None where there is none.

  `published.rows` is a sequence of pairs, since configs sort the names of their sections: a name
  and metrics, each a number or a pair of a number and its interval.

  Raises:
    UserError: for rows of another form, and metrics that do not exist.
  """
  section = config.get('published')
  if not section or not section.get('rows'):
    return None
  rows = {}
  for pair in section['rows']:
    if len(pair) != 2 or not isinstance(pair[1], Mapping):
      raise UserError(f'The published row {pair!r} is no pair of a name and its metrics.')
    name, metrics = pair
    rows[name] = {metric: _value(name, metric, value) for metric, value in metrics.items()}
  return Published(str(section.get('source', 'Published')), rows)


def _value(name: str, metric: str, value: Any) -> tuple[float, float | None]:
  if metric not in _METRICS:
    raise UserError(
      f'The published row {name!r} has no metric {metric!r}; choose of {", ".join(_METRICS)}.'
    )
  parts = value if isinstance(value, list | tuple) else (value,)
  if len(parts) > 2 or not all(isinstance(part, int | float) for part in parts):
    raise UserError(
      f'The published {metric} of {name!r} is {value!r}; give a number, or a pair of it and its '
      'interval.'
    )
  return float(parts[0]), (float(parts[1]) if len(parts) == 2 else None)


def _ours(
  name: str, summaries: Mapping[str, Mapping[str, Any]], columns: list[str]
) -> list[Cell] | None:
  """The metrics of a cell, or those before the first one's edit."""
  if name == UNEDITED:
    metrics, state = next(iter(summaries.values()))['metrics'], 'before'
  elif name in summaries:
    metrics, state = summaries[name]['metrics'], 'after'
  else:
    return None
  return [metrics.get(column, {}).get(state) for column in columns]


def _summary(mean: float, ci95: float | None) -> Cell:
  return mean if ci95 is None else {'mean': mean, 'ci95': ci95, 'n': None}


def _difference(ours: Cell, theirs: Cell) -> Cell:
  if not isinstance(ours, Mapping) or ours['mean'] is None or theirs is None:
    return None
  mean, ci95 = (theirs['mean'], theirs['ci95']) if isinstance(theirs, Mapping) else (theirs, 0.0)
  return {'mean': ours['mean'] - mean, 'ci95': math.hypot(ours['ci95'], ci95), 'n': ours['n']}
