"""Figures of reports: curves with 95% intervals, in colours for colour-blind readers."""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image

from jedit.io import storage
from jedit.units import visible

_LONGEST = 40  # characters of a name
# Okabe and Ito's colours, distinct for colour-blind readers; markers differ as well.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
_STYLE = {
  'font.size': 10,
  'axes.titlesize': 10,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'grid.color': '#dddddd',
  'legend.frameon': False,
  'text.parse_math': False,
  'svg.hashsalt': 'jedit',  # deterministic files
  'svg.fonttype': 'none',
}

# A line: x, mean and half width of the interval at each x.
Line = tuple[Sequence[float], Sequence[float], Sequence[float]]


class Panels:
  """A figure of panels in a grid; `axes` holds matplotlib's axes by row and column."""

  def __init__(self, num_rows: int, num_columns: int, *, width: float = 3.1, height: float = 2.3):
    """Width and height of a panel, in inches."""
    with matplotlib.rc_context(_STYLE):
      self._figure = Figure((width * num_columns, height * num_rows), layout='constrained')
      self.axes = self._figure.subplots(num_rows, num_columns, squeeze=False)
    self._series: dict[str, tuple[str, str]] = {}

  def style(self, name: str) -> dict[str, str]:
    """Colour and marker of a series, the same in all panels."""
    number = len(self._series)
    fresh = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    colour, marker = self._series.setdefault(name, fresh)
    return {'color': colour, 'marker': marker}

  def lines(self, row: int, column: int, lines: Mapping[str, Line], **labels: Any) -> None:
    """Draws named curves with bands.

    Args:
      row, column: the panel.
      lines: by name, in the order of the legend.
      labels: arguments of `Axes.set`: title, xlabel, ylabel, scales and limits.
    """
    axes = self.axes[row, column]
    for name, line in lines.items():
      x, mean, ci95 = (np.asarray(values, np.float64) for values in line)
      style = self.style(name)
      axes.plot(x, mean, **style, markersize=3.5, linewidth=1.5, label=name)
      band = dict(color=style['color'], alpha=0.2, linewidth=0)
      axes.fill_between(x, mean - ci95, mean + ci95, **band)
    axes.set(**labels)
    if labels.get('xscale') == 'log':
      axes.xaxis.set_major_formatter('{x:g}')

  def heat(
    self, row: int, column: int, values: np.ndarray, names: Sequence[str], **labels: Any
  ) -> None:
    """Draws a heat map with its colour bar; nan stays empty.

    Args:
      row, column: the panel.
      values: one row per name, one column per integer from 0.
      names: of the rows, from the top.
      labels: arguments of `Axes.set`.
    """
    axes = self.axes[row, column]
    drawn = axes.imshow(values, cmap='cividis', aspect='auto', interpolation='nearest')
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    axes.set(**labels)
    self._figure.colorbar(drawn, ax=axes)

  def rank_axis(self, row: int, column: int) -> None:
    """Logarithmic vertical axis of ranks, with rank 0 at the top."""
    axes = self.axes[row, column]
    axes.set_yscale('symlog', linthresh=1)
    axes.set_ylim(bottom=0)
    axes.invert_yaxis()
    axes.yaxis.set_major_formatter('{x:g}')

  def whole_layers(self) -> None:
    """Integer ticks, for axes of layers."""
    for axes in self.axes.flat:
      axes.xaxis.set_major_locator(MaxNLocator(integer=True))

  def plain_log_ticks(self) -> None:
    """Few plain numbers on logarithmic axes, where labels of all digits would overlap."""
    for axis in (axis for axes in self.axes.flat for axis in (axes.xaxis, axes.yaxis)):
      if axis.get_scale() == 'log':
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter('{x:g}')

  @property
  def screen_width(self) -> int:
    """Pixels of a page on which the texts are as large as those around."""
    return round(105 * self._figure.get_figwidth())

  def save(self, path: pathlib.Path) -> bytes:
    """Writes `path` with the endings .png and .svg; returns the PNG."""
    png = self.png()
    with matplotlib.rc_context(_STYLE):
      with storage.atomic_file(path.with_name(path.name + '.png')) as beside:
        beside.write_bytes(png)
      with storage.atomic_file(path.with_name(path.name + '.svg')) as beside:
        self._figure.savefig(beside, format='svg', metadata={'Date': None})
    return png

  def png(self) -> bytes:
    """The figure as PNG with few colours, a fifth of the size."""
    handles: dict[str, Any] = {}
    for axes in self.axes.flat:
      for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
        handles.setdefault(name, handle)
    for text in self._figure.findobj(Text):
      text.set_parse_math(False)  # a name with dollars is not a formula
    drawn, small = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(_STYLE):
      if len(handles) > 1 and not self._figure.legends:
        columns = min(len(handles), 3)
        where = dict(loc='outside upper center', ncols=columns)
        self._figure.legend(list(handles.values()), list(handles), **where)
      self._figure.savefig(drawn, format='png', dpi=150)
    Image.open(drawn).convert('RGB').quantize(64).save(small, format='PNG')
    return small.getvalue()


def histogram(values: Mapping[str, np.ndarray], xlabel: str) -> Panels:
  """A histogram of values in percent, in 40 bins from -100 to 100.

  Args:
    values: by state ('before', 'after'); nan is omitted.
    xlabel: of the values.
  """
  panels = Panels(1, 1, width=6, height=2.8)
  axes = panels.axes[0, 0]
  bins = np.linspace(-100, 100, 41)
  for name, value_R in values.items():
    colour = panels.style(name)['color']
    value_R = value_R[~np.isnan(value_R)]
    axes.hist(value_R, bins, color=colour, alpha=0.35)
    axes.hist(value_R, bins, color=colour, histtype='step', linewidth=1.5, label=name)
  axes.axvline(0, color='#444444', linewidth=1, linestyle=':')
  axes.set(xlabel=xlabel, ylabel='records', xlim=(-100, 100))
  return panels


def _short(name: Any) -> str:
  text = visible(' '.join(str(name).split()))
  return text if len(text) <= _LONGEST else f'{text[: _LONGEST - 1]}…'


def dots(frame: pd.DataFrame, xlabel: str) -> Panels:
  """One row for each name, with a dot and its interval for each series.

  Args:
    frame: names, counts, and a column of estimates for each series.
    xlabel: of the common axis, 0 to 100.
  """
  pairs = zip(frame.iloc[:, 0], frame.iloc[:, 1], strict=True)
  names = [f'{_short(name)} ({count})' for name, count in pairs]
  panels = Panels(1, 1, width=6, height=1.2 + 0.3 * len(names))
  axes = panels.axes[0, 0]
  series = frame.columns[2:]
  for i, name in enumerate(series):
    shift = 0.2 * (i - (len(series) - 1) / 2)
    found = [(y, each) for y, each in enumerate(frame[name]) if each['mean'] is not None]
    axes.errorbar(
      [each['mean'] for _, each in found],
      [y + shift for y, _ in found],
      xerr=[each['ci95'] for _, each in found],
      **panels.style(name),
      linestyle='none',
      markersize=5,
      label=name,
    )
  axes.set(xlabel=xlabel, xlim=(-4, 104), ylim=(len(names) - 0.5, -0.5))
  axes.set_yticks(range(len(names)), names)
  axes.grid(axis='y', visible=False)
  return panels
