"""Names that the oldest supported jax lacks. Each goes once setup.cfg asks for its version."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.experimental


def enable_x64(enabled: bool) -> AbstractContextManager:
  """64-bit types inside the block: `jax.enable_x64`, from jax 0.8.0 on."""
  if hasattr(jax, 'enable_x64'):
    return jax.enable_x64(enabled)
  return jax.experimental.enable_x64(enabled)  # type: ignore[attr-defined]


def unregister_event_time_span_listener(listener: Callable) -> None:
  """`jax.monitoring.unregister_event_time_span_listener`, from jax 0.8.1 on."""
  if hasattr(jax.monitoring, 'unregister_event_time_span_listener'):
    jax.monitoring.unregister_event_time_span_listener(listener)
  else:
    old: Any = jax._src.monitoring
    old._unregister_event_time_span_listener_by_callback(listener)
