"""Sweeps: many edits of one model as one run, with a cell for each and a table of all."""

import copy
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jedit.experiments.config import read_settings
from jedit.experiments.schema import Settings
from jedit.experiments.workdir import CONFIG, CONFIG_FILE, FREE, SUMMARY, SUMMARY_FILE, flat
from jedit.io import schema, sealed
from jedit.io.storage import to_json
from jedit.reports.comparison import Axis
from jedit.types import UserError

_OF_SWEEP = ('cells', 'published', 'axis')  # fields of a sweep that its cells lack
SWEEP_FILE, SWEEP = 'sweep.json', 'jedit sweep 1'  # the summaries of all cells, and its format
_LONGEST = 200  # bytes of a directory's name
_Cell = tuple[schema.Text, dict[str, Any]]
_SHARED = ('contexts', 'statistics.file')  # files that differ between sweeps and affect results


def read_cells(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """The config of every cell: the sweep's with the cell's changes.

  `config.cells` is a sequence of pairs, since configs sort the names of their sections: the cell's
  name and its changed sections, as ('PMET', {'method': {...}, 'edit': {...}}). A method with a name
  replaces the sweep's; other sections change single fields.

  Raises:
    UserError: without cells, or for an invalid one.
  """
  cells = config.get('cells')
  if not isinstance(cells, list | tuple) or not cells:
    raise UserError('The config has no cells to sweep over; give pairs of a name and its changes.')
  base = {name: value for name, value in config.items() if name not in _OF_SWEEP}
  found = {}
  for pair in cells:
    try:
      name, changes = schema.check(_Cell, tuple(pair), 'The cell')
    except (TypeError, UserError):
      raise UserError(
        f'The cell {pair!r} must be a pair of a name and its changed sections.'
      ) from None
    if not folder(name).strip('._') or len(folder(name).encode()) > _LONGEST:
      raise UserError(
        f'The cell {name!r} cannot have a directory of its name; give it one with letters or '
        f'digits, of at most {_LONGEST} bytes.'
      )
    cell = copy.deepcopy({**base, 'task': 'edit'})
    for section, fields in changes.items():
      is_whole = section == 'method' and 'name' in (fields or ())
      before = cell.get(section, {})
      if isinstance(fields, Mapping) and isinstance(before, Mapping) and not is_whole:
        cell[section] = {**before, **fields}
      else:
        cell[section] = fields
    try:
      read_settings(cell)
    except UserError as error:
      raise UserError(f'In the cell {name!r}: {error}') from error
    found[name] = cell
  folders = [folder(name) for name, _ in cells]
  for name in folders:
    if folders.count(name) > 1:
      raise UserError(f'Two cells have the directory {name!r}; give them names that differ more.')
  return found


def check_shared(settings: Mapping[str, Settings]) -> None:
  """Raises UserError unless all cells edit one model, whose second moments they share."""
  first_name, first = next(iter(settings.items()))
  for name, other in settings.items():
    for section in ('model', 'statistics', 'seed', 'contexts'):
      if getattr(other, section) != getattr(first, section):
        raise UserError(
          f'The cells {first_name!r} and {name!r} differ in {section}, which a sweep shares; make '
          'two sweeps of them.'
        )


def with_shared(cell: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
  """The cell's config with the files shared by the sweep."""
  sections = {
    name: {**cell.get(name, {}), **value}
    for name, value in shared.items()
    if isinstance(value, Mapping)
  }
  return {**cell, **shared, **sections}


def read_axis(config: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]]) -> Axis | None:
  """The field named by `config.axis`; None for an empty one.

  Args:
    config: of the sweep.
    cells: of `read_cells`.

  Raises:
    UserError: if the field is not a number in every cell.
  """
  field = config.get('axis', '')
  if not field:
    return None
  values: dict[str, float] = {}
  groups: dict[str, list[str]] = {}
  for name, cell in cells.items():
    fields = flat(cell)
    value = fields.pop(field, None)
    if not isinstance(value, int | float):
      raise UserError(
        f'axis is {field!r}, but the cell {name!r} has no number there; name a field that all '
        'cells have, as section.field.'
      )
    values[name] = value
    groups.setdefault(json.dumps(to_json(fields), sort_keys=True), []).append(name)
  series: dict[str, str] = {}
  for names in groups.values():
    common = os.path.commonprefix(names) if len(names) > 1 else names[0]
    label = common.rstrip('0123456789.').strip(' ,_-') or field
    while label in series.values():
      label += ', other'
    series |= dict.fromkeys(names, label)
  return Axis(field, values, series)


def folder(name: str) -> str:
  """A cell's name as a directory name."""
  return ''.join(char if char.isalnum() or char in '-_.' else '_' for char in name.lower())


def read_runs(
  workdirs: Sequence[str],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
  """Summaries and configs of finished runs; a sweep gives those of its cells.

  Returns:
    Both by the name of the workdir, with that of the cell. Configs are flat, without fields that
    leave results unchanged and with the sweep's own inputs in place of its shared files.

  Raises:
    UserError: without workdirs, for one without results, and for two of one name.
  """
  if not workdirs:
    raise UserError('The comparison has no workdirs; give some, separated by commas.')
  summaries: dict[str, dict[str, Any]] = {}
  configs: dict[str, dict[str, Any]] = {}
  for workdir in workdirs:
    place = pathlib.Path(workdir)
    label = place.name or place.resolve().name
    if (place / SWEEP_FILE).is_file():
      cells = sealed.read_json(place / SWEEP_FILE, SWEEP)['cells']
      config = _read_config(place)
      shared = {field: config.get(field, '') for field in _SHARED}
      more = {f'{label}: {name}': summary for name, summary in cells.items()}
      places = [place / 'cells' / folder(name) for name in cells]
    elif (place / SUMMARY_FILE).is_file():
      summary = sealed.read_json(place / SUMMARY_FILE, SUMMARY)
      more, places, shared = {label: summary}, [place], {}
    else:
      raise UserError(f'{place} has no {SUMMARY_FILE}; give the workdir of a finished run.')
    for (name, summary), where in zip(more.items(), places, strict=True):
      if name in summaries:
        raise UserError(f'Two workdirs have the name {name!r}; rename one.')
      summaries[name] = summary
      if config := _read_config(where):
        configs[name] = {**config, **shared}
  return summaries, configs


def _read_config(workdir: pathlib.Path) -> dict[str, Any]:
  """The flat config of a run, without fields that leave results unchanged; empty without one."""
  file = workdir / CONFIG_FILE
  fields = flat(sealed.read_json(file, CONFIG)) if file.is_file() else {}
  return {name: value for name, value in fields.items() if not name.startswith(FREE)}
