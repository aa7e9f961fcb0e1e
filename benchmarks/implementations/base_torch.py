"""What implementations in PyTorch share: model, clock, ceiling, memory."""

import os
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from jedit.parallel.shapes import pad


class TorchImplementation:
  """An `Implementation` without its rounds.

  Args:
    directory: of the model, which is loaded in float32; None for none.
  """

  dtype = torch.float32

  def __init__(self, directory: str | os.PathLike[str] | None):
    self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if directory is not None:
      transformers.utils.logging.disable_progress_bar()
      self.model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=self.dtype)
      self.model.to(self.device).eval().requires_grad_(False)

  def started(self) -> dict[str, Any]:
    """The fields of `warm_up`."""
    has_gpu = self.device.type == 'cuda'
    return {
      'device': torch.cuda.get_device_name() if has_gpu else 'cpu',
      'precision': str(self.dtype).removeprefix('torch.'),
      'compile_seconds': None,
      'num_programs': None,
    }

  def now(self) -> float:
    """Seconds, once the device has finished."""
    if self.device.type == 'cuda':
      torch.cuda.synchronize()
    return time.perf_counter()

  def padded(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Rows of tokens as arguments of the model."""
    token_NxT, length_N = pad(rows)
    is_token_NxT = np.arange(token_NxT.shape[1]) < length_N[:, None]
    arrays = {'input_ids': token_NxT.astype(np.int64), 'attention_mask': is_token_NxT.astype(int)}
    return {name: torch.tensor(array, device=self.device) for name, array in arrays.items()}

  def ceiling(self) -> float:
    """Of the fastest of a few large square products."""
    size, repeats = (1024, 12) if self.device.type == 'cpu' else (8192, 5)
    x = torch.full((size, size), 1.0 / size, device=self.device, dtype=self.dtype)
    seconds = []
    for _ in range(repeats):
      start = self.now()
      torch.matmul(x, x)
      seconds.append(self.now() - start)
    return 2 * size**3 / min(seconds)

  def peak_bytes(self) -> dict[str, int | None]:
    unit = 1 if sys.platform == 'darwin' else 1024
    device = torch.cuda.max_memory_allocated() if self.device.type == 'cuda' else None
    return {'process': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 'device': device}
