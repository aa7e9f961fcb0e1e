"""Configs to and from the dataclasses of a schema, with every field checked.

A missing field takes its default; an unknown one is an error.
"""

import dataclasses
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jedit import methods
from jedit.experiments.schema import Settings
from jedit.io import schema
from jedit.methods import Method
from jedit.testbeds.settings import Training
from jedit.types import UserError, is_text

_PLAIN = (
  *(bool, int, float, str, float | str, int | None, float | None, str | None),
  *(Sequence[int], Sequence[str]),
)
_LONGEST_NAME = 255  # bytes, as file systems have it

# Former names of fields.
RENAMED: Mapping[str, str] = {
  'edit.size': 'edit.edits_per_batch',
  'edit.batch_size': 'edit.target_batch_size',
  'method.spread': 'method.schedule',
  'method.spread_low': 'method.schedule_low',
  'method.spread_high': 'method.schedule_high',
}

# Tasks with a subset of the fields; all other tasks read all fields but these tasks' own.
_FIELDS: Mapping[str, tuple[str, ...]] = {
  'probe': ('task', 'seed', 'model', 'mesh', 'data', 'patches', 'patches_anywhere', 'probe'),
  'compare': ('task', 'workdirs'),
}


def default_config(task: str = 'edit') -> ConfigDict:
  """The fields of a task with their defaults; a config for `edit` lacks only its `method`."""
  if task == 'train':
    return ConfigDict(_section_of(Training()))
  fields = _section_of(Settings(task=task))
  names = _FIELDS.get(task, set(fields) - {'probe', 'workdirs'})
  return ConfigDict({name: value for name, value in fields.items() if name in names})


def method_section(name: str, **fields: Any) -> dict[str, Any]:
  """The section `method` of a config: these fields, and the defaults of all others.

  Raises:
    UserError: for an unknown method.
  """
  if name not in methods.METHODS:
    raise UserError(f'There is no method {name!r}; choose one of {", ".join(methods.METHODS)}.')
  parameters = inspect.signature(methods.METHODS[name]).parameters.values()
  defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
  return {'name': name, **defaults, **fields}


def read_settings(config: Mapping[str, Any]) -> Settings:
  """Converts a config to dataclasses and checks it.

  Args:
    config: nested mappings; a ConfigDict's `to_dict()`.

  Raises:
    UserError: for unknown fields, values of a wrong type, and values that the sections or the
      method refuse.
  """
  given = {name: value for name, value in config.items() if name != 'method'}
  settings = _read(Settings, 'The config', '', given)
  if 'method' not in config:
    return settings
  return dataclasses.replace(settings, method=read_method(config['method']))


def read_method(section: Any) -> Method:
  """The method described by the section `method` of a config.

  Raises:
    UserError: for a section without name, and for fields that `jedit.methods.get` refuses.
  """
  if (
    not isinstance(section, Mapping)
    or not isinstance(section.get('name'), str)
    or not all(isinstance(name, str) for name in section)
  ):
    raise UserError(f'method is {section!r}; give a section with a name and its fields.')
  fields = {name: value for name, value in section.items() if name != 'name'}
  kinds = _method_kinds(section['name'])
  for name, value in fields.items():
    _refuse_renamed(f'method.{name}')
    check_value(f'method.{name}', value)
    if name.startswith('layers') and not isinstance(value, list | tuple):
      raise UserError(f'method.{name} is {value!r}; give a tuple of layer numbers.')
    if name in kinds:
      schema.check(kinds[name], value, f'The config field method.{name}')
  return methods.get(section['name'], **fields)


def _method_kinds(name: str) -> dict[str, Any]:
  """Types of the fields of a method, where they are plain."""
  if name not in methods.METHODS:
    return {}
  parameters = inspect.signature(methods.METHODS[name]).parameters.values()
  return {p.name: p.annotation for p in parameters if p.annotation in _PLAIN}


def read_training(config: Mapping[str, Any]) -> ConfigDict:
  """Checks a config of the task `train` and completes it with the defaults.

  Raises:
    UserError: for unknown fields or values of a wrong type.
  """
  settings = _read(Training, 'A config for training', '', config)
  if settings.seed < 0:
    raise UserError(f'seed is {settings.seed}; give at least 0.')
  return ConfigDict(_section_of(settings))


def _section_of(values: Any) -> dict[str, Any]:
  """The fields of a dataclass as nested dicts, except those that are None."""
  found = {field.name: getattr(values, field.name) for field in _fields(type(values)).values()}
  return {
    name: _section_of(value) if dataclasses.is_dataclass(value) else value
    for name, value in found.items()
    if value is not None
  }


def _read(cls: Any, label: str, prefix: str, values: Any) -> Any:
  """The dataclass `cls` with these values, each cast to the type of its field."""
  if not isinstance(values, Mapping):
    raise UserError(f'{label} is {values!r}; give its fields.')
  fields, found = _fields(cls), {}
  for name, value in values.items():
    if name not in fields:
      _refuse_renamed(f'{prefix}{name}')
      raise UserError(f'{label} has no field {name!r}; it has {", ".join(fields)}.')
    kind = fields[name].type
    if dataclasses.is_dataclass(kind):
      found[name] = _read(kind, f'The config section {name}', f'{name}.', value)
    else:
      found[name] = _typed(kind, f'{prefix}{name}', value)
  return cls(**found)


def _fields(cls: Any) -> dict[str, dataclasses.Field]:
  return {field.name: field for field in dataclasses.fields(cls) if field.init}


def _refuse_renamed(name: str) -> None:
  if name in RENAMED:
    raise UserError(f'The config has no field {name!r}; it is {RENAMED[name]} now.')


def _typed(kind: Any, name: str, value: Any) -> Any:
  kinds = (int, float) if kind is float else kind
  if not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool):
    words = {str: 'a string', int: 'a whole number', float: 'a number', bool: 'True or False'}[kind]
    raise UserError(f'The config field {name} is {value!r}; give {words}.')
  check_value(name, value)
  return value


def check_value(name: str, value: Any) -> None:
  """Raises UserError for numbers out of every range and texts that files cannot hold."""
  if isinstance(value, Mapping):
    for key, each in value.items():
      check_value(f'{name}.{key}', each)
  elif isinstance(value, list | tuple):
    for each in value:
      check_value(name, each)
  elif isinstance(value, float) and not math.isfinite(value):
    raise UserError(f'The config field {name} is {value}; give a finite number.')
  elif isinstance(value, int) and not -(2**31) <= value < 2**31:
    raise UserError(f'The config field {name} is {value}; give a number below 2**31.')
  elif isinstance(value, str) and ('\0' in value or not is_text(value)):
    raise UserError(f'The config field {name} is {value!r}; give text in UTF-8 without NUL.')
  elif isinstance(value, str) and any(
    len(part.encode()) > _LONGEST_NAME for part in re.split('[,/]', value)
  ):
    raise UserError(f'The config field {name} has a name of more than {_LONGEST_NAME} bytes.')
