"""Requests of lm-evaluation-harness in JAX: the engine."""

import time
from typing import Any

from common.downstream_workload import RequestWorkload, ask_all, fields

import jedit
from implementations.base_jax import JaxImplementation
from jedit.evals.harness import HarnessModel


class Engine(JaxImplementation):
  """`HarnessModel` with its own choice of batches."""

  def __init__(self, workload: RequestWorkload):
    self.workload = workload
    self.model = HarnessModel(jedit.load(workload.directory))
    super().__init__(self.model.lm.config.dtype)

  def work(self) -> tuple[dict[str, Any], dict[str, float]]:
    return ask_all(self.workload, self.model, time.perf_counter)

  def report(self, done: tuple[dict[str, Any], dict[str, float]], seconds: float) -> dict:
    return fields(*done)
