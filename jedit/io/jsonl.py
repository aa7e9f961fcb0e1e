"""JSON lines: appended row by row, or written whole."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from jedit.io import storage
from jedit.parallel.mesh import is_first_process, wait_for_all
from jedit.types import UserError


class JsonlWriter:
  """Appends one JSON line per row; every row that was written survives a kill.

  Opening removes a last line that a kill cut off. A run that continues opens the writer first and
  then reads the finished rows with `read_jsonl`, so it ends with the file of an uninterrupted run.
  Of several processes the first one writes; all wait until it has opened the file.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Opens `path` for appending, and makes its directory.

    Args:
      path: the file.

    Raises:
      UserError: where the file cannot be written.
    """
    self.path = pathlib.Path(path)
    try:
      if is_first_process():
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, 'a+b')
        self._drop_torn_line()
      else:
        self._file = open(os.devnull, 'a+b')
    except OSError as error:
      raise UserError(
        f'Cannot write {self.path} ({error.strerror}); choose a place that is writable.'
      ) from error
    wait_for_all()

  def _drop_torn_line(self) -> None:
    self._file.seek(0)
    size = sum(len(line) for line in self._file if line.endswith(b'\n'))
    self._file.truncate(size)

  def write(self, row: Mapping[str, Any]) -> None:
    """Appends `row` and flushes it to the operating system."""
    self._file.write(_line(row))
    self._file.flush()

  def close(self) -> None:
    """Makes the rows durable and closes the file."""
    if not self._file.closed:
      if is_first_process():
        os.fsync(self._file.fileno())
      self._file.close()

  def __enter__(self) -> 'JsonlWriter':
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Reads the rows of a JSON lines file; blank lines are skipped.

  Raises:
    UserError: for a file that cannot be read, and for a line that is not a JSON object, by number.
  """
  try:
    lines = pathlib.Path(path).read_bytes().split(b'\n')
  except OSError as error:
    raise UserError(f'Cannot read {path} ({error.strerror}); check the path.') from error
  rows = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:  # bad JSON or bad UTF-8
      raise UserError(
        f'Line {number} of {path} is not JSON ({error}); repair or remove it.'
      ) from error
    if not isinstance(row, dict):
      raise UserError(f'Line {number} of {path} is not a JSON object; repair or remove it.')
    rows.append(row)
  return rows


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes a whole JSON lines file, one line per row, which replaces an older one.

  Raises:
    UserError: where the file cannot be written.
  """
  with storage.atomic_file(path) as beside:
    beside.write_bytes(b''.join(_line(row) for row in rows))


def _line(row: Mapping[str, Any]) -> bytes:
  return (json.dumps(storage.to_json(row), ensure_ascii=False) + '\n').encode()
