"""Several runs side by side: the cells of a sweep, or workdirs that are compared."""

import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jedit.evals.metrics import summarize_runs
from jedit.evals.samples import Sample
from jedit.experiments.sweep import SHARED, Axis, folder
from jedit.experiments.workdir import CONFIG_FILE, FREE, flat
from jedit.io import storage
from jedit.reports import figures, html
from jedit.reports.published import Published
from jedit.reports.tables import Cell, Grid
from jedit.types import UserError

SUMMARY_FILE = 'summary.json'
SWEEP_FILE = 'sweep.json'

Summaries = Mapping[str, Mapping[str, Any]]
Configs = Mapping[str, Mapping[str, Any]]  # flat

_COLUMNS = ('efficacy', 'paraphrase', 'neighborhood', 'score', 'unedited_kept')
_OPTIONAL = ('fluency', 'consistency', 'essence')  # columns where some run has them
_CURVES = ('score', 'efficacy', 'paraphrase', 'neighborhood', 'unedited_kept')
_NORM = '‖ΔW‖'  # of all kernels together
_EDITS = 'number of edits'


def read_runs(workdirs: Sequence[str]) -> tuple[dict[str, dict[str, Any]], Configs]:
  """The summaries and configs of finished runs; a sweep gives its cells'.

  Returns:
    Both by the name of the workdir, with that of the cell. In the config of a cell what it was
    given by its sweep is what the sweep was given.

  Raises:
    UserError: without workdirs, for one without results, and for two of one name.
  """
  if not workdirs:
    raise UserError('There is nothing to compare; give workdirs, separated by commas.')
  summaries: dict[str, dict[str, Any]] = {}
  configs: dict[str, Mapping[str, Any]] = {}
  for workdir in workdirs:
    place = pathlib.Path(workdir)
    label = place.name or place.resolve().name
    if (place / SWEEP_FILE).is_file():
      cells = storage.read_json(place / SWEEP_FILE)
      config = _config(place)
      shared = {field: config.get(field, '') for field in SHARED}
      more = {f'{label}: {name}': summary for name, summary in cells.items()}
      places = [place / 'cells' / folder(name) for name in cells]
    elif (place / SUMMARY_FILE).is_file():
      more, places = {label: storage.read_json(place / SUMMARY_FILE)}, [place]
      shared = {}
    else:
      raise UserError(f'{place} has no {SUMMARY_FILE}; give the workdir of a finished run.')
    for (name, summary), where in zip(more.items(), places, strict=True):
      if name in summaries:
        raise UserError(f'Two workdirs are called {name!r}; rename one.')
      summaries[name] = summary
      if config := _config(where):
        configs[name] = {**config, **shared}
  return summaries, configs


