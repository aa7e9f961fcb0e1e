"""What a run tells while it works: progress with the time left, seconds per stage, JSON lines."""

import contextlib
import contextvars
import dataclasses
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, TextIO

import numpy as np

from jedit.parallel.mesh import is_first_process, wait_for_all
from jedit.types import UserError


def to_json(value: Any) -> Any:
  """Turns what results are made of into plain JSON values.

  Numbers that JSON does not know (infinities and nan) become null: a file that every reader
  accepts is worth more than the difference.

  Args:
    value: nested mappings, sequences, dataclasses, arrays, scalars, strings, paths and None.

  Returns:
    The same as dicts with string keys, lists, floats, ints, bools, strings and None.

  Raises:
    TypeError: for anything else.
  """
  if value is None or isinstance(value, (str, bool, int)):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if hasattr(value, 'to_dict'):  # ml_collections.ConfigDict is no Mapping
    return to_json(value.to_dict())
  if isinstance(value, Mapping):
    return {str(key): to_json(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_json(item) for item in value]
  if isinstance(value, (set, frozenset)):
    return sorted(to_json(item) for item in value)
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if hasattr(value, 'tolist'):  # numpy and jax arrays and scalars, bfloat16 too
    return to_json(np.asarray(value).tolist())
  raise TypeError(f'{type(value).__name__} has no JSON form: {value!r}')


def format_seconds(seconds: float) -> str:
  """A duration for people: '0.4 s', '12 s', '3 min 05 s', '2 h 07 min'."""
  if seconds < 9.95:
    return f'{seconds:.1f} s'
  whole = round(seconds)
  if whole < 60:
    return f'{whole} s'
  if whole < 3600:
    return f'{whole // 60} min {whole % 60:02d} s'
  return f'{whole // 3600} h {whole % 3600 // 60:02d} min'


def format_bytes(count: int) -> str:
  """A size for people: '312 kB', '48 MB', '12.9 GB'."""
  if count < 999_500:
    return f'{count / 1e3:.0f} kB'
  return f'{count / 1e6:.0f} MB' if count < 999_500_000 else f'{count / 1e9:.1f} GB'


_is_quiet = contextvars.ContextVar('is_quiet', default=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Silences the progress of whatever runs inside, where an outer one counts the same work."""
  token = _is_quiet.set(True)
  try:
    yield
  finally:
    _is_quiet.reset(token)


def note(line: str) -> None:
  """A line beside the progress: what a stage is going to take."""
  if not _is_quiet.get():
    print(line, file=sys.stderr, flush=True)


class Progress:
  """One line per stage: how far, how fast, how long still.

  On a terminal the line is rewritten a few times a second; elsewhere a new line is written
  every tenth of the way or every ten seconds, so that log files stay short.

      with Progress('targets', total=100, unit='edits') as progress:
        for batch in batches:
          ...
          progress.update(len(batch))

  Attributes:
    done: units finished so far.
  """

  def __init__(
    self,
    label: str,
    total: int | None,
    unit: str = 'steps',
    *,
    done: int = 0,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      label: name of the stage.
      total: units of the whole stage; None where nobody knows, which leaves out the estimate.
      unit: what is counted, in the plural.
      done: units that an earlier run had finished; they do not count towards the rate.
      stream: where to write; standard error by default.
      clock: seconds, for tests.
    """
    self.label, self.total, self.unit, self.done = label, total, unit, done
    self._stream = sys.stderr if stream is None else stream
    self._is_tty = self._stream.isatty()
    self._is_quiet = _is_quiet.get() or not is_first_process()
    self._clock = clock
    self._start_done, self._start_time = done, clock()
    # The first update includes compilation; the estimate starts behind it.
    self._steady: tuple[int, float] | None = None
    self._shown_done, self._shown_time = done, self._start_time

  def update(self, count: int = 1, note: str = '') -> None:
    """Counts `count` more units as finished; `note` is shown at the end of the line."""
    now = self._clock()
    self.done += count
    if self._is_due(now):
      self._shown_done, self._shown_time = self.done, now
      self._write(self._line(now) + (f', {note}' if note else ''), is_last=False)
    if self._steady is None:
      self._steady = self.done, now

  def _is_due(self, now: float) -> bool:
    waited = now - self._shown_time
    if self._is_tty:
      return waited >= 0.2
    if self.total and waited >= 1:
      return 10 * self.done // self.total > 10 * self._shown_done // self.total or waited >= 10
    return waited >= 10

  def _line(self, now: float) -> str:
    parts = [f'{self.label}: {self.done}' + (f'/{self.total}' if self.total else '')]
    parts[0] += f' {self.unit}'
    done, start = self._steady or (self._start_done, self._start_time)
    if now > start and self.done > done:
      rate = (self.done - done) / (now - start)
      parts.append(f'{rate:.3g} {self.unit}/s')
      if self.total:
        parts.append(f'{format_seconds(max(self.total - self.done, 0) / rate)} left')
    return ', '.join(parts)

  def _write(self, line: str, *, is_last: bool) -> None:
    if self._is_quiet:
      return
    # Carriage return and erase-to-end rewrite the line in place.
    self._stream.write(f'\r{line}\x1b[K' + '\n' * is_last if self._is_tty else f'{line}\n')
    self._stream.flush()

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    seconds = self._clock() - self._start_time
    end = 'in' if kind is None else 'stopped after'
    of_total = f'/{self.total}' if self.total else ''
    line = f'{self.label}: {self.done}{of_total} {self.unit} {end} {format_seconds(seconds)}'
    self._write(line, is_last=True)


class Timers:
  """Seconds per stage, added up over several visits.

      timers = Timers()
      with timers('targets'):
        ...
      timers.seconds  # {'targets': 12.3}

  Device work is asynchronous: end a stage by fetching or blocking on its result, or its time
  shows up in the next one. Stages that are nested are counted in both.
  """

  def __init__(self, seconds: Mapping[str, float] | None = None):
    """Starts from `seconds`, such as those of the interrupted run that this one continues."""
    self.seconds: dict[str, float] = dict(seconds or {})

  @contextlib.contextmanager
  def __call__(self, stage: str) -> Iterator[None]:
    """Adds the time spent inside the block to `stage`, also when the block raises."""
    start = time.monotonic()
    try:
      yield
    finally:
      self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - start


class JsonlWriter:
  """Appends one JSON line per row; every row that was written survives a kill.

  Opening removes a last line that a kill cut off. A run that goes on opens the writer first and
  then asks `read_jsonl` what is done, and so ends with the file it would have had. Of several
  processes the first one writes; all wait until it has opened the file.
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
    """Appends `row` and hands it to the operating system."""
    line = json.dumps(to_json(row), ensure_ascii=False) + '\n'
    self._file.write(line.encode())
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
    UserError: for a file that cannot be read, and for a line that is no JSON object, by number.
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
