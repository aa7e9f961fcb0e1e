"""Generates the tables of docs/presets.md from the presets of the package.

python docs/presets.py

Each table is between `<!-- NAME -->` and `<!-- end -->`; the other text is maintained by hand.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jedit.experiments.config import method_section
from jedit.methods.presets import PRESETS, SOURCES, TESTBED, Preset
from jedit.models.checkpoints import CHECKPOINTS

_FILE = pathlib.Path(__file__).with_suffix('.md')
_TUNING = ('ft', 'ft_l', 'ft_w')
_NETS = ('mend', 'malmen')


def page(text: str) -> str:
  """The page with current tables."""
  for name, table in _tables().items():
    text, count = re.subn(
      rf'(<!-- {name} -->\n).*?(<!-- end -->)', rf'\1{table}\n\2', text, flags=re.DOTALL
    )
    assert count == 1, f'the page has {count} places for the table {name}; it needs one'
  return text


def _tables() -> dict[str, str]:
  published = [row for row in PRESETS if row.source != TESTBED]
  tuned = [row for row in PRESETS if row.source == TESTBED]
  return {
    'models': _markdown(
      ('model', 'hub id', 'layers', 'context', 'dtype'),
      ((f'`{name}`', f'`{c.hub}`', *map(str, c[1:])) for name, c in CHECKPOINTS.items()),
    ),
    'targets': _targets([row for row in published if row.method not in (*_TUNING, *_NETS)]),
    'tuning': _tuning([row for row in published if row.method in _TUNING]),
    'nets': _nets([row for row in published if row.method in _NETS]),
    'testbeds': _targets([row for row in tuned if row.method not in (*_TUNING, *_NETS)]),
    'testbeds nets': _nets([row for row in tuned if row.method in _NETS]),
    'testbeds tuning': _tuning([row for row in tuned if row.method in _TUNING]),
    'sources': _markdown(('source', ''), SOURCES.items()),
  }


def _targets(rows: Iterable[Preset]) -> str:
  """Methods with target optimisation and a solver."""
  columns = 'preset layers steps lr clip KL decay λ stop also source'.split()
  return _markdown(columns, (_target(row) for row in rows))


def _target(row: Preset) -> tuple[str, ...]:
  fields = method_section(row.method, **row.fields)

  def each(name: str) -> str:
    """The value of the region, or of both regions."""
    values = [fields[n] for n in (name, f'{name}_low', f'{name}_high') if n in fields]
    return ' / '.join(_layers(v) if name == 'layers' else _number(v) for v in values) or '-'

  by_loss = fields.get('stop_loss') is not None
  stop = f'loss {each("stop_loss")}' if by_loss else f'prob {each("stop_probability")}'
  return (
    f'`{row.method},{row.name}`',
    each('layers'),
    str(fields['num_steps']),
    each('learning_rate'),
    each('clip_factor'),
    each('kl_factor'),
    each('weight_decay'),
    each('cov_weight'),
    stop,
    _also(fields),
    row.source,
  )


def _also(fields: Mapping[str, Any]) -> str:
  """Settings that only one method has."""
  if 'key_ridge' in fields:
    return f'ridge {_number(fields["key_ridge"])}'
  if 'threshold' in fields:
    return f'null {_number(fields["threshold"])}, ridge {_number(fields["ridge"])}'
  return '' if fields.get('use_cov', True) else 'no C'


def _tuning(rows: Iterable[Preset]) -> str:
  columns = ('preset', 'layers', 'lr', 'stop', 'bound', 'loss at', 'mean over', 'source')
  return _markdown(columns, (_tuned(row) for row in rows))


def _tuned(row: Preset) -> tuple[str, ...]:
  fields = method_section(row.method, **row.fields)
  return (
    f'`{row.method},{row.name}`',
    _layers(fields['layers']),
    _number(fields['learning_rate']),
    _number(fields['stop_loss']),
    _number(fields['norm_bound']) if 'norm_bound' in fields else '-',
    fields['loss_position'],
    fields.get('mean_over', 'edits'),
    row.source,
  )


def _nets(rows: Iterable[Preset]) -> str:
  """Hypernetworks with their training."""
  columns = ('preset', 'layers', 'kernels', 'rank', 'edits', 'steps', 'lr', 'rate lr', 'source')
  return _markdown(columns, (_net(row) for row in rows))


def _net(row: Preset) -> tuple[str, ...]:
  fields = method_section(row.method, **row.fields)
  return (
    f'`{row.method},{row.name}`',
    _layers(fields['layers']),
    ' '.join(fields['kernels']),
    _number(fields['rank']),
    f'{fields["num_edits"]} x {fields.get("accumulate", 1)}',
    _number(fields['num_steps']),
    _number(fields['learning_rate']),
    _number(fields['rate_learning_rate'] or fields['learning_rate']),
    row.source,
  )


def _layers(layers: Sequence[int]) -> str:
  return f'{layers[0]}-{layers[-1]}' if len(layers) > 1 else str(layers[0])


def _number(value: float) -> str:
  if value >= 1000:
    return f'{value:,.0f}'
  if 0 < value < 0.01:
    return f'{value:.0e}'.replace('e-0', 'e-')
  return f'{value:g}'.replace('0.', '.')


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  lines = [columns, ['---'] * len(columns), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines).replace('|  |', '| |')


if __name__ == '__main__':
  _FILE.write_text(page(_FILE.read_text(encoding='utf-8')), encoding='utf-8')
