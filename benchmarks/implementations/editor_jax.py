"""A training step of MALMEN in JAX: the engine."""

from typing import Any

import jax
import numpy as np
import optax
from common.editor_workload import TrainingWorkload

from implementations.base_jax import JaxImplementation
from jedit.hypernetworks.net import init
from jedit.hypernetworks.steps import Examples, run_step
from jedit.hypernetworks.train import update


class Engine(JaxImplementation):
  """The step of `jedit.train_editor` on texts that came before: their lower layers are kept."""

  keeps = True

  def __init__(self, workload: TrainingWorkload):
    self.lm, self.method = workload.language_model(), workload.method()
    super().__init__(self.lm.config.dtype)
    self.records = workload.records
    self.params, self.statistics = init(self.lm.config, self.method, jax.random.key(0))
    self.moments = optax.scale_by_adam().init(self.params)
    self.examples = Examples(self.lm, self.records, self.method)
    self._copy()

  def _copy(self) -> None:
    """Nets and moments of the next first step: an update takes its arguments for itself."""
    self.copies = jax.tree.map(jax.numpy.copy, (self.params, self.moments))

  def rehearse(self) -> Any:
    done = self.work()
    self._copy()
    return done

  def work(self) -> Any:
    if not self.keeps:
      self.examples.forget()
    plan = self.method.plan(self.lm.config)
    texts = self.examples.texts_of(self.examples.numbers(range(len(self.records))))
    gradient, _, losses = run_step(
      self.lm.model, self.params, self.statistics, texts, self.method, plan
    )
    return jax.block_until_ready((losses, update(*self.copies, gradient, settings=self.method)))

  def report(self, done: Any, seconds: float) -> dict[str, Any]:
    losses, _ = done
    self._copy()
    sums = [float(np.asarray(part).sum()) for part in losses[:3]]
    return {
      'amount': len(self.records),
      'answers': {'indices': np.arange(1), 'losses': np.array([sums])},
    }


class FirstEpoch(Engine):
  """The same step on texts that come for the first time: their lower layers run."""

  keeps = False
