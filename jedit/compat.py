"""Names that the oldest supported jax lacks. Each goes once setup.cfg asks for its version."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import jax


def enable_x64(enabled: bool) -> AbstractContextManager:
  """64-bit types inside the block: `jax.enable_x64`, from jax 0.8.0 on."""
  if hasattr(jax, 'enable_x64'):
    return jax.enable_x64(enabled)
  from jax.experimental import enable_x64 as experimental  # removed in later versions

  return experimental(enabled)


def unregister_event_time_span_listener(listener: Callable) -> None:
  """`jax.monitoring.unregister_event_time_span_listener`, from jax 0.8.1 on."""
  if hasattr(jax.monitoring, 'unregister_event_time_span_listener'):
    jax.monitoring.unregister_event_time_span_listener(listener)
  else:
    from jax._src import monitoring

    monitoring._unregister_event_time_span_listener_by_callback(listener)
