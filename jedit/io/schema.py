"""Schemas at the doors: JSON of records, contexts, model configs and stored files is checked here.

A schema is a type with pydantic's constraints. The first fault becomes one sentence that names the
file, the record, the field, what was found and what is wanted. pydantic, because its errors are
data (place, kind, value) that sentences can be made of, and its parser, in Rust, refuses lone
surrogates and JSON nested more than 200 deep.
"""

import dataclasses
import functools
import os
from typing import Annotated, Any

import pydantic
import pydantic_core

from jedit.io import storage
from jedit.types import UserError

Text = Annotated[str, pydantic.Field(pattern=r'\S')]  # with something to see in it
Positive = Annotated[int, pydantic.Field(ge=1, lt=2**31)]
Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]

_WANTED = {
  'string_type': 'a string',
  'string_pattern_mismatch': 'a non-empty string',
  'string_unicode': 'a string without lone surrogates',
  'int_type': 'a whole number',
  'int_from_float': 'a whole number',
  'int_parsing_size': 'a smaller number',
  'float_type': 'a number',
  'finite_number': 'a finite number',
  'bool_type': 'true or false',
  'none_required': 'null',
  'list_type': 'a list',
  'tuple_type': 'a list',
  'is_instance_of': 'a list',
  'sequence_type': 'a list',
  'dict_type': 'an object',
  'model_type': 'an object',
  'model_attributes_type': 'an object',
  'dataclass_type': 'an object',
  'too_short': 'a list of at least {min_length}',
  'greater_than': 'a number above {gt}',
  'greater_than_equal': 'a number of at least {ge}',
  'less_than': 'a number below {lt}',
  'less_than_equal': 'a number of at most {le}',
  'literal_error': 'one of {expected}',
}


class Fields(pydantic.BaseModel):
  """Base of schemas of objects: values are not converted, and unknown fields are ignored."""

  model_config = pydantic.ConfigDict(strict=True, extra='ignore', frozen=True)


def parse(data: bytes, path: str | os.PathLike[str]) -> Any:
  """The value of JSON text.

  Raises:
    UserError: for anything else.
  """
  try:
    return pydantic_core.from_json(data)
  except ValueError as error:
    raise UserError(f'{path} is not JSON ({error}); repair it or give another file.') from error


def read_json(path: str | os.PathLike[str], kind: Any = None) -> Any:
  """Reads a JSON file of the user or of another program.

  Args:
    path: the file.
    kind: type that it must have; None takes anything.

  Raises:
    UserError: where it cannot be read, is not JSON or not of this kind.
  """
  value = parse(storage.read_bytes(path), path)
  return value if kind is None else check(kind, value, f'{path}')


def check(kind: Any, value: Any, label: str, *, strict: bool = True) -> Any:
  """The value as `kind`.

  Args:
    kind: a type with the constraints of pydantic.
    value: of any form.
    label: begins the message: the file, and the record if there are several.
    strict: converts nothing; False makes dataclasses of objects.

  Raises:
    UserError: for the first fault.
  """
  try:
    return _adapter(kind, strict).validate_python(value)
  except pydantic.ValidationError as error:
    raise UserError(_sentence(error, label)) from error


@functools.cache
def _adapter(kind: Any, strict: bool) -> pydantic.TypeAdapter:
  has_config = dataclasses.is_dataclass(kind) or (
    isinstance(kind, type) and issubclass(kind, pydantic.BaseModel)
  )
  return pydantic.TypeAdapter(kind, config={'strict': strict} if not has_config else None)


def _sentence(error: pydantic.ValidationError, label: str) -> str:
  first = error.errors(include_url=False)[0]
  names = (f'[{name}]' if isinstance(name, int) else f'.{name}' for name in first['loc'])
  field = ''.join(names).removeprefix('.')
  if first['type'] == 'missing':
    return f'{label} lacks the field {field!r}; add it.'
  found = repr(first['input'])
  found = found if len(found) <= 60 else f'{found[:57]}...'
  place = f' in the field {field!r}' if field else ''
  wanted = _WANTED.get(first['type'])
  if wanted is None:  # in the words of pydantic or of a validator of ours
    wanted = first['msg'].removeprefix('Input should be ').removeprefix('Value error, ')
  return f'{label} has {found}{place}; give {wanted.format(**first.get("ctx", {}))}.'
