"""The results of a run: summary.json, a text for the terminal, a page and its tables."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jedit.evals import metrics
from jedit.evals.downstream import TaskTable
from jedit.evals.estimates import summarize_values
from jedit.evals.prompts import FIELDS
from jedit.evals.samples import Sample
from jedit.evals.table import Table
from jedit.io import figures, html, sealed, tables
from jedit.io.tables import Cell
from jedit.models.patch import Patch
from jedit.types import Record
from jedit.units import format_seconds

_STAGES = (
  'statistics', 'contexts', 'training', 'targets', 'keys', 'rows', 'transform', 'solve', 'edit',
  'evaluate', 'samples', 'downstream',
)  # fmt: skip
_WORST = 10
_PROMPTS = 1000  # of all records, up to which a page shows them all
_ALWAYS = ('statistics', 'targets', 'keys', 'solve', 'evaluate', 'compile')  # in summary.json


def summarize(
  patches: Sequence[Patch],
  table: Table,
  *,
  model: str,
  dataset: str,
  selection: str,
  mode: str,
  edits_per_batch: int,
  seconds: Mapping[str, float],
) -> dict[str, Any]:
  """The content of summary.json.

  Args:
    patches: of the measured models.
    table: of the evaluation.
    model, dataset: names.
    selection: the edited and measured records, in words.
    mode: 'together', 'separate' or 'sequential'.
    edits_per_batch: for the last two.
    seconds: by stage; 'compile' is part of the others.
  """
  provenances = [patch.provenance for patch in patches]
  num_edits = sum(p.get('num_edits', 0) for p in provenances)
  methods = [str(p.get('method', {}).get('name', 'unknown')) for p in provenances]
  return {
    'method': '+'.join(dict.fromkeys(methods)),
    'model': model,
    'dataset': dataset,
    'num_edits': num_edits,
    'edits_per_model': min(edits_per_batch, num_edits) if mode == 'separate' else num_edits,
    **table.to_summary(),
    'selection': selection,
    'update_norm': float(np.mean([_norm(patch) for patch in patches])) if patches else None,
    'mode': mode,
    'stopped': ' '.join(p['stopped'] for p in provenances if p.get('stopped')),
    'statistics': _statistics(provenances),
    'targets': _reached([each for p in provenances for each in p.get('targets', ())]),
    'seconds': dict.fromkeys(_ALWAYS, 0.0) | dict(seconds),
  }


def _norm(patch: Patch) -> float:
  """Frobenius norm of all updates of a patch together."""
  return float(np.linalg.norm([update.norm() for update in patch.updates.values()]))


def _statistics(provenances: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
  """Tokens and preset of the second moments, common to all edits of a run."""
  for provenance in provenances:
    for each in provenance.get('merged', (provenance,)):
      found = each.get('second_moments')
      if found:
        return {'tokens': found.get('num_tokens'), 'preset': found.get('preset')}
  return None


def _reached(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Optimised targets of each set of regions: means over the edits of all batches."""
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
    # Patches of earlier versions do not say.
    sizes = {batch['target_batch_size'] for batch in batches if 'target_batch_size' in batch}
    row['target_batch_sizes'] = sorted(sizes)
    rows.append(row)
  return rows


def as_text(
  summary: Mapping[str, Any],
  table: Table,
  samples: Sequence[Sample],
  workdir: str,
  tasks: TaskTable | None = None,
) -> str:
  """The report for the terminal; `tasks` are the downstream ones."""
  lines = ['', _title(summary), '', str(table), '', *_sentences(summary)]
  lines += ['', str(tasks)] if tasks is not None else []
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
  """Facts to accompany the table."""
  found = [summary['selection'], *([summary['stopped']] if summary['stopped'] else [])]
  moments = summary['statistics']
  if moments and moments['preset'] == 'fast':
    found.append(
      f'The second moments use the fast preset: {moments["tokens"]} tokens; for numbers to compare '
      'with others, use the full text.'
    )
  kept = summary['metrics'].get('unedited_kept', {}).get('after')
  if kept and kept['n']:
    found.append(
      f'Unedited subjects: of {kept["n"]} prompts answered right before, '
      f'{kept["mean"]:.1f} ± {kept["ci95"]:.1f}% still are.'
    )
  for stage in summary['targets']:
    found.append(
      f'Targets ({", ".join(stage["regions"])}): the new answer has probability '
      f'{stage["probability"]:.2f} after {stage["evaluations"]:.0f} evaluations, mean of all '
      f'edits; {_programs(stage)}.'
    )
  return found


