"""Figures of the probes, as in the papers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jedit.io import html
from jedit.io.figures import Line, Panels
from jedit.probes.axes import BEFORE, ENDS, MODULES, NORMS, OBJECTS, PLACES
from jedit.probes.rows import Row

Result = Mapping[str, Any]  # see `jedit.probes.rows`
Figures = dict[str, tuple[str, Panels]]  # by file name, the caption and the figure

WHERE = {
  'subject_first': "subject's first token",
  'subject_middle': "subject's middle tokens",
  'subject_last': "subject's last token",
  'after_first': 'first token after it',
  'after_middle': 'further tokens',
  'prompt_last': 'prediction position',
}
KINDS = {'attn': 'attention', 'mlp': 'MLP', 'hidden': 'hidden state'}
MEASURES: dict[str, dict[str, str]] = {
  'cosine': {'measure': 'cosine'},
  'embedded': {'measure': 'jaccard_of_strings', 'projection': 'embedding'},
  'predicted': {'measure': 'jaccard', 'projection': 'prediction'},
}
STATES = {'stream': 'incoming stream', 'input': "module's input"}
_OBJECTS = {'true': 'original object', 'new': 'target object'}


def select(result: Result, **place: Any) -> list[Row]:
  """The rows of a place."""
  return [row for row in result['rows'] if all(row[name] == place[name] for name in place)]


def in_words(norm: str) -> str:
  """A form of reading states, from `NORMS`."""
  return 'without the final norm' if norm == 'raw' else 'with the final norm'


def shown_positions(result: Result) -> list[str]:
  """Positions with tables and curves: if traced those of edits, else all that any prompt has."""
  traced = dict.fromkeys(row['position'] for row in result['rows'] if row['n'])
  return [name for name in traced if name in ENDS] or list(traced)


def _line(rows: Sequence[Row], axis: str) -> Line:
  found = [row for row in rows if row['mean'] is not None]
  return (
    [row[axis] for row in found],
    [row['mean'] for row in found],
    [row['ci95'] for row in found],
  )


def similarity_figures(result: Result) -> Figures:
  """PMET's figure 2: similarity by layer."""
  labels = {
    'cosine': 'cosine',
    'embedded': f'Jaccard {result["notes"]["top_k"]}, embeddings',
    'predicted': f'Jaccard {result["notes"]["top_k"]}, predicted',
  }
  panels = Panels(len(labels), len(BEFORE))
  for r, (name, label) in enumerate(labels.items()):
    for c, before in enumerate(BEFORE):
      lines = {
        KINDS[module]: _line(
          select(result, before=before, module=module, **MEASURES[name]), 'layer'
        )
        for module in MODULES
      }
      title = '' if r else f'before: {STATES[before]}'
      xlabel = 'layer' if r == len(labels) - 1 else ''
      panels.lines(r, c, lines, title=title, xlabel=xlabel, ylabel='' if c else label)
  panels.whole_layers()
  caption = (
    "PMET's probe: similarity of the state before attention or MLP and their output at the "
    "prompt's last token; means over prompts with 95% intervals. The paper's form is on the left, "
    'that of the released notebook on the right.'
  )
  return {'similarity': (caption, panels)}


def contrast_figures(result: Result) -> Figures:
  """JEEP's figures 2 and 5: probability and rank of the objects, and of sets of words."""
  drawn = {}
  for norm in NORMS:
    panels = Panels(len(ENDS), 2)
    for r, position in enumerate(ENDS):
      for c, measure_name in enumerate(('probability', 'rank')):
        place = {'norm': norm, 'position': position, 'measure': measure_name}
        lines = {_OBJECTS[o]: _line(select(result, of=o, **place), 'state') for o in OBJECTS}
        title = f'{measure_name.capitalize()}, {WHERE[position]}'
        xlabel = 'layer (0: embeddings)' if r else ''
        panels.lines(r, c, lines, title=title, xlabel=xlabel)
        if measure_name == 'rank':
          panels.rank_axis(r, c)
    panels.whole_layers()
    caption = (
      f"JEEP's contrast probe, {in_words(norm)}: the first token of both objects, means over "
      'records with 95% intervals. Rank 0 is the top.'
    )
    drawn[f'contrast_{norm}'] = (caption, panels)
  if result['notes']['sets']:
    panels = Panels(1, len(NORMS))
    for c, norm in enumerate(NORMS):
      place = {'norm': norm, 'position': 'prompt_last', 'measure': 'probability'}
      lines = {'original object': _line(select(result, of='true', **place), 'state')}
      for name in result['notes']['sets']:
        lines[name] = _line(select(result, of=f'words: {name}', **place), 'state')
      labels = dict(title=in_words(norm).capitalize(), ylabel='' if c else 'mean probability')
      panels.lines(0, c, lines, xlabel='layer (0: embeddings)', yscale='log', **labels)
    panels.whole_layers()
    panels.plain_log_ticks()
    caption = 'Sets of words at the prediction position: mean probability of a word.'
    drawn['contrast_words'] = (caption, panels)
  return drawn


def trace_figures(result: Result) -> Figures:
  """ROME's figures: indirect effects by layer at the positions of edits, and at every token."""
  widths = sorted({row['width'] for row in result['rows']})
  positions = shown_positions(result)
  panels = Panels(len(widths), len(positions))
  for r, width in enumerate(widths):
    for c, position in enumerate(positions):
      lines = {}
      for kind in PLACES:
        rows = select(result, kind=kind, position=position, width=width)
        if rows:
          lines[KINDS[kind]] = _line(rows, 'layer')
      around = 'one layer' if width == 1 else f'window of {width}'
      panels.lines(
        r,
        c,
        lines,
        title=f'{WHERE[position].capitalize()}, {around}',
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
    drawn['tracing_tokens'] = (caption, _tokens_figure(result))
  return drawn


def _tokens_figure(result: Result) -> Panels:
  """Heat maps of positions and layers, each kind of output in its widest windows."""
  positions = list(dict.fromkeys(row['position'] for row in result['rows'] if row['n']))
  kinds = [kind for kind in PLACES if select(result, kind=kind)]
  panels = Panels(1, len(kinds), width=3.6)
  for c, kind in enumerate(kinds):
    width = max(row['width'] for row in select(result, kind=kind))
    means = [
      [row['mean'] for row in select(result, kind=kind, position=position, width=width)]
      for position in positions
    ]
    title = KINDS[kind].capitalize() if kind != 'mlp' else KINDS[kind]
    panels.heat(
      0,
      c,
      np.array(means, np.float64),
      [WHERE[position] for position in positions] if c == 0 else [''] * len(positions),
      title=title if width == 1 else f'{title}, window of {width}',
      xlabel='layer' if width == 1 else 'middle layer of the window',
    )
  panels.whole_layers()
  return panels


def page(drawn: Figures) -> str:
  """Figures with their captions, for notebooks."""
  return html.block(
    *(html.picture(panels.png(), text, panels.screen_width) for text, panels in drawn.values())
  )
