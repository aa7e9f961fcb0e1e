"""Second moments in JAX: the engine, and what its compiled programs cost on several devices."""

import math
import re
from typing import Any

import jax
import numpy as np
from common.workload import DocumentWorkload

from implementations.base_jax import JaxImplementation
from jedit.models import site
from jedit.models.load import load_directory
from jedit.models.sites import KERNEL_INPUT
from jedit.models.tokenizer import load_tokenizer
from jedit.moments.collect import accumulate
from jedit.moments.corpus import Corpus
from jedit.moments.files import SecondMoments
from jedit.moments.packing import PackedText
from jedit.moments.sums import BATCHES_PER_REDUCTION, MemoryPlan, Sums
from jedit.parallel.mesh import make_mesh, place_rows
from jedit.types import Kernel

_ROW_TOKENS = 512  # of the batch whose costs are read
_BYTES = {'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 'pred': 1, 's8': 1, 'u8': 1}


class Engine(JaxImplementation):
  """`jedit.moments.collect`: packed rows, all layers at once; tokenising is timed."""

  def __init__(self, workload: DocumentWorkload):
    super().__init__(workload.preset.dtype)
    self.kernels = [Kernel(layer, 'mlp') for layer in workload.preset.layers]
    self.model, _ = load_directory(workload.directory / 'model', self.dtype, make_mesh())
    self.text = PackedText(
      load_tokenizer(workload.directory),
      Corpus.of(workload.texts()),
      row_tokens=workload.row_tokens,
      batch_tokens=workload.batch_tokens,
      max_document_tokens=workload.max_document_tokens,
    )

  def work(self) -> SecondMoments:
    return accumulate(self.model, self.text, self.kernels)

  def round(self, number: int, rounds: int) -> dict[str, Any]:
    fields = super().round(number, rounds)
    # A pass compiles its step anew: that is reported apart.
    return {**fields, 'seconds': fields['seconds'] - fields['compile_seconds']}

  def report(self, done: SecondMoments, seconds: float) -> dict[str, Any]:
    answers = {f'trace {kernel.layer}': [np.trace(done.cov[kernel])] for kernel in self.kernels}
    return {'amount': done.num_tokens, 'answers': {'indices': [0], **answers}}


def device_costs(workload: DocumentWorkload, data: int, model: int, num_rows: int) -> dict:
  """Work and traffic of each device for one batch, read from the compiled program.

  Runs in a process that was started with data · model fake devices.
  """
  mesh = make_mesh(data, model)
  decoder, _ = load_directory(workload.directory / 'model', workload.preset.dtype, mesh)
  layers = workload.preset.layers
  names = tuple(site(layer, KERNEL_INPUT['mlp']) for layer in layers)
  tokens = place_rows(decoder, [np.zeros((num_rows, _ROW_TOKENS), np.int32)] * 3)
  sums = Sums(decoder, names, layers[-1] + 1, tokens, mesh)
  compiled = sums.compile(tokens)
  total = _sent(compiled)
  for reduction in sums.compile_reductions():
    for name, size in _sent(reduction).items():
      total[name] = total.get(name, 0) + size / BATCHES_PER_REDUCTION
  return {
    'tokens': num_rows * _ROW_TOKENS,
    'flop': compiled.cost_analysis()['flops'],
    'bytes': total,
    'sum_bytes': MemoryPlan.of([decoder.config.ffn_width] * len(names), data, model).device,
  }


def _sent(compiled: jax.stages.Compiled) -> dict[str, float]:
  """Bytes of the collectives of a program, by their kind."""
  total: dict[str, float] = {}
  for shape, name in re.findall(
    r'= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(',
    compiled.as_text(),
  ):
    for kind, shape_text in re.findall(r'(\w+)\[([\d,]*)\]', shape):
      count = math.prod(int(size) for size in shape_text.split(',') if size)
      total[name] = total.get(name, 0) + count * _BYTES[kind]
  return total