def _undefined(summary: Mapping[str, Any]) -> list[str]:
  """Counts of records without a value, which are left out of means."""
  return [
    f'{name}: {" and ".join(f"{count} {state}" for state, count in by_state.items())} of the '
    'records have no value and are left out.'
    for name, by_state in summary['undefined'].items()
  ]


def _programs(stage: Mapping[str, Any]) -> str:
  """Programs and batch size, which decides the rounding of bfloat16."""
  count, sizes = stage['programs'], ' or '.join(map(str, stage['target_batch_sizes']))
  programs = '1 step program was run' if count == 1 else f'{count} step programs were run'
  return f'{programs} with up to {sizes} edits at once' if sizes else programs


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
  tasks: TaskTable | None = None,
) -> None:
  """Writes report.html, its tables as CSV and LaTeX and its figures as PNG and SVG.

  Args:
    workdir: of the run, with config.json and provenance.json.
    summary: of the run.
    table: of the evaluation, with one value for each of `records`.
    records: the edited records.
    samples: texts before and after.
    tasks: results of downstream tasks.
  """
  frame = _metrics_frame(summary)
  tables.write(workdir / 'metrics', frame)
  names = list(summary['metrics'])
  note = f'Means over n records ± half width of the 95% interval; {metrics.units(names)}.'
  sentences = [*_sentences(summary), *_undefined(summary), *summary['notes']]
  parts = [html.paragraph(note), tables.to_html(frame), *map(html.paragraph, sentences)]
  if tasks is not None:
    parts += [html.heading('Downstream tasks'), tables.to_html(tasks.to_frame())]
    parts += [html.paragraph(tasks.note)]
  parts += [html.heading('Shift of probabilities'), _shifts(workdir, table)]
  relations = _relations_frame(table, records)
  if len(relations) > 1:
    tables.write(workdir / 'relations', relations)
    dots = figures.dots(relations, 'percent after the edit').save(workdir / 'relations')
    caption = 'Means by relation (number of records) with 95% intervals.'
    parts += [html.heading('By relation'), html.picture(dots, caption), tables.to_html(relations)]
  note = (
    f'The records with the lowest mean of {", ".join(metrics.rates(table.after))} after the edit.'
  )
  parts += [html.heading('Worst cases'), html.paragraph(note)]
  worst = _worst(table)
  parts += [tables.to_html(_worst_frame(table, records, worst), 'text')]
  parts += _prompts(table, records, worst)
  if samples:
    texts = [(str(sample.case_id), sample.before, sample.after) for sample in samples]
    parts += [html.heading('Texts before and after')]
    parts += [tables.to_html(tables.table(['record', 'before', 'after'], texts), 'text')]
  seconds = tables.table(['stage', 'seconds'], list(summary['seconds'].items()))
  parts += [
    html.heading('Time'),
    html.paragraph('Compilation is a part of the other stages.'),
    tables.to_html(seconds),
    html.heading('Definitions'),
    tables.to_html(_definitions(names), 'text'),
    html.heading('Provenance'),
    html.folded('Config', sealed.read_json(workdir / 'config.json', None)),
    html.folded('Provenance', sealed.read_json(workdir / 'provenance.json', None)),
  ]
  html.write(workdir, _title(summary), parts)


def _metrics_frame(summary: Mapping[str, Any]) -> pd.DataFrame:
  rows = [
    [
      name,
      *(metrics.as_cell(name, states.get(s)) for s in ('before', 'after')),
      states['after']['n'],
    ]
    for name, states in summary['metrics'].items()
  ]
  return tables.table(['metric', 'before', 'after', 'n'], rows)


def _definitions(names: Sequence[str]) -> pd.DataFrame:
  entries = [metrics.entry(name) for name in names]
  rows = [
    (e.name, e.unit, 'higher' if e.higher_is_better else 'lower', e.definition) for e in entries
  ]
  return tables.table(['metric', 'unit', 'better', 'definition'], rows)


