"""Requests of lm-evaluation-harness in PyTorch: its Hugging Face backend."""

from typing import Any

from common.downstream_workload import RequestWorkload, ask_all, fields

from implementations.base_torch import TorchImplementation
from jedit.evals.harness import library
from jedit.models.tokenizer import load_tokenizer


class HuggingFace(TorchImplementation):
  """`HFLM` with batches of a fixed size, as its users set it."""

  def __init__(self, workload: RequestWorkload):
    super().__init__(workload.directory)
    self.workload = workload
    backend = library('lm_eval.models.huggingface').HFLM
    self.lm = backend(
      self.model,
      tokenizer=load_tokenizer(workload.directory),
      batch_size=workload.batch_size,
    )

  def warm_up(self) -> dict[str, Any]:
    ask_all(self.workload, self.lm, self.now)
    return self.started()

  def round(self, number: int, rounds: int) -> dict[str, Any]:
    del number, rounds
    start = self.now()
    done = ask_all(self.workload, self.lm, self.now)
    return {'seconds': self.now() - start, 'compile_seconds': None, **fields(*done)}
