"""Sealed files: whatever jedit reads back says what it is, what made it and whether it is whole.

One rule for JSON, JSON lines (`jedit.io.jsonl`) and safetensors (`jedit.io.tensors`): the file, or
each line, begins with a digest, XXH3-128 of all its bytes with the 32 digits of the digest as
zeros. It covers the `format` (name and version) and the `key`, the digest of the inputs. Digests
detect accidents, not forgery. XXH3 takes an eighth of the time of SHA-256.

A cache that is damaged or of other inputs is made anew (`kept`); a file that a user handed over is
refused.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import xxhash

from jedit.io import schema, storage
from jedit.io.progress import note
from jedit.io.storage import to_json
from jedit.types import UserError

T = TypeVar('T')

ZEROS = b'0' * 32
_HEAD = b'{\n  "jedit": {\n    "digest": "'


class StaleFile(UserError):
  """A file that is damaged, of another format or of other inputs; a cache is then made anew."""


class Digest(str):
  """A key that is its digest already."""


def digest(key: Any) -> str:
  """Hash of a JSON-able value; of a `Digest` itself."""
  if isinstance(key, Digest):
    return str(key)
  return hashlib.sha256(json.dumps(to_json(key), sort_keys=True).encode()).hexdigest()


def start_digest(*parts: Any) -> Any:
  """A hasher that has seen the bytes of buffers, one after the other."""
  hasher = xxhash.xxh3_128()
  for part in parts:
    hasher.update(part)
  return hasher


def digest_of(*parts: Any) -> bytes:
  """The 32 digits over the bytes of buffers, one after the other."""
  return start_digest(*parts).hexdigest().encode()


def damaged(path: str | os.PathLike[str], fault: str) -> StaleFile:
  """The error for a file whose bytes are not those that were written."""
  return StaleFile(f'{path} is damaged ({fault}); restore it, or remove it to make it again.')


def check_about(
  path: str | os.PathLike[str], about: Mapping[str, Any], format: str | None, key: Any
) -> None:
  """Raises StaleFile unless a file is of this format and, if `key` is given, of these inputs."""
  if format is not None and about.get('format') != format:
    raise StaleFile(
      f'{path} holds {about.get("format", "something else")!r} where {format!r} is wanted; give a '
      'file that this version of jedit wrote.'
    )
  if key is not None and about.get('key') != digest(key):
    raise StaleFile(f'{path} is of another run, with other inputs; give one of this run.')


def kept(path: pathlib.Path, read: Callable[..., T], *arguments: Any) -> T | None:
  """`read(path, *arguments)` of a cache, or None where it must be made anew; then says why."""
  if not path.is_file():
    return None
  try:
    return read(path, *arguments)
  except StaleFile as error:
    note(f'jedit: {str(error).partition(";")[0]}; it is made again.')
    return None


def write_json(
  path: str | os.PathLike[str], format: str, content: Mapping[str, Any], key: Any = None
) -> None:
  """Writes the content with an entry `jedit` in front: digest, format and key.

  Raises:
    UserError: where the file cannot be written.
  """
  about = {'digest': ZEROS.decode(), 'format': format}
  if key is not None:
    about['key'] = digest(key)
  text = json.dumps(to_json({'jedit': about, **content}), indent=2, ensure_ascii=False) + '\n'
  data = text.encode()
  storage.write_bytes(path, data.replace(ZEROS, digest_of(data), 1))


def read_json(
  path: str | os.PathLike[str], format: str | None, key: Any = None, kind: Any = None
) -> dict[str, Any]:
  """Reads what `write_json` wrote.

  Args:
    path: the file.
    format: that it must have; None takes any, for display.
    key: what it must be made of; None takes any.
    kind: type of the content, checked by `jedit.io.schema`.

  Raises:
    StaleFile: for a file that is damaged, of another format, shape or key.
    UserError: for one that cannot be read.
  """
  about, content = _open(path)
  check_about(path, about, format, key)
  try:
    return content if kind is None else schema.check(kind, content, f'{path}', strict=False)
  except UserError as error:
    raise StaleFile(str(error)) from error


def key_of(path: str | os.PathLike[str], format: str) -> Digest:
  """The digest of the key that a file was written with.

  Raises:
    StaleFile: for a file that is damaged or of another format.
    UserError: for one that cannot be read.
  """
  about, _ = _open(path)
  check_about(path, about, format, None)
  return Digest(about['key'])


def _open(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
  """The entry of the seal, and the content; raises as `read_json`."""
  data = storage.read_bytes(path)
  start, end = len(_HEAD), len(_HEAD) + len(ZEROS)
  if not data.startswith(_HEAD):
    raise StaleFile(f'{path} was not written by this version of jedit; give one that was.')
  if data[start:end] != digest_of(data[:start], ZEROS, data[end:]):
    raise damaged(path, 'its content does not match its digest')
  content = schema.parse(data, path)
  return content.pop('jedit'), content


def is_sealed_json(path: pathlib.Path) -> bool:
  """True for a file that `write_json` wrote, damaged or not."""
  try:
    return path.read_bytes().startswith(_HEAD)
  except OSError:
    return False