def _relations_frame(table: Table, records: Sequence[Record]) -> pd.DataFrame:
  """The rates of the score by relation, most frequent first."""
  members: dict[str, list[int]] = {}
  for r, record in enumerate(records):
    members.setdefault(record.relation_id or 'not known', []).append(r)
  names = metrics.rates(table.after)
  rows: list[list[Cell]] = [
    [name, len(chosen), *(summarize_values(table.after[part][chosen]) for part in names)]
    for name, chosen in sorted(members.items(), key=lambda item: -len(item[1]))
  ]
  return tables.table(['relation', 'records', *names], rows)


def _worst(table: Table) -> list[int]:
  """Indices of the records with the lowest mean rate."""
  value_KxR = np.stack([table.after[name] for name in metrics.rates(table.after)])
  count_R = np.maximum((~np.isnan(value_KxR)).sum(axis=0), 1)
  mean_R = np.nansum(value_KxR, axis=0) / count_R
  shift_R = table.after.get('efficacy_magnitude', mean_R)
  return np.lexsort((shift_R, mean_R))[:_WORST].tolist()


def _worst_frame(table: Table, records: Sequence[Record], worst: Sequence[int]) -> pd.DataFrame:
  names = metrics.rates(table.after)
  rows: list[list[Cell]] = []
  for r in worst:
    request = records[r].request
    change = ' → '.join(filter(None, (request.target_true, request.target_new)))
    values = [float(table.after[name][r]) for name in names]
    rows.append([str(records[r].case_id), request.text, change, *values])
  return tables.table(['record', 'prompt', 'object', *names], rows)


def _prompts(table: Table, records: Sequence[Record], worst: Sequence[int]) -> list[str]:
  """The prompts of each record, of the worst ones alone where there are many."""
  if table.prompts is None:
    return []
  record_P = table.prompts.record_P
  shown = range(len(records)) if len(record_P) <= _PROMPTS else sorted(worst)
  which = 'every record' if len(shown) == len(records) else 'the worst cases'
  note = (
    f'jedit.read_records(workdir) gives the {len(record_P)} prompts of all records as a DataFrame. '
    f'Below are those of {which}: nats per token of the new and of the true object, and yes where '
    'the wanted one of the two is likelier; on top where its tokens are the most probable ones.'
  )
  parts = [html.heading('Prompts'), html.paragraph(note)]
  states = table.prompts.states
  starts = np.searchsorted(record_P, np.arange(len(records) + 1)).tolist()
  of_state = [f'{name}{state}' for state in states for name in ('new / true ', '')]
  for r in shown:
    rows: list[list[Cell]] = []
    for p in range(starts[r], starts[r + 1]):
      scores = [_scores(values, p) for values in states.values()]
      row = [table.prompts.part_P[p], table.prompts.text_P[p]]
      rows.append([*row, *(cell for cells in scores for cell in cells)])
    title = f'{records[r].case_id}: {records[r].request.text}'
    frame = tables.table(['part', 'prompt', *of_state], rows)
    parts.append(html.details(title, tables.to_html(frame, 'text')))
  return parts


def _scores(values: Mapping[str, np.ndarray], p: int) -> list[Cell]:
  """Cells of a prompt in one state: both objects, and the verdicts in words."""
  nlls = [f'{values[name][p]:.2f}' for name in FIELDS[:2] if not np.isnan(values[name][p])]
  success, acc = float(values['success'][p]), float(values['acc'][p])
  if np.isnan(success):
    return [' / '.join(nlls), f'{100 * acc:.0f}% on top']
  return [' / '.join(nlls), ('yes' if success else 'no') + (', on top' if acc == 1 else '')]


def _shifts(workdir: pathlib.Path, table: Table) -> str:
  """The figure of each record's shift by the edit."""
  name = 'efficacy_magnitude' if 'efficacy_magnitude' in table.after else 'efficacy_acc'
  label = {
    'efficacy_magnitude': 'P(new object) − P(true object) on the edited prompt, %',
    'efficacy_acc': 'answer tokens on top on the edited prompt, %',
  }[name]
  states = {'before': table.before, 'after': table.after}
  values = {state: each[name] for state, each in states.items() if each is not None}
  png = figures.histogram(values, label).save(workdir / 'shifts')
  return html.picture(png, f'Distribution over records before and after: {label}.')
