"""Comparison of several runs: the cells of a sweep, or finished workdirs."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jedit.evals import metrics
from jedit.evals.estimates import summarize_runs
from jedit.evals.samples import Sample
from jedit.io import figures, html, storage, tables
from jedit.io.tables import Cell
from jedit.reports.published import Published

Summaries = Mapping[str, Mapping[str, Any]]
Configs = Mapping[str, Mapping[str, Any]]  # flat

_NORM = '‖ΔW‖'  # of all kernels together
_EDITS = 'number of edits'
_FIELDS = ('mean', 'ci95', 'n')
_PANELS = 3  # per row of the figure


@dataclasses.dataclass(frozen=True)
class Axis:
  """A config field on the x axis of curves.

  Attributes:
    field: its name, as 'method.cov_weight'.
    values: by name of a run.
    series: by name of a run, the common part of the names of runs that differ only in this field.
  """

  field: str
  values: Mapping[str, float]
  series: Mapping[str, str]


def write(
  workdir: pathlib.Path,
  name: str,
  title: str,
  summaries: Summaries,
  provenance: Mapping[str, Any],
  published: Published | None = None,
  samples: Mapping[str, Sequence[Sample]] | None = None,
  axis: Axis | None = None,
  configs: Configs | None = None,
) -> str:
  """Writes the files of a comparison: NAME.csv, NAME.tex, report.html, and figures of curves.

  With published rows also published.csv and published.tex, with samples cases.csv and cases.tex,
  with runs of several seeds seeds.csv and seeds.tex.

  Args:
    workdir: directory of the files.
    name: of the table.
    title: of the page.
    summaries: of the runs, by name.
    provenance: for the page.
    published: rows of a paper.
    samples: of the runs, by name, for the same prompts.
    axis: of the curves; None takes the number of edits in one model.
    configs: of the runs, by name, without fields that leave results unchanged; runs that differ
      only in the seed are averaged.

  Returns:
    The tables as text.
  """
  parts: list[str] = []
  words: list[str] = []

  def add(file: str, frame: pd.DataFrame, heading: str, caption: str, kind: str = '') -> None:
    tables.write(workdir / file, frame)
    note = [html.paragraph(caption)] if caption else []
    parts.extend([html.heading(heading), *note, tables.to_html(frame, kind)])
    words.extend(['', caption or heading, '', tables.to_text(frame)] if not kind else [])

  caption = (
    f'After the edit, ± half width of the 95% interval; {metrics.units(_headlines(summaries))}.'
  )
  add(name, as_frame(summaries), 'Runs', caption)
  storage.write_text(workdir / f'{name}.csv', tables.to_csv(_all_metrics(summaries)))
  if published is not None:
    note = f'{published.source}. {published.note}' if published.note else ''
    add('published', published.beside(summaries), published.source, note)
  repeated = over_seeds(summaries, configs or {})
  if repeated is not None:
    caption = "Over seeds: means of the runs' means, ± half width of Student's 95% interval."
    add('seeds', repeated, 'Over seeds', caption)
  curves = _curves(summaries, axis)
  if curves:
    field = _EDITS if axis is None else axis.field
    by = 'the number of edits in one model' if axis is None else field
    png = _draw(curves, _headlines(summaries), field).save(workdir / 'curves')
    caption = f'Means over records by {by}, 95% intervals.'
    parts += [html.heading(f'By {field}'), html.picture(png, caption)]
  if samples:
    add('cases', _side_by_side(samples), 'Texts side by side', '', 'text')
  parts += [html.heading('Every metric'), tables.to_html(_by_metric(summaries))]
  parts += [html.heading('Provenance'), html.folded('Sources of the numbers', provenance)]
  html.write(workdir, title, parts)
  return '\n'.join(words).strip('\n')


def _headlines(summaries: Summaries) -> list[str]:
  """The headline metrics of any run, or their stand-ins."""
  return [
    name
    for name, metric in metrics.METRICS.items()
    if metric.is_headline and any(_after(summary, name) for summary in summaries.values())
  ]


def _after(summary: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
  """The estimate after the edit; of the stand-in for single-object records."""
  measured = summary['metrics']
  return metrics.as_cell(name, measured.get(metrics.find(name, measured), {}).get('after'))


def as_frame(summaries: Summaries) -> pd.DataFrame:
  """One row for each run, after the edit."""
  columns = _headlines(summaries)
  rows = []
  for name, summary in summaries.items():
    count = (_after(summary, 'efficacy') or {}).get('n')
    cells = [_after(summary, column) for column in columns]
    seconds = [summary['seconds'].get(part, 0.0) for part in ('targets', 'keys', 'solve', 'edit')]
    about = [summary['num_edits'], count, summary.get('update_norm'), float(sum(seconds))]
    rows.append([name, *cells, *about])
  return tables.table(['', *columns, 'edits', 'n', _NORM, 'edit, s'], rows)


def _all_metrics(summaries: Summaries) -> pd.DataFrame:
  """One row for each metric of each run, before and after."""
  rows = [
    [name, summary['method'], summary['num_edits'], metric, state, *(value[f] for f in _FIELDS)]
    for name, summary in summaries.items()
    for metric, states in summary['metrics'].items()
    for state, value in states.items()
  ]
  return tables.table(['cell', 'method', 'num_edits', 'metric', 'state', *_FIELDS], rows)


def _by_metric(summaries: Summaries) -> pd.DataFrame:
  """Runs as columns: their settings, then every metric after the edit."""
  names = dict.fromkeys(name for s in summaries.values() for name in s['metrics'])
  about = [
    [field, *(str(summary[field]) for summary in summaries.values())]
    for field in ('method', 'model', 'dataset', 'num_edits', 'mode')
  ]
  rows = [
    [n, *(metrics.as_cell(n, s['metrics'].get(n, {}).get('after')) for s in summaries.values())]
    for n in names
  ]
  return tables.table(['', *summaries], [*about, *rows])


def _side_by_side(samples: Mapping[str, Sequence[Sample]]) -> pd.DataFrame:
  """One row per prompt of the first run: continuations by the unedited model and all runs.

  Runs of other records have other prompts; those that share none are omitted.
  """
  first = next(iter(samples.values()))
  after = {name: {each.prompt: each.after for each in texts} for name, texts in samples.items()}
  shown = {name: texts for name, texts in after.items() if any(e.prompt in texts for e in first)}
  rows = []
  for each in first:
    texts = [each.before, *(of_run.get(each.prompt) for of_run in shown.values())]
    ends = [None if text is None else text.removeprefix(each.prompt) for text in texts]
    # One line each, as CSV and LaTeX require.
    rows.append([text and ' '.join(text.split()) for text in (each.prompt, *ends)])
  return tables.table(['prompt', 'unedited', *shown], rows)


def over_seeds(summaries: Summaries, configs: Configs) -> pd.DataFrame | None:
  """One row for each group of runs whose configs differ only in the seed; None without any.

  Args:
    summaries: of the runs, by name.
    configs: of the runs, by name, as in `write`; a run without config is in no group.
  """
  groups: dict[str, dict[int, str]] = {}
  for name, config in configs.items():
    fields = {field: value for field, value in config.items() if field != 'seed'}
    of_seed = groups.setdefault(json.dumps(fields, sort_keys=True), {})
    of_seed.setdefault(config.get('seed', 0), name)  # one of the runs with this seed
  repeated = [list(names.values()) for names in groups.values() if len(names) > 1]
  if not repeated:
    return None
  columns = _headlines({name: summaries[name] for names in repeated for name in names})
  rows: list[list[Cell]] = []
  for names in repeated:
    cells: list[Cell] = []
    for column in columns:
      estimates = [_after(summaries[name], column) for name in names]
      means = [math.nan if e is None or e['mean'] is None else e['mean'] for e in estimates]
      cells.append(metrics.as_cell(column, summarize_runs(np.array(means))))
    rows.append([_common(names, summaries), *cells, len(names)])
  return tables.table(['', *columns, 'seeds'], rows)


def _common(names: Sequence[str], summaries: Summaries) -> str:
  """The cell's name for repeated sweeps, else the method's, with the workdirs."""
  parts = [name.partition(': ') for name in names]
  cells = {cell for _, _, cell in parts}
  if cells == {''} or len(cells) > 1:
    return f'{summaries[names[0]]["method"]} ({", ".join(names)})'
  return f'{cells.pop()} ({", ".join(workdir for workdir, _, _ in parts)})'


def _curves(
  summaries: Summaries, axis: Axis | None = None
) -> dict[str, dict[float, Mapping[str, Any]]]:
  """Summaries by series (runs that differ only in the position) and position on the axis.

  Without an axis the position is the number of edits, and series follow the names of the runs.
  """
  series: dict[str, dict[float, Mapping[str, Any]]] = {}
  for name, summary in summaries.items():
    if axis is not None:
      series.setdefault(axis.series[name], {})[axis.values[name]] = summary
      continue
    edits = summary.get('edits_per_model', summary['num_edits'])
    number = f'(?:{edits}|{edits:,})'
    bare = re.sub(rf'[\s,(_-]*(?<!\d){number}(?!\d)(?:[\s_-]*edits?)?\)?', '', name).strip(' ,_-')
    series.setdefault(bare or summary['method'], {})[edits] = summary
  if not any(len(points) > 1 for points in series.values()):
    return {}
  return {name: dict(sorted(points.items())) for name, points in series.items()}


def _draw(
  curves: Mapping[str, Mapping[float, Mapping[str, Any]]], columns: Sequence[str], field: str
) -> figures.Panels:
  """A panel for each metric and one for the norm of the update, if runs have them."""
  every = [x for points in curves.values() for x in points]
  xscale = 'log' if max(every) > 10 * min(every) > 0 else 'linear'
  lines = {column: _lines(curves, column) for column in (*columns, _NORM)}
  lines = {column: each for column, each in lines.items() if each}
  panels = figures.Panels(max(1, -(-len(lines) // _PANELS)), _PANELS)
  for i, (column, each) in enumerate(lines.items()):
    row, place = divmod(i, _PANELS)
    is_lowest = i + _PANELS >= len(lines)
    labels = {'title': column, 'xscale': xscale, 'xlabel': field if is_lowest else ''}
    limits: dict[str, Any] = {}
    if column == _NORM:
      limits = {'yscale': 'log'}
    elif metrics.entry(column).unit == metrics.PERCENT:
      limits = {'ylabel': '' if place else '%', 'ylim': (-4, 104)}
    panels.lines(row, place, each, **labels, **limits)
  for axes in panels.axes.flat[len(lines) :]:
    axes.set_visible(False)
  panels.plain_log_ticks()
  return panels


def _lines(
  curves: Mapping[str, Mapping[float, Mapping[str, Any]]], column: str
) -> dict[str, figures.Line]:
  """The curve of each series, at the points with a value."""
  lines: dict[str, figures.Line] = {}
  for name, points in curves.items():
    found = [(x, _curve_value(summary, column)) for x, summary in points.items()]
    known = [(x, value['mean'], value['ci95']) for x, value in found if value['mean'] is not None]
    if known:
      x, mean, ci95 = zip(*known, strict=True)
      lines[name] = x, mean, ci95
  return lines


def _curve_value(summary: Mapping[str, Any], column: str) -> Mapping[str, Any]:
  if column == _NORM:
    return {'mean': summary.get('update_norm'), 'ci95': 0.0}
  return _after(summary, column) or {'mean': None}
