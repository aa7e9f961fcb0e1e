"""What a run tells in the end: summary.json, a text for the terminal, a page and its tables."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jedit.evals import metrics
from jedit.evals.samples import Sample
from jedit.evals.table import Table
from jedit.experiments.schema import Settings
from jedit.io import storage
from jedit.models.patch import Patch
from jedit.reports import figures, html
from jedit.reports.tables import Cell, Grid
from jedit.types import Record
from jedit.units import format_seconds

_STAGES = ('statistics', 'contexts', 'targets', 'keys', 'solve', 'edit', 'evaluate', 'samples')
_WORST = 10
_HEAD_NOTE = (
  'Mean over records ± half width of the 95% interval; n is the number of values. Percent, except '
  'fluency (bits x 100) and essence (a perplexity).'
)
_WORST_NOTE = (
  'The records with the lowest mean of efficacy, paraphrase and neighbourhood after the edit, '
  'percent.'
)
_ALWAYS = ('statistics', 'targets', 'keys', 'solve', 'evaluate', 'compile')  # in summary.json


def summarize(
  settings: Settings,
  patches: Sequence[Patch],
  table: Table,
  selection: str,
  seconds: Mapping[str, float],
) -> dict[str, Any]:
  """The content of summary.json.

  Args:
    settings: of the run.
    patches: what the measured model carries.
    table: of the evaluation.
    selection: which records were edited and measured, in words.
    seconds: by stage; 'compile' is a part of the others.
  """
  provenances = [patch.provenance for patch in patches]
  num_edits = sum(p.get('num_edits', 0) for p in provenances)
  is_separate = settings.edit.mode == 'separate'
  methods = [str(p.get('method', {}).get('name', 'unknown')) for p in provenances]
  return {
    'method': '+'.join(dict.fromkeys(methods)),
    'model': settings.model.name,
    'dataset': settings.dataset,
    'num_edits': num_edits,
    'edits_per_model': min(settings.edit.size, num_edits) if is_separate else num_edits,
    **table.to_summary(),
    'selection': selection,
    'update_norm': float(np.mean([_norm(patch) for patch in patches])) if patches else None,
    'mode': settings.edit.mode,
    'stopped': ' '.join(p['stopped'] for p in provenances if p.get('stopped')),
    'statistics': _statistics(provenances),
    'targets': _reached([each for p in provenances for each in p.get('targets', ())]),
    'seconds': dict.fromkeys(_ALWAYS, 0.0) | dict(seconds),
  }


def _norm(patch: Patch) -> float:
  """Frobenius norm of all that a patch changes together."""
  return float(np.linalg.norm([update.norm() for update in patch.updates.values()]))


def _statistics(provenances: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
  """Tokens and kind of the second moments, which all edits of a run share."""
  for provenance in provenances:
    for each in provenance.get('merged', (provenance,)):
      found = each.get('second_moments')
      if found:
        return {'tokens': found.get('num_tokens'), 'preset': found.get('preset')}
  return None


def _reached(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """How far the targets of each set of regions got: means over the edits of all batches."""
  found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
  for stage in stages:
    found.setdefault(tuple(stage['regions']), []).append(stage)
  rows = []
  for regions, batches in found.items():
    edits = sum(batch['edits'] for batch in batches)
    row: dict[str, Any] = {'regions': list(regions), 'edits': edits}
    for name in ('evaluations', 'nll', 'probability'):
      row[name] = sum(batch['edits'] * batch[name] for batch in batches) / edits
    row['programs'] = max(batch['programs'] for batch in batches)
    rows.append(row)
  return rows


def as_text(
  summary: Mapping[str, Any], table: Table, samples: Sequence[Sample], workdir: str
) -> str:
  """The report for the terminal."""
  lines = ['', _title(summary), '', str(table), '', *_sentences(summary)]
  for sample in samples:
    lines += ['', f'Record {sample.case_id}']
    lines += [f'  before  {_one_line(sample.before)}'] if sample.before is not None else []
    lines += [f'  after   {_one_line(sample.after)}']
  lines += ['', _times(summary['seconds']), f'The files are in {workdir}; open report.html there.']
  return '\n'.join(lines)


def _title(summary: Mapping[str, Any]) -> str:
  edits = '1 edit' if summary['num_edits'] == 1 else f'{summary["num_edits"]} edits'
  return f'{summary["method"]} on {summary["model"]}: {edits} of {summary["dataset"]}'


def _sentences(summary: Mapping[str, Any]) -> list[str]:
  """What the table does not say."""
  found = [summary['selection'], *([summary['stopped']] if summary['stopped'] else [])]
  moments = summary['statistics']
  if moments and moments['preset'] == 'fast':
    found.append(
      f'The second moments are of the fast preset: {moments["tokens"]} tokens; numbers to compare '
      'with others need the full text.'
    )
  kept = summary['metrics'].get('unedited_kept', {}).get('after')
  if kept and kept['n']:
    found.append(
      f'Unedited subjects: of {kept["n"]} questions answered right before, '
      f'{kept["mean"]:.1f} ± {kept["ci95"]:.1f}% still are.'
    )
  for stage in summary['targets']:
    found.append(
      f'Targets ({", ".join(stage["regions"])}): the new answer has probability '
      f'{stage["probability"]:.2f} after {stage["evaluations"]:.0f} evaluations, mean of all '
      f'edits; {_programs(stage["programs"])}.'
    )
  return found


def _undefined(summary: Mapping[str, Any]) -> list[str]:
  """How many records have no value of a metric; they are left out of its mean."""
  return [
    f'{name}: {" and ".join(f"{count} {state}" for state, count in by_state.items())} of the '
    'records have no value and are left out.'
    for name, by_state in summary['undefined'].items()
  ]


def _programs(count: int) -> str:
  return '1 step program was run' if count == 1 else f'{count} step programs were run'


def _times(seconds: Mapping[str, float]) -> str:
  shown = [f'{name} {format_seconds(seconds[name])}' for name in _STAGES if seconds.get(name)]
  return f'Time: {", ".join(shown)}; {format_seconds(seconds["compile"])} of it to compile.'


def _one_line(text: str | None) -> str:
  return ' '.join((text or '').split())


def write_page(
  workdir: pathlib.Path,
  summary: Mapping[str, Any],
  table: Table,
  records: Sequence[Record],
  samples: Sequence[Sample],
) -> str:
  """Writes report.html, its tables as CSV and LaTeX and its figures as PNG and SVG.

  Args:
    workdir: of the run; config.json and provenance.json are there.
    summary: of the run.
    table: its values; one for each of `records`.
    records: what was edited.
    samples: texts before and after.

  Returns:
    A line about what is missing; empty where nothing is.
  """
  grids = {'metrics': _metrics_grid(summary)}
  relations = _relations_grid(table, records)
  if len(relations.rows) > 1:
    grids['relations'] = relations
  for name, grid in grids.items():
    html.write_table(workdir, name, grid)
  pictures = _pictures(workdir, table, grids) if figures.available() else {}
  parts = [
    html.paragraph(_HEAD_NOTE),
    grids['metrics'].html(),
    *map(html.paragraph, [*_sentences(summary), *_undefined(summary), *summary['notes']]),
  ]
  if 'shifts' in pictures:
    parts += [html.heading('How far probabilities moved'), pictures['shifts']]
  if 'relations' in grids:
    parts += [html.heading('By relation'), pictures.get('relations', ''), relations.html()]
  parts += [
    html.heading('Worst cases'),
    html.paragraph(_WORST_NOTE),
    _worst(table, records).html('text'),
  ]
  if samples:
    texts = Grid(
      ('record', 'before', 'after'), [(str(s.case_id), s.before, s.after) for s in samples]
    )
    parts += [html.heading('Texts before and after'), texts.html('text')]
  definitions = Grid(
    ('metric', 'definition'),
    [
      (name, metrics.DEFINITIONS[name])
      for name in summary['metrics']
      if name in metrics.DEFINITIONS
    ],
  )
  seconds = Grid(('stage', 'seconds'), list(summary['seconds'].items()))
  parts += [
    html.heading('Time'),
    html.paragraph('Compiling is a part of the other stages.'),
    seconds.html(),
    html.heading('What the metrics are'),
    definitions.html('text'),
    html.heading('Where this comes from'),
    html.folded('Config', storage.read_json(workdir / 'config.json')),
    html.folded('Provenance', storage.read_json(workdir / 'provenance.json')),
  ]
  missing = '' if figures.available() else figures.MISSING
  parts += [html.paragraph(missing, 'note')] if missing else []
  html.write(workdir, _title(summary), parts)
  return missing


def _metrics_grid(summary: Mapping[str, Any]) -> Grid:
  rows = [
    (name, states.get('before'), states['after'], states['after']['n'])
    for name, states in summary['metrics'].items()
  ]
  return Grid(('metric', 'before', 'after', 'n'), rows)


def _parts(table: Table) -> dict[str, np.ndarray]:
  """Success by part after the edit; accuracy where records compare no objects."""
  names = metrics.SUCCESS if metrics.SUCCESS[0] in table.after else metrics.ACCURACY
  return {name: table.after[name] for name in names}


def _relations_grid(table: Table, records: Sequence[Record]) -> Grid:
  """The parts by relation, most frequent first."""
  members: dict[str, list[int]] = {}
  for r, record in enumerate(records):
    members.setdefault(record.relation_id or 'not known', []).append(r)
  parts = _parts(table)
  rows: list[Sequence[Cell]] = [
    (name, len(chosen), *(metrics.summarize_values(value_R[chosen]) for value_R in parts.values()))
    for name, chosen in sorted(members.items(), key=lambda item: -len(item[1]))
  ]
  return Grid(('relation', 'records', *parts), rows)


def _worst(table: Table, records: Sequence[Record]) -> Grid:
  parts = _parts(table)
  value_KxR = np.stack(list(parts.values()))
  count_R = np.maximum((~np.isnan(value_KxR)).sum(axis=0), 1)
  mean_R = np.nansum(value_KxR, axis=0) / count_R
  shift_R = table.after.get('efficacy_magnitude', mean_R)
  rows = []
  for r in np.lexsort((shift_R, mean_R))[:_WORST]:
    request = records[r].request
    change = ' → '.join(filter(None, (request.target_true, request.target)))
    values = [float(value_R[r]) for value_R in parts.values()]
    rows.append((str(records[r].case_id), request.text, change, *values))
  return Grid(('record', 'prompt', 'object', *parts), rows)


def _pictures(workdir: pathlib.Path, table: Table, grids: Mapping[str, Grid]) -> dict[str, str]:
  name = 'efficacy_magnitude' if 'efficacy_magnitude' in table.after else 'efficacy_acc'
  words = {
    'efficacy_magnitude': 'P(new object) − P(true object) on the edited prompt, %',
    'efficacy_acc': 'answer tokens on top on the edited prompt, %',
  }[name]
  states = {'before': table.before, 'after': table.after}
  shifts = figures.histogram(
    {state: values[name] for state, values in states.items() if values is not None}, words
  )
  found = {
    'shifts': html.picture(
      shifts.save(workdir / 'shifts'), f'How records are spread before and after: {words}.'
    )
  }
  if 'relations' in grids:
    grid = grids['relations']
    names = [f'{row[0]} ({row[1]})' for row in grid.rows]
    columns = {part: [row[c] for row in grid.rows] for c, part in enumerate(grid.head) if c > 1}
    drawn = figures.dots(names, columns, 'percent after the edit')
    caption = 'Means by relation (number of records) with 95% intervals.'
    found['relations'] = html.picture(drawn.save(workdir / 'relations'), caption)
  return found
