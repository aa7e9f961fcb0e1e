"""Text generation in JAX: the engine."""

from typing import Any

import numpy as np
from common.workload import GenerationWorkload

from implementations.base_jax import JaxImplementation
from jedit.models.generate import generate
from jedit.models.load import load_directory


class Engine(JaxImplementation):
  """`jedit.models.generate.generate`, all prompts in one batch."""

  def __init__(self, workload: GenerationWorkload):
    self.workload = workload
    self.model, _ = load_directory(workload.directory)
    super().__init__(self.model.config.dtype)

  def work(self) -> list[list[int]]:
    rows, num_new = self.workload.rows, self.workload.num_new
    return generate(self.model, rows, max_new_tokens=num_new, batch_size=len(rows))

  def report(self, done: list[list[int]], seconds: float) -> dict[str, Any]:
    token_NxM = np.array(done)
    answers = {'indices': np.arange(len(done)), 'tokens': token_NxM}
    return {'amount': token_NxM.size, 'answers': answers}