def _config(workdir: pathlib.Path) -> dict[str, Any]:
  """The flat config of a run; empty where it is not known."""
  file = workdir / CONFIG_FILE
  return flat(storage.read_json(file)) if file.is_file() else {}


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
  """Writes the files of an overview: NAME.csv, NAME.tex, report.html, and figures of curves.

  With rows of a paper also published.csv and published.tex, with samples cases.csv and cases.tex,
  with runs of several seeds seeds.csv and seeds.tex.

  Args:
    workdir: where.
    name: of the table.
    title: of the page.
    summaries: of the runs by name.
    provenance: for the page.
    published: rows to print beside ours.
    samples: of the runs by name, of the same prompts.
    axis: what curves are drawn over; None takes the number of edits in one model.
    configs: of the runs by name: those that differ in their seed alone are summed up.

  Returns:
    The tables as text, with a line about what is missing.
  """
  grid = as_grid(summaries)
  html.write_table(workdir, name, grid)
  with storage.atomic_file(workdir / f'{name}.csv') as beside:
    beside.write_text(_all_metrics(summaries).csv(), encoding='utf-8')
  parts = [html.paragraph('Percent after the edit, ± half width of the 95% interval.'), grid.html()]
  words = [grid.text()]
  if published is not None:
    compared = published.beside(summaries)
    html.write_table(workdir, 'published', compared)
    parts += [html.heading(published.source), compared.html()]
    words.append(f'\n{published.source}\n\n{compared.text()}')
  repeated = over_seeds(summaries, configs or {})
  if repeated is not None:
    html.write_table(workdir, 'seeds', repeated)
    caption = "Over seeds: means of the runs' means, ± half width of Student's 95% interval."
    parts += [html.heading('Over seeds'), html.paragraph(caption), repeated.html()]
    words.append(f'\n{caption}\n\n{repeated.text()}')
  curves = _curves(summaries, axis)
  if curves and figures.available():
    field = _EDITS if axis is None else axis.field
    panels = _draw(curves, field)
    what = 'the number of edits that one model holds' if axis is None else field
    caption = f'Means over records by {what}, 95% intervals.'
    parts += [html.heading(f'By {field}')]
    parts += [html.picture(panels.save(workdir / 'curves'), caption)]
  elif curves:
    parts += [html.paragraph(figures.MISSING, 'note')]
    words.append(figures.MISSING)
  if samples:
    cases = _side_by_side(samples)
    html.write_table(workdir, 'cases', cases)
    parts += [html.heading('Texts side by side'), cases.html('text')]
  parts += [html.heading('Every metric'), _by_metric(summaries).html()]
  parts += [html.heading('Where this comes from'), html.folded('Provenance', provenance)]
  html.write(workdir, title, parts)
  return '\n'.join(words)


def as_grid(summaries: Summaries) -> Grid:
  """A row for each run: percent after the edit."""
  more = [name for name in _OPTIONAL if any(name in s['metrics'] for s in summaries.values())]
  rows = []
  for name, summary in summaries.items():
    metrics = summary['metrics']
    count = metrics['efficacy' if 'efficacy' in metrics else 'efficacy_acc']['after']['n']
    cells = [_after(metrics, column) for column in (*_COLUMNS, *more)]
    norm = summary.get('update_norm')
    rows.append((name, *cells, summary['num_edits'], count, norm, _edit_seconds(summary)))
  return Grid(('', *_COLUMNS, *more, 'edits', 'n', _NORM, 'edit, s'), rows)


def _after(metrics: Mapping[str, Any], column: str) -> Mapping[str, Any] | None:
  """Success where records have a true answer, token accuracy where not."""
  found: Mapping[str, Any] | None = metrics.get(column, metrics.get(f'{column}_acc', {})).get(
    'after'
  )
  return found


def _all_metrics(summaries: Summaries) -> Grid:
  """Every metric of every run, before and after: one row each."""
  rows = [
    (
      name,
      summary['method'],
      summary['num_edits'],
      metric,
      state,
      *(value[number] for number in ('mean', 'ci95', 'n')),
    )
    for name, summary in summaries.items()
    for metric, states in summary['metrics'].items()
    for state, value in states.items()
  ]
  return Grid(('cell', 'method', 'num_edits', 'metric', 'state', 'mean', 'ci95', 'n'), rows)


def _by_metric(summaries: Summaries) -> Grid:
  """Runs as columns: what they are, then every metric after the edit."""
  names = dict.fromkeys(name for s in summaries.values() for name in s['metrics'])
  about = [
    (name, *(str(s[name]) for s in summaries.values()))
    for name in ('method', 'model', 'dataset', 'num_edits', 'mode')
  ]
  rows = [
    (name, *(s['metrics'].get(name, {}).get('after') for s in summaries.values())) for name in names
  ]
  return Grid(('', *summaries), [*about, *rows])


def _side_by_side(samples: Mapping[str, Sequence[Sample]]) -> Grid:
  """A row for each prompt of the first run: how the unedited model and every run continue it.

  Runs of other records have other prompts; those that share none are left out.
  """
  asked = next(iter(samples.values()))
  after = {name: {each.prompt: each.after for each in texts} for name, texts in samples.items()}
  shown = {name: texts for name, texts in after.items() if any(e.prompt in texts for e in asked)}
  rows = []
  for each in asked:
    texts = [each.before, *(of_run.get(each.prompt) for of_run in shown.values())]
    ends = [None if text is None else text.removeprefix(each.prompt) for text in texts]
    # One line each, for CSV and LaTeX.
    rows.append([text and ' '.join(text.split()) for text in (each.prompt, *ends)])
  return Grid(('prompt', 'unedited', *shown), rows)


