"""Evaluation in JAX: the engine."""

from typing import Any

import numpy as np
from common.flop import GENERATED_TOKENS
from common.workload import EditWorkload, questions

import jedit
from implementations.base_jax import JaxImplementation
from jedit.evals import metrics
from jedit.evals.generation import Generation
from jedit.evals.scoring import plan_batches
from jedit.evals.table import Table
from jedit.models.encoding import Row, encode_many

_METRICS = [name for name, each in metrics.METRICS.items() if each.evidence in metrics.PARTS]


class Engine(JaxImplementation):
  """`jedit.evaluate` of one model."""

  def __init__(self, workload: EditWorkload):
    self.records, self.lm = workload.records, workload.language_model()
    super().__init__(self.lm.config.dtype)
    has_texts = workload.timed == 'scores and texts'
    self.generation = Generation(num_tokens=GENERATED_TOKENS) if has_texts else None

  def work(self) -> Table:
    return jedit.evaluate(self.lm, self.records, generation=self.generation)

  def num_programs(self, done: Any) -> int:
    rows = [
      Row(prompt, target=target)
      for record in self.records
      for prompt, targets in questions(record)
      for target in targets
    ]
    encoded = encode_many(self.lm.tokenizer, rows)
    return len(plan_batches(encoded).shapes)

  def report(self, done: Table, seconds: float) -> dict[str, Any]:
    values = np.stack([done.after[name] for name in _METRICS], axis=1)
    return {
      'amount': len(self.records),
      'answers': {'indices': np.arange(len(self.records)), 'values': values},
    }
