"""The sides of `generation.py`: our decoding loop, and that of transformers on PyTorch."""

import pathlib
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import flop
from jax_sides import matmul_ceiling, peak_memory
from material import PRESETS, random_params

from jedit.experiments.compile_timer import CompileClock
from jedit.models import Model
from jedit.models.export import save_directory
from jedit.models.generate import generate
from jedit.models.load import load_directory


def prepare(
  directory: pathlib.Path, preset: str, lengths: Sequence[int], num_new: int, seed: int
) -> dict[str, int]:
  """Makes the model; returns its vocabulary and what the work needs."""
  preset = PRESETS[preset]
  hf_config = {**preset.hf_config, 'eos_token_id': None}
  model = Model(random_params(preset.config, seed), config=preset.config)
  save_directory(directory, model, hf_config)
  # The last new token is chosen and never read.
  num_tokens = sum(lengths) + len(lengths) * (num_new - 1)
  blocks = preset.num_layers * flop.block_flop(preset.config) * num_tokens
  heads = flop.head_flop(preset.config) * len(lengths) * num_new
  return {'vocab_size': preset.vocab_size, 'flop': blocks + heads}


class Engine:
  """`jedit.models.generate.generate`, all rows in one batch."""

  def __init__(self, directory: pathlib.Path, rows: Sequence[list[int]], num_new: int):
    self.model, _ = load_directory(directory)
    self.rows, self.num_new = rows, num_new

  def _generate(self) -> list[list[int]]:
    return generate(
      self.model,
      self.rows,
      max_new_tokens=self.num_new,
      batch_size=len(self.rows),
    )

  def warm_up(self) -> dict[str, Any]:
    with CompileClock() as clock:
      self._generate()
    return {'compile_seconds': clock.seconds}

  def ceiling(self) -> float:
    return matmul_ceiling(self.model.config.dtype)

  def round(self) -> dict[str, Any]:
    with CompileClock() as clock:
      start = time.perf_counter()
      tokens = self._generate()
      seconds = time.perf_counter() - start
    return {'seconds': seconds, 'tokens': tokens, 'compile_seconds': clock.seconds}

  def memory(self) -> dict[str, int | None]:
    return peak_memory()


class Transformers:
  """`generate` of transformers, one batch padded on the left."""

  def __init__(self, directory: pathlib.Path, rows: Sequence[list[int]], num_new: int):
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    self.torch, self.num_new = torch, num_new
    self.model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    self.model.eval()
    longest = max(map(len, rows))
    self.token_NxT = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    self.mask_NxT = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])

  def _generate(self) -> list[list[int]]:
    with self.torch.inference_mode():
      token_NxT = self.model.generate(
        self.token_NxT,
        attention_mask=self.mask_NxT,
        max_new_tokens=self.num_new,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
      )
    return token_NxT[:, self.token_NxT.shape[1] :].tolist()

  def warm_up(self) -> dict[str, Any]:
    self._generate()
    return {'compile_seconds': None}

  def ceiling(self) -> float:
    size = 1024
    x = self.torch.full((size, size), 1.0 / size)
    seconds = []
    for _ in range(12):
      start = time.perf_counter()
      self.torch.matmul(x, x)
      seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)

  def round(self) -> dict[str, Any]:
    start = time.perf_counter()
    tokens = self._generate()
    seconds = time.perf_counter() - start
    return {'seconds': seconds, 'tokens': tokens, 'compile_seconds': None}

  def memory(self) -> dict[str, int | None]:
    unit = 1 if sys.platform == 'darwin' else 1024
    return {'process': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 'device': None}
