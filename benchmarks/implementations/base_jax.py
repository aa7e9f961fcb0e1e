"""What implementations in JAX share: clock, ceiling, memory."""

import resource
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from jedit.compat import enable_x64
from jedit.experiments.compile_timer import CompileClock
from jedit.models.precision import matmul_precision


class JaxImplementation:
  """An `Implementation` by two methods, `work` and `report`.

  Args:
    dtype: of weights and activations.
  """

  def __init__(self, dtype: str):
    self.dtype = dtype

  def work(self) -> Any:
    """Does all of the work."""
    raise NotImplementedError

  def rehearse(self) -> Any:
    """Compiles every program, by default with all of the work."""
    return self.work()

  def report(self, done: Any, seconds: float) -> dict[str, Any]:
    """The fields of a round, from the result and the seconds of `work`."""
    raise NotImplementedError

  def num_programs(self, done: Any) -> int | None:
    """Compiled programs of the main loop, from the result of `rehearse`."""
    del done
    return None

  def warm_up(self) -> dict[str, Any]:
    with CompileClock() as clock:
      done = self.rehearse()
    return {
      'device': jax.devices()[0].device_kind,
      'precision': self.dtype,
      'compile_seconds': clock.seconds,
      'num_programs': self.num_programs(done),
    }

  def round(self, number: int, rounds: int) -> dict[str, Any]:
    del number, rounds
    with CompileClock() as clock:
      start = time.perf_counter()
      done = self.work()
      seconds = time.perf_counter() - start
    fields = {'seconds': seconds, 'parts': {}, 'compile_seconds': clock.seconds}
    return {**fields, **self.report(done, seconds)}

  def ceiling(self) -> float:
    """Of the fastest of a few large square products."""
    is_cpu = jax.default_backend() == 'cpu'
    size, chain, repeats = (1024, 4, 3) if is_cpu else (8192, 16, 5)
    with enable_x64(self.dtype == 'float64'):
      x = jnp.full((size, size), 1.0 / size, self.dtype)
      _products(x, chain).block_until_ready()
      seconds = []
      for _ in range(repeats):
        start = time.perf_counter()
        _products(x, chain).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 * chain / min(seconds)

  def peak_bytes(self) -> dict[str, int | None]:
    unit = 1 if sys.platform == 'darwin' else 1024
    device = (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    return {'process': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 'device': device}


def _run_products(x, chain):
  precision = matmul_precision(x.dtype)
  return jax.lax.fori_loop(0, chain, lambda _, y: jnp.matmul(y, x, precision=precision), x)


_products = jax.jit(_run_products, static_argnums=1)
