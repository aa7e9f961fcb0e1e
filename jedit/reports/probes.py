"""Results of probes as tables and as the papers' figures."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jedit.io import sealed, storage, tables
from jedit.io.tables import Cell
from jedit.probes.contrast import NORMS, OBJECTS, POSITIONS
from jedit.probes.similarity import BEFORE, MODULES
from jedit.probes.tracing import ENDS, PLACES
from jedit.reports import html
from jedit.reports.figures import Line, Panels

Row = dict[str, Any]  # a place in the model, and the `mean`, `ci95` and `n` of a measure there
Result = Mapping[str, Any]  # `rows`, `num_requests` and `notes`

_WHERE = {
  'subject_first': "subject's first token",
  'subject_middle': "subject's middle tokens",
  'subject_last': "subject's last token",
  'after_first': 'first token after it',
  'after_middle': 'further tokens',
  'prompt_last': 'prediction position',
}
_MODULES = {'attn': 'attention', 'mlp': 'MLP', 'hidden': 'hidden state'}
_MEASURES: dict[str, dict[str, str]] = {
  'cosine': {'measure': 'cosine'},
  'embedded': {'measure': 'jaccard_of_strings', 'projection': 'embedding'},
  'predicted': {'measure': 'jaccard', 'projection': 'prediction'},
}
_STATES = {'stream': 'incoming stream', 'input': "module's input"}
_OBJECTS = {'true': 'original object', 'new': 'target object'}


def write(workdir: pathlib.Path, title: str, probes: Mapping[str, Result]) -> str:
  """Writes the tables and figures of all probes and report.html.

  Args:
    workdir: of the run, with config.json and provenance.json. Tables and figures go to `probes`.
    title: of the page.
    probes: results by name.

  Returns:
    The tables as text.
  """
  folder, parts, lines = workdir / 'probes', [], []
  for name, result in probes.items():
    head = list(result['rows'][0])
    rows = tables.table(head, [[row[field] for field in head] for row in result['rows']])
    storage.write_text(folder / f'{name}.csv', tables.to_csv(rows))
    frames = _FRAMES[name](result)
    latex = [f'% {caption}\n{tables.to_latex(frame)}' for caption, frame in frames.items()]
    storage.write_text(folder / f'{name}.tex', '\n'.join(latex))
    parts += [html.heading(f'{name.capitalize()}: {result["num_requests"]} records')]
    for file, (caption, panels) in _FIGURES[name](result).items():
      parts += [html.picture(panels.save(folder / file), caption)]
    for caption, frame in frames.items():
      lines += ['', caption, tables.to_text(frame)]
      parts += [html.paragraph(caption), tables.to_html(frame)]
  parts += [html.heading('Provenance')]
  for name in ('config', 'provenance'):
    parts += [html.folded(name.capitalize(), sealed.read_json(workdir / f'{name}.json', None))]
  html.write(workdir, title, parts)
  return '\n'.join([*lines, '', f'The files are in {workdir}; open report.html there.'])


def _select(result: Result, **place: Any) -> list[Row]:
  return [row for row in result['rows'] if all(row[name] == place[name] for name in place)]


def _percent(row: Row) -> Row:
  return {
    **row,
    **{name: None if row[name] is None else 100 * row[name] for name in ('mean', 'ci95')},
  }


def _similarity_frames(result: Result) -> dict[str, pd.DataFrame]:
  top_k = result['notes']['top_k']
  frames = {}
  for before in BEFORE:
    columns = {
      f'{measure_name}, {module}': _select(result, before=before, module=module, **chosen)
      for measure_name, chosen in _MEASURES.items()
      for module in MODULES
    }
    caption = (
      f"Similarity of the {_STATES[before]} and the module's output at the prompt's last token: "
      f'cosine, and Jaccard of the top {top_k} words, by the input embeddings (decoded) and by the '
      "model's own head"
    )
    frames[caption] = _by_layer('layer', columns)
  return frames


def _contrast_frames(result: Result) -> dict[str, pd.DataFrame]:
  frames = {}
  for norm in NORMS:
    for position in POSITIONS:
      columns = {}
      for name in (*OBJECTS, *(f'words: {each}' for each in result['notes']['sets'])):
        chosen = _select(result, norm=norm, position=position, of=name, measure='probability')
        columns[f'{name.removeprefix("words: ")}, %'] = [_percent(row) for row in chosen]
        if name in OBJECTS:
          ranks = _select(result, norm=norm, position=position, of=name, measure='rank')
          columns[f'{name}, rank'] = ranks
      caption = (
        f'Contrast at the {_WHERE[position]}, {_read(norm)}: original (true) and target (new) '
        'object; state 0 is the embeddings'
      )
      frames[caption] = _by_layer('state', columns)
  return frames


def _read(norm: str) -> str:
  return 'without the final norm' if norm == 'raw' else 'with the final norm'


def _positions(result: Result) -> list[str]:
  """Positions with tables and curves: if traced those of edits, else all that any prompt has."""
  traced = dict.fromkeys(row['position'] for row in result['rows'] if row['n'])
  return [name for name in traced if name in ENDS] or list(traced)


def _tracing_frames(result: Result) -> dict[str, pd.DataFrame]:
  clean, corrupted = (result['notes'][name]['mean'] for name in ('clean', 'corrupted'))
  frames = {}
  for position in _positions(result):
    rows = []
    for width in sorted({row['width'] for row in result['rows']}):
      columns = [_select(result, kind=kind, position=position, width=width) for kind in PLACES]
      for number in range(max(map(len, columns))):
        cells = [column[number] if column else None for column in columns]
        layers = next(cell['layers'] for cell in cells if cell)
        shares = [None if cell is None else cell['recovered'] for cell in cells]
        rows.append([layers, *(None if share is None else 100 * share for share in shares)])
    caption = (
      f'Causal tracing at the {_WHERE[position]}: percent of the probability lost to noise '
      f'({clean:.2f} clean, {corrupted:.2f} corrupted) that restored outputs recover'
    )
    frames[caption] = tables.table(['layers', *(_MODULES[kind] for kind in PLACES)], rows)
  return frames


def _by_layer(axis: str, columns: Mapping[str, Sequence[Row]]) -> pd.DataFrame:
  rows: list[list[Cell]] = [
    [str(row[0][axis]), *({**cell, 'digits': 2} for cell in row)]
    for row in zip(*columns.values(), strict=True)
  ]
  return tables.table([axis, *columns], rows)


def _line(rows: Sequence[Row], axis: str) -> Line:
  found = [row for row in rows if row['mean'] is not None]
  return (
    [row[axis] for row in found],
    [row['mean'] for row in found],
    [row['ci95'] for row in found],
  )


def _similarity_figures(result: Result) -> dict[str, tuple[str, Panels]]:
  labels = {
    'cosine': 'cosine',
    'embedded': f'Jaccard {result["notes"]["top_k"]}, embeddings',
    'predicted': f'Jaccard {result["notes"]["top_k"]}, predicted',
  }
  panels = Panels(len(labels), len(BEFORE))
  for r, (name, label) in enumerate(labels.items()):
    for c, before in enumerate(BEFORE):
      lines = {
        _MODULES[module]: _line(
          _select(result, before=before, module=module, **_MEASURES[name]), 'layer'
        )
        for module in MODULES
      }
      title = '' if r else f'before: {_STATES[before]}'
      xlabel = 'layer' if r == len(labels) - 1 else ''
      panels.lines(r, c, lines, title=title, xlabel=xlabel, ylabel='' if c else label)
  panels.whole_layers()
  caption = (
    "PMET's probe: similarity of the state before attention or MLP and their output at the "
    "prompt's last token; means over prompts with 95% intervals. The paper's form is on the left, "
    'that of the released notebook on the right.'
  )
  return {'similarity': (caption, panels)}


def _contrast_figures(result: Result) -> dict[str, tuple[str, Panels]]:
  drawn = {}
  for norm in NORMS:
    panels = Panels(len(POSITIONS), 2)
    for r, position in enumerate(POSITIONS):
      for c, measure_name in enumerate(('probability', 'rank')):
        place = {'norm': norm, 'position': position, 'measure': measure_name}
        lines = {_OBJECTS[o]: _line(_select(result, of=o, **place), 'state') for o in OBJECTS}
        title = f'{measure_name.capitalize()}, {_WHERE[position]}'
        xlabel = 'layer (0: embeddings)' if r else ''
        panels.lines(r, c, lines, title=title, xlabel=xlabel)
        if measure_name == 'rank':
          panels.rank_axis(r, c)
    panels.whole_layers()
    caption = (
      f"JEEP's contrast probe, {_read(norm)}: the first token of both objects, means over records "
      'with 95% intervals. Rank 0 is the top.'
    )
    drawn[f'contrast_{norm}'] = (caption, panels)
  if result['notes']['sets']:
    panels = Panels(1, len(NORMS))
    for c, norm in enumerate(NORMS):
      place = {'norm': norm, 'position': 'prompt_last', 'measure': 'probability'}
      lines = {'original object': _line(_select(result, of='true', **place), 'state')}
      for name in result['notes']['sets']:
        lines[name] = _line(_select(result, of=f'words: {name}', **place), 'state')
      title = f'Mean probability, {_read(norm)}'
      panels.lines(0, c, lines, title=title, xlabel='layer (0: embeddings)', yscale='log')
    panels.whole_layers()
    caption = 'Sets of words at the prediction position: mean probability of a word.'
    drawn['contrast_words'] = (caption, panels)
  return drawn


def _tracing_figures(result: Result) -> dict[str, tuple[str, Panels]]:
  widths = sorted({row['width'] for row in result['rows']})
  positions = _positions(result)
  panels = Panels(len(widths), len(positions))
  for r, width in enumerate(widths):
    for c, position in enumerate(positions):
      lines = {}
      for kind in PLACES:
        rows = _select(result, kind=kind, position=position, width=width)
        if rows:
          lines[_MODULES[kind]] = _line(rows, 'layer')
      around = 'one layer' if width == 1 else f'window of {width}'
      panels.lines(
        r,
        c,
        lines,
        title=f'{_WHERE[position].capitalize()}, {around}',
        xlabel='layer' if width == 1 else 'middle layer of the window',
        ylabel='indirect effect' if c == 0 else '',
      )
  panels.whole_layers()
  clean, corrupted = (result['notes'][name]['mean'] for name in ('clean', 'corrupted'))
  effect = f'(total effect {clean - corrupted:.2f})'
  caption = (
    "Causal tracing: share of the answer's probability recovered when clean outputs are restored "
    f'in a run with a corrupted subject {effect}; means over prompts with 95% intervals.'
  )
  drawn = {'tracing': (caption, panels)}
  if {row['position'] for row in result['rows'] if row['n']} > set(positions):
    caption = (
      f"Average indirect effect at every token, as in ROME's figure {effect}: each output restored "
      'alone, means over the tokens of a group and over prompts.'
    )
    drawn['tracing_tokens'] = (caption, _tokens_figure(result, max(widths)))
  return drawn


def _tokens_figure(result: Result, width: int) -> Panels:
  """Heat maps of positions and layers: hidden states, and windows of each module."""
  positions = list(dict.fromkeys(row['position'] for row in result['rows'] if row['n']))
  panels = Panels(1, len(PLACES), width=3.6)
  for c, kind in enumerate(PLACES):
    of_kind = 1 if kind == 'hidden' else width
    means = [
      [row['mean'] for row in _select(result, kind=kind, position=position, width=of_kind)]
      for position in positions
    ]
    title = _MODULES[kind].capitalize() if kind != 'mlp' else _MODULES[kind]
    panels.heat(
      0,
      c,
      np.array(means, np.float64),
      [_WHERE[position] for position in positions] if c == 0 else [''] * len(positions),
      title=title if of_kind == 1 else f'{title}, window of {of_kind}',
      xlabel='layer' if of_kind == 1 else 'middle layer of the window',
    )
  panels.whole_layers()
  return panels


_FRAMES: dict[str, Callable[[Result], dict[str, pd.DataFrame]]] = {
  'similarity': _similarity_frames,
  'contrast': _contrast_frames,
  'tracing': _tracing_frames,
}
_FIGURES: dict[str, Callable[[Result], dict[str, tuple[str, Panels]]]] = {
  'similarity': _similarity_figures,
  'contrast': _contrast_figures,
  'tracing': _tracing_figures,
}
