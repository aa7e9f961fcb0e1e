"""JSON lines: appended row by row, or written whole; every line is sealed (`jedit.io.sealed`).

The digest of a line covers its number and the format and key of the file as well, so that a line of
another run, a swapped and a missing line are noticed.
"""

import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jedit.io import sealed, storage
from jedit.io.lock import Lock
from jedit.io.progress import note
from jedit.io.sealed import ZEROS, StaleFile
from jedit.parallel.mesh import is_first_process, wait_for_all
from jedit.types import UserError

_HEAD = b'{"digest": "'
_OURS = re.compile(rb'\{"digest": "[0-9a-f]{32}"')


class JsonlWriter:
  """Appends one JSON line per row; every row that was written survives a kill.

  Opening reads the rows that are there and drops lines that a kill cut off or that are damaged, so
  that a run that continues ends with the file of an uninterrupted run. One process at a time has
  the file open. Of several processes of a run the first one writes; all wait until it has opened
  the file.

  Attributes:
    rows: those that were there.
  """

  def __init__(self, path: str | os.PathLike[str], format: str):
    """Opens `path` for appending, and makes its directory.

    Args:
      path: the file.
      format: of its lines.

    Raises:
      UserError: where the file cannot be written, has other lines or belongs to another process.
    """
    self.path, self._format = pathlib.Path(path), format
    self._lock = Lock(self.path.with_name(f'.{self.path.name}.lock'), f'The file {self.path}')
    self._lock.take()
    try:
      self._open()
    except BaseException:
      self._lock.release()
      raise

  def _open(self) -> None:
    self.rows: list[dict[str, Any]] = []
    data = check_ours(self.path, self._format)
    lines = data.split(b'\n')[:-1]
    found = [_open_line(line + b'\n', n, self._format, None) for n, line in enumerate(lines)]
    self.rows = [row for row in found if row is not None]
    is_torn = not data.endswith(b'\n') and bool(data)
    wait_for_all()  # all have read it
    if lines and len(self.rows) < len(lines):
      note(
        f'jedit: {len(lines) - len(self.rows)} of {len(lines)} lines of {self.path} are damaged or '
        'misplaced; they are made again.'
      )
    if is_torn or len(self.rows) < len(lines):
      write_jsonl(self.path, self._format, self.rows)
    self._num_rows = len(self.rows)
    try:
      if is_first_process():
        self.path.parent.mkdir(parents=True, exist_ok=True)
      self._file = open(self.path if is_first_process() else os.devnull, 'ab')
    except OSError as error:
      raise UserError(
        f'Cannot write {self.path} ({error.strerror}); choose a place that is writable.'
      ) from error
    wait_for_all()

  def write(self, row: Mapping[str, Any]) -> None:
    """Appends `row` and flushes it to the operating system.

    Raises:
      UserError: where the file cannot be written.
    """
    with storage.write_errors(self.path):
      self._file.write(_seal_line(row, self._num_rows, self._format, None))
      self._file.flush()
    self._num_rows += 1

  def close(self) -> None:
    """Makes the rows durable, closes the file and lets others have it."""
    if not self._file.closed:
      try:
        with storage.write_errors(self.path):
          if is_first_process():
            os.fsync(self._file.fileno())
          self._file.close()
      finally:
        self._lock.release()

  def __enter__(self) -> 'JsonlWriter':
    return self

  def __exit__(self, *unused: object) -> None:
    self.close()


def check_ours(path: str | os.PathLike[str], format: str) -> bytes:
  """The bytes of a file that lines are appended to, none where there is no file.

  Raises:
    UserError: for a file without a line of ours, which belongs to somebody else.
  """
  data = storage.read_bytes(path) if os.path.exists(path) else b''
  if data and not any(_OURS.match(line) for line in data.split(b'\n')):
    raise UserError(f'{path} holds something else than {format}; name another file.')
  return data


def read_jsonl(
  path: str | os.PathLike[str], format: str, key: Any = None, count: int | None = None
) -> list[dict[str, Any]]:
  """Reads the rows of a JSON lines file.

  Args:
    path: the file.
    format: that it must have.
    key: what it must be made of.
    count: number of rows that it must have; None takes any.

  Raises:
    StaleFile: for a line that is damaged, misplaced or of another format or key, by its number from
      1, and for another number of lines.
    UserError: for a file that cannot be read.
  """
  if not os.path.exists(path):
    raise StaleFile(f'There is no file {path}; restore it, or make it again.')
  rows: list[dict[str, Any]] = []
  key = _about(key)
  *lines, rest = storage.read_bytes(path).split(b'\n')
  for number, line in enumerate([*lines, *([rest] if rest else [])]):
    row = _open_line(line + b'\n', number, format, key) if number < len(lines) else None
    if row is None:
      raise sealed.damaged(path, f'line {number + 1} is not the one that was written there')
    rows.append(row)
  if count is not None and len(rows) != count:
    raise sealed.damaged(path, f'it has {len(rows)} lines where {count} were written')
  return rows


def write_jsonl(
  path: str | os.PathLike[str], format: str, rows: Iterable[Mapping[str, Any]], key: Any = None
) -> None:
  """Writes a whole JSON lines file, one line per row, which replaces an older one.

  Raises:
    UserError: where the file cannot be written.
  """
  key = _about(key)
  lines = [_seal_line(row, number, format, key) for number, row in enumerate(rows)]
  storage.write_bytes(path, b''.join(lines))


def _seal_line(row: Mapping[str, Any], number: int, format: str, key: str | None) -> bytes:
  text = json.dumps(storage.to_json({'digest': ZEROS.decode(), **row}), ensure_ascii=False) + '\n'
  data = text.encode()
  return data.replace(ZEROS, _digest(data, number, format, key), 1)


def _open_line(line: bytes, number: int, format: str, key: str | None) -> dict[str, Any] | None:
  """The row of a line that was written at this place; None for anything else."""
  start, end = len(_HEAD), len(_HEAD) + len(ZEROS)
  zeroed = line[:start] + ZEROS + line[end:]
  if not _OURS.match(line) or line[start:end] != _digest(zeroed, number, format, key):
    return None
  row = json.loads(line)
  del row['digest']
  return row


def _about(key: Any) -> str | None:
  """What the digest of every line covers of a key, made once for a file."""
  return None if key is None else sealed.digest(key)


def _digest(zeroed: bytes, number: int, format: str, key: str | None) -> bytes:
  return sealed.digest_of(json.dumps([format, key, number]).encode(), zeroed)
