"""What a run tells in the end: summary.json, a text for the terminal, and the same as a page."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jedit.evals.evaluate import Sample
from jedit.evals.metrics import DEFINITIONS
from jedit.evals.table import Table
from jedit.log import format_seconds, to_json
from jedit.patch import Patch
from jedit.runner.settings import Settings

_STAGES = ('statistics', 'contexts', 'targets', 'keys', 'solve', 'edit', 'evaluate', 'samples')
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
  methods = [str(p.get('method', {}).get('name', 'unknown')) for p in provenances]
  return {
    'method': '+'.join(dict.fromkeys(methods)),
    'model': settings.model.name,
    'dataset': settings.dataset,
    'num_edits': sum(p.get('num_edits', 0) for p in provenances),
    **table.to_summary(),
    'selection': selection,
    'mode': settings.edit.mode,
    'stopped': ' '.join(p['stopped'] for p in provenances if p.get('stopped')),
    'targets': _reached([each for p in provenances for each in p.get('targets', ())]),
    'seconds': dict.fromkeys(_ALWAYS, 0.0) | dict(seconds),
  }


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
  return '1 step program was compiled' if count == 1 else f'{count} step programs were compiled'


def _times(seconds: Mapping[str, float]) -> str:
  shown = [f'{name} {format_seconds(seconds[name])}' for name in _STAGES if seconds.get(name)]
  return f'Time: {", ".join(shown)}; {format_seconds(seconds["compile"])} of it to compile.'


def _one_line(text: str | None) -> str:
  return ' '.join((text or '').split())


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ padding: .25rem .75rem; border-bottom: 1px solid #ddd; text-align: right;
  vertical-align: top; }}
th:first-child, td:first-child, .text td {{ text-align: left; }}
pre {{ background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 13px; }}
</style></head><body>
<h1>{title}</h1>
<p>Mean over records ± half width of the 95% interval; n is the number of values. Percent, except
fluency (bits x 100) and essence (a perplexity).</p>
{metrics}
{sentences}
<h2>What the metrics are</h2>
{definitions}
<h2>Texts before and after</h2>
{samples}
<h2>Seconds</h2>
<p>Compiling is a part of the other stages.</p>
{seconds}
<h2>Config</h2>
<pre>{config}</pre>
<h2>Provenance</h2>
<pre>{provenance}</pre>
</body></html>
"""


def as_page(
  summary: Mapping[str, Any],
  samples: Sequence[Sample],
  config: Mapping[str, Any],
  provenance: Mapping[str, Any],
) -> str:
  """The report as one HTML page that needs nothing else."""
  metrics = [
    (name, _cell(states.get('before')), _cell(states['after']), _counts(states))
    for name, states in summary['metrics'].items()
  ]
  definitions = [(name, DEFINITIONS[name]) for name in summary['metrics'] if name in DEFINITIONS]
  sentences = [*_sentences(summary), *_undefined(summary), *summary['notes']]
  texts = [(str(s.case_id), s.before or '', s.after) for s in samples]
  seconds = [(name, f'{value:.1f}') for name, value in summary['seconds'].items()]
  return _PAGE.format(
    title=html.escape(_title(summary)),
    metrics=_table(('metric', 'before', 'after', 'n'), metrics),
    sentences=''.join(f'<p>{html.escape(sentence)}</p>' for sentence in sentences),
    definitions=_table(('metric', 'definition'), definitions, 'text'),
    samples=_table(('record', 'before', 'after'), texts, 'text') if texts else '<p>None.</p>',
    seconds=_table(('stage', 'seconds'), seconds),
    config=_code(config),
    provenance=_code(provenance),
  )


def _cell(value: Mapping[str, Any] | None) -> str:
  if value is None or value['mean'] is None:
    return '–'
  return f'{value["mean"]:.1f} ± {value["ci95"]:.1f}'


def _counts(states: Mapping[str, Mapping[str, Any]]) -> str:
  counts = [str(states[state]['n']) for state in ('before', 'after') if state in states]
  return ' / '.join(dict.fromkeys(counts))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], name: str = '') -> str:
  def row(cells: Sequence[str], tag: str) -> str:
    inside = ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)
    return f'<tr>{inside}</tr>'

  body = '\n'.join(row(cells, 'td') for cells in rows)
  return f'<table class="{name}">\n{row(head, "th")}\n{body}\n</table>'


def _code(value: Mapping[str, Any]) -> str:
  return html.escape(json.dumps(to_json(value), indent=2, ensure_ascii=False))
