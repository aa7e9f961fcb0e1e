"""Configs from the dataclasses of a schema, and back, with every field checked.

A field that a config leaves out has its default; one that does not exist is an error.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jedit import methods
from jedit.experiments.schema import Settings
from jedit.methods import Method
from jedit.testbeds.settings import Training
from jedit.types import UserError

# Names of fields in earlier versions.
RENAMED: Mapping[str, str] = {
  'edit.size': 'edit.edits_per_batch',
  'edit.batch_size': 'edit.target_batch_size',
}

# Tasks that read some of the fields alone; all others read all but these tasks' own.
_FIELDS: Mapping[str, tuple[str, ...]] = {
  'probe': ('task', 'seed', 'model', 'mesh', 'data', 'patches', 'probe'),
  'compare': ('task', 'workdirs'),
}


def default_config(task: str = 'edit') -> ConfigDict:
  """The fields that a task reads, with their defaults; an edit lacks only its `method`."""
  if task == 'train':
    return ConfigDict(_section_of(Training()))
  fields = _section_of(Settings(task=task))
  names = _FIELDS.get(task, set(fields) - {'probe', 'workdirs'})
  return ConfigDict({name: value for name, value in fields.items() if name in names})


def method_section(name: str, **fields: Any) -> dict[str, Any]:
  """The section `method` of a config: these fields and the defaults of all others.

  Raises:
    UserError: for a method that does not exist.
  """
  if name not in methods.METHODS:
    raise UserError(f'There is no method {name!r}; choose one of {", ".join(methods.METHODS)}.')
  parameters = inspect.signature(methods.METHODS[name]).parameters.values()
  defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
  return {'name': name, **defaults, **fields}


def read_settings(config: Mapping[str, Any]) -> Settings:
  """Checks a config and turns its sections into dataclasses.

  Args:
    config: nested mappings; a ConfigDict's `to_dict()`.

  Raises:
    UserError: for fields that do not exist or have a value of another type, and for values that the
      sections and the method do not accept.
  """
  given = {name: value for name, value in config.items() if name != 'method'}
  settings = _read(Settings, 'The config', '', given)
  if 'method' not in config:
    return settings
  return dataclasses.replace(settings, method=read_method(config['method']))


def read_method(section: Any) -> Method:
  """The method that the section `method` of a config describes.

  Raises:
    UserError: for a section without name, and for fields that `jedit.methods.get` does not accept.
  """
  if not isinstance(section, Mapping) or not isinstance(section.get('name'), str):
    raise UserError(f'method is {section!r}; give a section with a name and the fields of it.')
  fields = {name: value for name, value in section.items() if name != 'name'}
  for name, value in fields.items():
    _refuse_renamed(f'method.{name}')
    if name.startswith('layers') and not isinstance(value, list | tuple):
      raise UserError(f'method.{name} is {value!r}; give a tuple of layer numbers.')
  return methods.get(section['name'], **fields)


def read_training(config: Mapping[str, Any]) -> ConfigDict:
  """Checks a config of the task `train` and completes it with the defaults.

  Raises:
    UserError: for fields that do not exist or have a value of another type.
  """
  return ConfigDict(_section_of(_read(Training, 'A config for training', '', config)))


def _section_of(values: Any) -> dict[str, Any]:
  """The fields of a dataclass as nested dicts, without those that are None."""
  found = {field.name: getattr(values, field.name) for field in _fields(type(values)).values()}
  return {
    name: _section_of(value) if dataclasses.is_dataclass(value) else value
    for name, value in found.items()
    if value is not None
  }


def _read(cls: Any, label: str, prefix: str, values: Any) -> Any:
  """The dataclass `cls` with these values, each of the type of its field."""
  if not isinstance(values, Mapping):
    raise UserError(f'{label} is {values!r}; give its fields.')
  fields, found = _fields(cls), {}
  for name, value in values.items():
    if name not in fields:
      _refuse_renamed(prefix + name)
      raise UserError(f'{label} has no field {name!r}; it has {", ".join(fields)}.')
    kind = fields[name].type
    if dataclasses.is_dataclass(kind):
      found[name] = _read(kind, f'The config section {name}', f'{name}.', value)
    else:
      found[name] = _typed(kind, prefix + name, value)
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
  return value
