"""Second moments in PyTorch, as the published codes take them: the baseline."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from common.workload import DocumentWorkload

from implementations.base_torch import TorchImplementation
from jedit.models.tokenizer import load_tokenizer

_DOCUMENTS_PER_GROUP = 100  # sorted by length together, as ROME's and MEMIT's programs do


class Baseline(TorchImplementation):
  """For each layer a pass over padded documents that stops there, float32.

  Kinder than the published programs in one place: texts are tokenised once, outside the time.
  """

  def __init__(self, workload: DocumentWorkload):
    super().__init__(workload.directory / 'model')
    self.layers, self.batch_tokens = workload.preset.layers, workload.batch_tokens
    rows = load_tokenizer(workload.directory)(workload.texts())['input_ids']
    self.batches = self._batches([ids[: workload.max_document_tokens] for ids in rows])

  def _batches(self, rows: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """A hundred documents at a time, sorted by length and cut at so many padded tokens."""
    found: list[list[Sequence[int]]] = []
    for first in range(0, len(rows), _DOCUMENTS_PER_GROUP):
      part: list[Sequence[int]] = []
      for row in sorted(rows[first : first + _DOCUMENTS_PER_GROUP], key=len, reverse=True):
        if part and (len(part) + 1) * len(part[0]) > self.batch_tokens:
          found.append(part)
          part = []
        part.append(row)
      found.append(part)
    return found

  def _layer(self, layer: int, batches: Sequence[Sequence[Sequence[int]]]) -> tuple[float, int]:
    """Trace of the second moment of a layer's keys, and the number of tokens."""
    seen = {}

    class Stop(Exception):
      pass

    def hook(module, inputs):
      del module
      seen['key'] = inputs[0]
      raise Stop

    kernel = self.model.transformer.h[layer].mlp.fc_out
    handle = kernel.register_forward_pre_hook(hook)
    sum_FxF = torch.zeros(kernel.in_features, kernel.in_features, device=self.device)
    count = 0
    for rows in batches:
      batch = self.padded(rows)
      with torch.no_grad():
        with contextlib.suppress(Stop):
          self.model.transformer(**batch)
        key_KxF = seen['key'][batch['attention_mask'].bool()]
        sum_FxF += key_KxF.T @ key_KxF
      count += len(key_KxF)
    handle.remove()
    return float((sum_FxF.trace() / count).cpu()), count

  def warm_up(self) -> dict[str, Any]:
    self._layer(self.layers[0], self.batches[:1])
    return self.started()

  def round(self, number: int, rounds: int) -> dict[str, Any]:
    del number, rounds
    start = self.now()
    found = {layer: self._layer(layer, self.batches) for layer in self.layers}
    seconds = self.now() - start
    answers = {f'trace {layer}': [trace] for layer, (trace, _) in found.items()}
    return {
      'seconds': seconds,
      'amount': found[self.layers[0]][1],
      'parts': {},
      'compile_seconds': None,
      'answers': {'indices': [0], **answers},
    }
