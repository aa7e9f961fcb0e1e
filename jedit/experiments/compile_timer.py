"""Time that JAX spends on tracing and compiling."""

from types import TracebackType

import jax

from jedit.compat import unregister_event_time_span_listener

_EVENTS = '/jax/core/compile/'


class CompileClock:
  """Counts the seconds spent on tracing and compiling inside the block.

  Tracing one program may trace and compile others; overlapping events of JAX count once.
  """

  def __init__(self) -> None:
    self._spans: list[tuple[float, float]] = []

  @property
  def seconds(self) -> float:
    """Seconds so far."""
    return sum(end - start for start, end in self._spans)

  def _on_span(self, event: str, start_time: float, end_time: float, **unused: str | int) -> None:
    if event.startswith(_EVENTS):
      # JAX reports an event when it ends, after the events inside it.
      while self._spans and self._spans[-1][0] >= start_time:
        self._spans.pop()
      self._spans.append((start_time, end_time))

  def __enter__(self) -> 'CompileClock':
    jax.monitoring.register_event_time_span_listener(self._on_span)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    unregister_event_time_span_listener(self._on_span)