def _edit_seconds(summary: Mapping[str, Any]) -> float:
  parts: Sequence[str] = ('targets', 'keys', 'solve', 'edit')
  return float(sum(summary['seconds'].get(part, 0.0) for part in parts))


def over_seeds(summaries: Summaries, configs: Configs) -> Grid | None:
  """A row for each group of runs whose configs differ in the seed alone; None without any.

  Args:
    summaries: of the runs by name.
    configs: likewise; a run without one belongs to no group.
  """
  groups: dict[str, dict[int, str]] = {}
  for name, config in configs.items():
    fields = {k: v for k, v in config.items() if k != 'seed' and not k.startswith(FREE)}
    of_seed = groups.setdefault(json.dumps(fields, sort_keys=True), {})
    of_seed.setdefault(config.get('seed', 0), name)  # of a run that was repeated, one
  repeated = [list(names.values()) for names in groups.values() if len(names) > 1]
  found = {
    _common(names, summaries): [summaries[name]['metrics'] for name in names] for names in repeated
  }
  if not found:
    return None
  more = [c for c in _OPTIONAL if any(c in metrics for runs in found.values() for metrics in runs)]
  rows: list[list[Cell]] = []
  for name, runs in found.items():
    cells: list[Cell] = []
    for column in (*_COLUMNS, *more):
      values = [_after(metrics, column) for metrics in runs]
      means = [math.nan if v is None or v['mean'] is None else v['mean'] for v in values]
      cells.append(summarize_runs(np.array(means)))
    rows.append([name, *cells, len(runs)])
  return Grid(('', *_COLUMNS, *more, 'seeds'), rows)


def _common(names: Sequence[str], summaries: Summaries) -> str:
  """The cell's name where sweeps were repeated, the method's otherwise, and the workdirs."""
  parts = [name.partition(': ') for name in names]
  cells = {cell for _, _, cell in parts}
  if cells == {''} or len(cells) > 1:
    return f'{summaries[names[0]]["method"]} ({", ".join(names)})'
  return f'{cells.pop()} ({", ".join(workdir for workdir, _, _ in parts)})'


def _curves(
  summaries: Summaries, axis: Axis | None = None
) -> dict[str, dict[float, Mapping[str, Any]]]:
  """Summaries by what curves are drawn over: a series of runs that differ in nothing else.

  By the number of edits, which runs differ in nothing else is told by their names.
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


def _draw(curves: Mapping[str, Mapping[float, Mapping[str, Any]]], field: str) -> figures.Panels:
  every = [x for points in curves.values() for x in points]
  xscale = 'log' if max(every) > 10 * min(every) > 0 else 'linear'
  panels = figures.Panels(2, 3)
  for i, column in enumerate((*_CURVES, _NORM)):
    lines = {}
    for name, points in curves.items():
      found = {
        x: value
        for x, summary in points.items()
        if (value := _curve_value(summary, column)) and value['mean'] is not None
      }
      values = list(found.values())
      if values:  # runs of older versions have no norm, those of other models nothing unedited
        lines[name] = list(found), [v['mean'] for v in values], [v['ci95'] for v in values]
    row, place = divmod(i, 3)
    labels: dict[str, Any] = {'title': column, 'xlabel': field if row else ''}
    if lines and column == _NORM:
      labels |= {'xscale': xscale, 'yscale': 'log'}
    elif lines:
      labels |= {'xscale': xscale, 'ylabel': '' if place else '%', 'ylim': (-4, 104)}
    panels.lines(row, place, lines, **labels)
  panels.plain_log_ticks()
  return panels


def _curve_value(summary: Mapping[str, Any], column: str) -> Mapping[str, Any] | None:
  if column == _NORM:
    return {'mean': summary.get('update_norm'), 'ci95': 0.0}
  return _after(summary['metrics'], column)
