"""Many edits of one model as one run: a cell for each, and a table of all."""

import copy
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jedit.experiments.config import read_settings
from jedit.experiments.schema import Settings
from jedit.experiments.workdir import CONFIG_FILE, FREE, SUMMARY_FILE, flat
from jedit.io import storage
from jedit.io.storage import to_json
from jedit.reports.comparison import Axis
from jedit.types import UserError

_OF_SWEEP = ('cells', 'published', 'axis')  # fields that its cells do not have
SWEEP_FILE = 'sweep.json'  # the summaries of all cells
_SHARED = ('contexts', 'statistics.file')  # files that differ by sweep, and are not free


def read_cells(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """The config of every cell: that of the sweep with the cell's fields changed.

  `config.cells` is a sequence of pairs, since configs sort the names of their sections: the cell's
  name and the sections that it changes, as ('PMET', {'method': {...}, 'edit': {...}}). A method
  with a name takes the place of the sweep's; other sections change single fields.

  Raises:
    UserError: where there are no cells, or one cannot be used.
  """
  cells = config.get('cells')
  if not isinstance(cells, list | tuple) or not cells:
    raise UserError('The config has no cells to sweep over; give pairs of a name and its changes.')
  base = {name: value for name, value in config.items() if name not in _OF_SWEEP}
  found = {}
  for pair in cells:
    if len(pair) != 2 or not isinstance(pair[1], Mapping):
      raise UserError(f'The cell {pair!r} is no pair of a name and the sections that it changes.')
    name, changes = pair
    cell = copy.deepcopy({**base, 'task': 'edit'})
    for section, fields in changes.items():
      is_whole = section == 'method' and 'name' in fields
      if isinstance(fields, Mapping) and not is_whole:
        cell[section] = {**cell.get(section, {}), **fields}
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
  """Raises UserError unless all cells edit one model: they share it and its second moments."""
  first_name, first = next(iter(settings.items()))
  for name, other in settings.items():
    for section in ('model', 'statistics', 'seed', 'contexts'):
      if getattr(other, section) != getattr(first, section):
        raise UserError(
          f'The cells {first_name!r} and {name!r} differ in {section}, which a sweep shares; make '
          'two sweeps of them.'
        )


def with_shared(cell: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
  """The cell's config with the files that the sweep makes for all cells."""
  sections = {
    name: {**cell.get(name, {}), **value}
    for name, value in shared.items()
    if isinstance(value, Mapping)
  }
  return {**cell, **shared, **sections}


def read_axis(config: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]]) -> Axis | None:
  """The field that `config.axis` names; None where it names none.

  Args:
    config: of the sweep.
    cells: of `read_cells`.

  Raises:
    UserError: where a cell has no number there.
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
  """A cell's name as that of a directory."""
  return ''.join(char if char.isalnum() or char in '-_.' else '_' for char in name.lower())


def read_runs(
  workdirs: Sequence[str],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
  """The summaries and configs of finished runs; a sweep gives its cells'.

  Returns:
    Both by the name of the workdir, with that of the cell. Configs are flat, without fields that
    change no result; files that a sweep made for its cells are those that it was given.

  Raises:
    UserError: without workdirs, for one without results, and for two of one name.
  """
  if not workdirs:
    raise UserError('There is nothing to compare; give workdirs, separated by commas.')
  summaries: dict[str, dict[str, Any]] = {}
  configs: dict[str, dict[str, Any]] = {}
  for workdir in workdirs:
    place = pathlib.Path(workdir)
    label = place.name or place.resolve().name
    if (place / SWEEP_FILE).is_file():
      cells = storage.read_json(place / SWEEP_FILE)
      config = _read_config(place)
      shared = {field: config.get(field, '') for field in _SHARED}
      more = {f'{label}: {name}': summary for name, summary in cells.items()}
      places = [place / 'cells' / folder(name) for name in cells]
    elif (place / SUMMARY_FILE).is_file():
      more, places, shared = {label: storage.read_json(place / SUMMARY_FILE)}, [place], {}
    else:
      raise UserError(f'{place} has no {SUMMARY_FILE}; give the workdir of a finished run.')
    for (name, summary), where in zip(more.items(), places, strict=True):
      if name in summaries:
        raise UserError(f'Two workdirs are called {name!r}; rename one.')
      summaries[name] = summary
      if config := _read_config(where):
        configs[name] = {**config, **shared}
  return summaries, configs


def _read_config(workdir: pathlib.Path) -> dict[str, Any]:
  """The flat config of a run without fields that change no result; empty where it has none."""
  file = workdir / CONFIG_FILE
  fields = flat(storage.read_json(file)) if file.is_file() else {}
  return {name: value for name, value in fields.items() if not name.startswith(FREE)}
