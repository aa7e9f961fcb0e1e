"""Results of probes as tables and as the papers' figures."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from jedit.io import html, sealed, storage, tables
from jedit.io.tables import Cell
from jedit.probes import figures
from jedit.probes.axes import BEFORE, ENDS, MODULES, NORMS, OBJECTS, PLACES
from jedit.probes.figures import KINDS, MEASURES, STATES, WHERE, Result, in_words, select
from jedit.probes.rows import Row


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
      f'{measure_name}, {module}': select(result, before=before, module=module, **chosen)
      for measure_name, chosen in MEASURES.items()
      for module in MODULES
    }
    caption = (
      f"Similarity of the {STATES[before]} and the module's output at the prompt's last token: "
      f'cosine, and Jaccard of the top {top_k} words, by the input embeddings (decoded) and by the '
      "model's own head"
    )
    frames[caption] = _by_layer('layer', columns)
  return frames


def _contrast_frames(result: Result) -> dict[str, pd.DataFrame]:
  frames = {}
  for norm in NORMS:
    for position in ENDS:
      columns = {}
      for name in (*OBJECTS, *(f'words: {each}' for each in result['notes']['sets'])):
        chosen = select(result, norm=norm, position=position, of=name, measure='probability')
        columns[f'{name.removeprefix("words: ")}, %'] = [_percent(row) for row in chosen]
        if name in OBJECTS:
          ranks = select(result, norm=norm, position=position, of=name, measure='rank')
          columns[f'{name}, rank'] = ranks
      caption = (
        f'Contrast at the {WHERE[position]}, {in_words(norm)}: original (true) and target (new) '
        'object; state 0 is the embeddings'
      )
      frames[caption] = _by_layer('state', columns)
  return frames


def _tracing_frames(result: Result) -> dict[str, pd.DataFrame]:
  clean, corrupted = (result['notes'][name]['mean'] for name in ('clean', 'corrupted'))
  frames = {}
  for position in figures.shown_positions(result):
    rows = []
    for width in sorted({row['width'] for row in result['rows']}):
      columns = [select(result, kind=kind, position=position, width=width) for kind in PLACES]
      for number in range(max(map(len, columns))):
        cells = [column[number] if column else None for column in columns]
        layers = next(cell['layers'] for cell in cells if cell)
        shares = [None if cell is None else cell['recovered'] for cell in cells]
        rows.append([layers, *(None if share is None else 100 * share for share in shares)])
    caption = (
      f'Causal tracing at the {WHERE[position]}: percent of the probability lost to noise '
      f'({clean:.2f} clean, {corrupted:.2f} corrupted) that restored outputs recover'
    )
    frames[caption] = tables.table(['layers', *(KINDS[kind] for kind in PLACES)], rows)
  return frames


def _by_layer(axis: str, columns: Mapping[str, Sequence[Row]]) -> pd.DataFrame:
  rows: list[list[Cell]] = [
    [str(row[0][axis]), *({**cell, 'digits': 2} for cell in row)]
    for row in zip(*columns.values(), strict=True)
  ]
  return tables.table([axis, *columns], rows)


_FRAMES: dict[str, Callable[[Result], dict[str, pd.DataFrame]]] = {
  'similarity': _similarity_frames,
  'contrast': _contrast_frames,
  'tracing': _tracing_frames,
}
_FIGURES: dict[str, Callable[[Result], figures.Figures]] = {
  'similarity': figures.similarity_figures,
  'contrast': figures.contrast_figures,
  'tracing': figures.trace_figures,
}
