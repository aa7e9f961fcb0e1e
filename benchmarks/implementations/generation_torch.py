"""Text generation in PyTorch: transformers' `generate`."""

from typing import Any

import numpy as np
import torch
from common.workload import GenerationWorkload

from implementations.base_torch import TorchImplementation


class Transformers(TorchImplementation):
  """`generate` with a cache, all prompts in one batch, padded on the left."""

  def __init__(self, workload: GenerationWorkload):
    super().__init__(workload.directory)
    self.num_new, rows = workload.num_new, workload.rows
    longest = max(map(len, rows))
    pad = [longest - len(row) for row in rows]
    self.token_NxT = torch.tensor([[0] * n + row for n, row in zip(pad, rows)], device=self.device)
    mask = [[0] * n + [1] * (longest - n) for n in pad]
    self.mask_NxT = torch.tensor(mask, device=self.device)

  def _generate(self) -> np.ndarray:
    with torch.inference_mode():
      token_NxT = self.model.generate(
        self.token_NxT,
        attention_mask=self.mask_NxT,
        max_new_tokens=self.num_new,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
      )
    return token_NxT[:, self.token_NxT.shape[1] :].cpu().numpy()

  def warm_up(self) -> dict[str, Any]:
    self._generate()
    return self.started()

  def round(self, number: int, rounds: int) -> dict[str, Any]:
    del number, rounds
    start = self.now()
    token_NxM = self._generate()
    return {
      'seconds': self.now() - start,
      'amount': token_NxM.size,
      'parts': {},
      'compile_seconds': None,
      'answers': {'indices': np.arange(len(token_NxM)), 'tokens': token_NxM},
    }
