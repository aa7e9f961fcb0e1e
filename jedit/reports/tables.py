"""Tables for people and programs: one grid of cells as text, HTML, LaTeX and CSV."""

import csv
import dataclasses
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

# Text, a number, or a summary with `mean`, `ci95` and `n` (mean None where nothing is defined).
Cell = str | int | float | Mapping[str, Any] | None

NOTHING = '–'

_LATEX = {
  '\\': r'\textbackslash{}',
  '&': r'\&',
  '%': r'\%',
  '$': r'\$',
  '#': r'\#',
  '_': r'\_',
  '{': r'\{',
  '}': r'\}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
}


@dataclasses.dataclass(frozen=True)
class Grid:
  """Rows of cells under a head; the first column names the rows.

  Attributes:
    head: names of the columns.
    rows: as many cells each.
    digits: behind the point, except in CSV, which has all.
  """

  head: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  digits: int = 1

  def text(self) -> str:
    """Aligned columns for a terminal; `mean ± ci95`."""
    rows = [
      list(self.head),
      *([self._words(cell, ' ±', 4 + self.digits) for cell in row] for row in self.rows),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(self.head))]
    lines = []
    for row in rows:
      cells = [row[0].ljust(widths[0])]
      cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
      lines.append('  '.join(cells).rstrip())
    lines.insert(1, '-' * max(map(len, lines)))
    return '\n'.join(lines)

  def html(self, kind: str = '') -> str:
    """A table in a box that scrolls sideways where the page is narrower.

    Args:
      kind: its class; 'text' for cells of prose.
    """

    def row(cells: Sequence[str], tag: str) -> str:
      return f'<tr>{"".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)}</tr>'

    body = '\n'.join(row([self._words(cell, ' ± ') for cell in cells], 'td') for cells in self.rows)
    head = f'<thead>{row(self.head, "th")}</thead>'
    return f'<div class="wide"><table class="{kind}">\n{head}\n{body}\n</table></div>'

  def latex(self) -> str:
    """A booktabs `tabular`."""

    def line(cells: Sequence[str]) -> str:
      return f'{" & ".join(cells)} \\\\'

    lines = [f'\\begin{{tabular}}{{l{"r" * (len(self.head) - 1)}}}', '\\toprule']
    lines += [line([_escaped(name) for name in self.head]), '\\midrule']
    lines += [line([self._latex(cell) for cell in row]) for row in self.rows]
    return '\n'.join([*lines, '\\bottomrule', '\\end{tabular}']) + '\n'

  def csv(self) -> str:
    """Numbers with all digits; a column of summaries becomes three: mean, ci95 and n."""
    is_summary = [
      any(isinstance(row[c], Mapping) for row in self.rows) for c in range(len(self.head))
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(
      name
      for column, whether in zip(self.head, is_summary, strict=True)
      for name in ((column, f'{column} ci95', f'{column} n') if whether else (column,))
    )
    for row in self.rows:
      cells: list[Cell] = []
      for cell, whether in zip(row, is_summary, strict=True):
        if isinstance(cell, Mapping):
          cells += [cell['mean'], cell['ci95'], cell['n']]
        else:
          cells += [cell, None, None] if whether else [cell]
      writer.writerow(cells)
    return out.getvalue()

  def _words(self, cell: Cell, plus_minus: str, width: int = 0) -> str:
    digits = self.digits
    if isinstance(cell, Mapping):
      if cell['mean'] is None:
        return NOTHING
      return f'{cell["mean"]:.{digits}f}{plus_minus}{cell["ci95"]:{width}.{digits}f}'
    if isinstance(cell, float):
      return f'{cell:.{digits}f}' if math.isfinite(cell) else NOTHING
    return NOTHING if cell is None else str(cell)

  def _latex(self, cell: Cell) -> str:
    words = self._words(cell, r' \pm ')
    if words == NOTHING:
      return '--'
    return f'${words}$' if isinstance(cell, Mapping) else _escaped(words)


def _escaped(text: str) -> str:
  return ''.join(_LATEX.get(char, char) for char in text)
