"""Tables for people and programs: pandas DataFrames as text, HTML, LaTeX and CSV.

A cell is text, a number, None, or an estimate: a mapping with `mean`, `ci95` (half width of the 95%
interval; both None where nothing is defined) and `n`, and optionally the `digits` to show (1).
"""

import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from jedit.io import storage
from jedit.units import visible

Cell = str | int | float | Mapping[str, Any] | None

NOTHING = '–'


def table(head: Sequence[Any], rows: Iterable[Sequence[Cell]]) -> pd.DataFrame:
  """Rows of cells under a head; the first column names the rows."""
  return pd.DataFrame([list(row) for row in rows], columns=list(head), dtype=object)


def to_text(frame: pd.DataFrame) -> str:
  """Aligned columns for a terminal; `mean ± ci95`."""
  first, *others = frame.columns
  words = frame.map(lambda cell: _words(cell, ' ±', NOTHING, align=True))
  words = words.set_index(first).rename_axis(index=None, columns=first)
  widths = [len(name) + 1 for name in others]  # two spaces between long names
  lines = words.to_string(col_space=widths).splitlines()
  return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:]])


def to_html(frame: pd.DataFrame, kind: str = '') -> str:
  """An escaped table in a box that scrolls sideways where the page is narrower.

  Args:
    frame: of cells.
    kind: CSS class of the table; 'text' for cells of prose.
  """
  words = frame.map(lambda cell: _words(cell, ' ± ', NOTHING))
  with pd.option_context('display.max_colwidth', None):
    page = words.to_html(index=False, border=0, classes=kind, formatters=[str] * words.shape[1])
  return f'<div class="wide">{page}</div>'


def to_latex(frame: pd.DataFrame) -> str:
  """An escaped booktabs `tabular`."""
  style = frame.style.format(_latex, escape='latex').format_index(axis=1, escape='latex')
  columns = 'l' + 'r' * (len(frame.columns) - 1)
  return style.hide(axis='index').to_latex(hrules=True, column_format=columns)


def to_csv(frame: pd.DataFrame) -> str:
  """Numbers with all digits; a column of estimates becomes three: mean, ci95 and n."""
  head: list[str] = []
  columns: list[list[Cell]] = []
  for name, column in frame.items():
    if not any(isinstance(cell, Mapping) for cell in column):
      head.append(str(name))
      columns.append(list(column))
      continue
    head += [str(name), f'{name} ci95', f'{name} n']
    estimates = [cell if isinstance(cell, Mapping) else {'mean': cell} for cell in column]
    columns += [[cell.get(field) for cell in estimates] for field in ('mean', 'ci95', 'n')]
  rows = ([_harmless(cell) for cell in row] for row in zip(*columns, strict=True))
  return table([_harmless(name) for name in head], rows).to_csv(index=False)


def _harmless(cell: Cell) -> Cell:
  """Text that spreadsheets would run as a formula, behind an apostrophe."""
  if not isinstance(cell, str):
    return cell
  cell = visible(cell)
  return f"'{cell}" if cell.startswith(('=', '+', '-', '@', '\t', '\r', '\n')) else cell


def write(path: pathlib.Path, frame: pd.DataFrame) -> None:
  """Writes `path` with the endings .csv and .tex."""
  storage.write_text(path.with_name(f'{path.name}.csv'), to_csv(frame))
  storage.write_text(path.with_name(f'{path.name}.tex'), to_latex(frame))


def _words(cell: Cell, plus_minus: str, nothing: str, *, align: bool = False) -> str:
  if isinstance(cell, Mapping):
    if cell['mean'] is None:
      return nothing
    digits = cell.get('digits', 1)
    width = 4 + digits if align else 0  # up to 100
    mean, ci95 = f'{cell["mean"]:z.{digits}f}', cell['ci95']
    return mean if ci95 is None else f'{mean}{plus_minus}{ci95:{width}.{digits}f}'
  if isinstance(cell, float):
    return f'{cell:z.1f}' if math.isfinite(cell) else nothing
  return nothing if cell is None else str(cell)


def _latex(cell: Cell) -> str:
  words = visible(_words(cell, r' \pm ', '--'))
  return f'${words}$' if isinstance(cell, Mapping) and words != '--' else words
