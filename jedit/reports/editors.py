"""The page of a trained editor: its losses over the training, and where it comes from."""

import pathlib

from jedit.hypernetworks.editor import Editor
from jedit.io import html, sealed, storage, tables
from jedit.io.figures import Line, Panels
from jedit.units import format_seconds

_TITLES = {
  'inner': 'edits before, nats per token',
  'edit': 'paraphrases after, nats per token',
  'locality': 'unrelated prompts, KL in nats per token',
  'total': 'total',
  'norm': 'norm of the gradient',
}


def write(workdir: pathlib.Path, editor: Editor, model: str) -> str:
  """Writes training.csv, training.png and report.html.

  Args:
    workdir: of the run, with config.json and provenance.json.
    editor: just trained, or read from its file.
    model: its name, for the title.

  Returns:
    A summary as text.
  """
  made = editor.provenance
  names, curve, validation = made['losses'], made['curve'], made['validation']
  rows = tables.table(['step', *names], curve)
  storage.write_text(workdir / 'training.csv', tables.to_csv(rows))
  panels = Panels(1, len(names) - 1)
  for column, name in enumerate(names[:-1]):
    lines: dict[str, Line] = {'training': _line([(row[0], row[1 + column]) for row in curve])}
    if name == 'total' and validation:
      lines['validation'] = _line(validation)
    panels.lines(0, column, lines, title=_TITLES[name], xlabel='step')
  best = f', best in step {made["best_step"]}' if validation else ''
  text = (
    f'{editor.settings.name} for {model}: {made["steps"]} steps{best}, '
    f'{format_seconds(made["seconds"])}, {made["num_records"]} records'
  )
  settings = storage.to_json(editor.settings)
  parts = [
    html.paragraph(f'{text}.'),
    html.picture(panels.save(workdir / 'training'), 'Losses over the steps of the training.'),
    html.heading('Provenance'),
    html.folded('Settings', settings),
    html.folded('Sources', sealed.read_json(workdir / 'provenance.json', None)),
  ]
  html.write(workdir, f'Editor {editor.id}', parts)
  return f'{editor}\n{text}.'


def _line(points: list) -> Line:
  """A curve without a band."""
  return [step for step, _ in points], [value for _, value in points], [0.0] * len(points)
