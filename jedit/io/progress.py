"""Progress bars of the stages, and seconds per stage."""

import contextlib
import contextvars
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

import tqdm.auto
import tqdm.autonotebook
import tqdm.std

from jedit.parallel.mesh import is_first_process
from jedit.units import visible

_IN_NOTEBOOK = tqdm.autonotebook.tqdm is not tqdm.std.tqdm
_SCALED_UNITS = ('bytes', 'tokens')  # counted in k, M and G
_SECONDS_PER_LINE = 10.0  # in log files

_is_quiet = contextvars.ContextVar('is_quiet', default=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Silences the progress of the block, whose work an outer bar counts already."""
  token = _is_quiet.set(True)
  try:
    yield
  finally:
    _is_quiet.reset(token)


def note(line: str) -> None:
  """Prints a line beside the progress bars, such as the memory that a stage will take."""
  if not _is_quiet.get():
    print(visible(line), file=sys.stderr, flush=True)


def show(text: str) -> None:
  """Prints a result; control characters of its texts do not reach the terminal."""
  print(visible(text), flush=True)


class _Bar(tqdm.auto.tqdm):
  """tqdm's bar, with a rate that leaves out compilation and no thread of its own."""

  monitor_interval = 0  # every update looks at the clock
  nrows: int | None
  first: tuple[int, float] | None = None  # units and seconds of the first update

  def update(self, n: int = 1) -> None:
    """Counts, and remembers what the first update took."""
    super().update(n)
    if self.first is None:
      self.first = self.n, self.format_dict['elapsed']

  @property
  def format_dict(self) -> dict[str, Any]:
    """The numbers to show; the rate leaves out the first update, which includes compilation."""
    shown = super().format_dict
    if self.first is not None and self.n > self.first[0]:
      done, seconds = self.first
      shown['rate'] = (self.n - done) / max(shown['elapsed'] - seconds, 1e-9)
    return shown

  def display(self, *args: Any, **kwargs: Any) -> Any:
    """Draws the bar; on a terminal of unknown size tqdm would draw nothing."""
    if self.nrows is not None and self.nrows < 0:
      self.dynamic_ncols = self.ncols = self.nrows = None
    return super().display(*args, **kwargs)


class _LogLines(_Bar):
  """The numbers without the bar, on a line of their own every ten seconds.

  Outside of terminals tqdm would write one endless line with carriage returns.
  """

  def display(self, *unused: Any, **unused_too: Any) -> None:
    """Writes a line; `close`, which disables the bar first, ends the last line itself."""
    if self.n > self.initial or self.disable:
      self.fp.write(str(self) + '\n' * (not self.disable))
      self.fp.flush()


class Progress:
  """Progress of a stage: units done, time left, units per second.

  A bar on a terminal, a widget in a notebook, and a line every ten seconds in a log file. Of
  several processes the first one draws.

      with Progress('targets', total=100, unit='edits') as progress:
        for batch in batches:
          ...
          progress.update(len(batch), note=f'loss {loss:.3f}')

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
  ):
    """Starts the clock.

    Args:
      label: name of the stage.
      total: units of the whole stage; None for an unknown number, which leaves out the estimate.
      unit: name of what is counted, in the plural.
      done: units finished by an earlier run; they do not count towards the rate.
      stream: where to write; standard error by default.
    """
    self.done = done
    stream = sys.stderr if stream is None else stream
    draws = stream.isatty() or _IN_NOTEBOOK
    kind, interval, columns = (_Bar, 0.2, None) if draws else (_LogLines, _SECONDS_PER_LINE, 0)
    self._bar = kind(
      desc=label,
      total=total,
      unit=unit,
      unit_scale=unit in _SCALED_UNITS,
      initial=done,
      file=stream,
      disable=_is_quiet.get() or not is_first_process(),
      mininterval=interval,
      miniters=1,
      ncols=columns,
      dynamic_ncols=draws,
    )

  def update(self, count: int = 1, note: str = '', total: int | None = None) -> None:
    """Counts `count` more units.

    Args:
      count: units finished since the last update.
      note: shown at the end of the line.
      total: a better estimate of the units of the whole stage.
    """
    self.done += count
    if self._bar.disable:  # tqdm then counts nothing
      return
    self._bar.total = total or self._bar.total
    self._bar.set_postfix_str(note, refresh=False)
    self._bar.update(count)

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
    if kind is not None and not self._bar.disable:
      self._bar.set_postfix_str('stopped', refresh=False)
    self._bar.close()


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
