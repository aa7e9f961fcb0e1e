"""Progress of a stage with the time left, and seconds per stage."""

import contextlib
import contextvars
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TextIO

from jedit.parallel.mesh import is_first_process
from jedit.units import format_seconds

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
