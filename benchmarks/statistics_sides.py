"""The sides of `statistics.py`: one packed pass for all layers, and a pass for every layer."""

import json
import math
import pathlib
import random
import re
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

import flop
import jax
import numpy as np
from jax_sides import matmul_ceiling, peak_memory
from material import PRESETS, random_params

from jedit.experiments.compile_timer import CompileClock
from jedit.models import Model, site
from jedit.models.export import save_directory
from jedit.models.load import load_directory
from jedit.models.sites import KERNEL_INPUT
from jedit.models.tokenizer import load_tokenizer
from jedit.moments.collect import accumulate
from jedit.moments.corpus import Corpus
from jedit.moments.packing import PackedText
from jedit.moments.sums import adding, num_values, products_of, shapes_of
from jedit.parallel.mesh import make_mesh, place_rows
from jedit.parallel.shapes import pad
from jedit.testbeds import testbed_corpus
from jedit.testbeds.tokenizer import save_tokenizer, train_tokenizer
from jedit.types import Kernel

_TEXTS = 'texts.json'
_BYTES = {'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 'pred': 1, 's8': 1, 'u8': 1}
_DOCUMENTS_PER_GROUP = 100  # sorted by length together, as ROME's and MEMIT's programs do


def prepare(directory: pathlib.Path, preset: str, num_tokens: int, seed: int) -> dict[str, Any]:
  """Makes the model and documents of mixed length; returns what the work needs.

  Lengths are log-normal, as those of articles: a median of about 90 tokens, at most 500.
  """
  sizes = PRESETS[preset]
  lines = testbed_corpus('gptj')
  save_tokenizer(train_tokenizer(lines, min(sizes.vocab_size, 1000), 'gptj'), directory, 'gptj')
  tokenizer = load_tokenizer(directory)
  rng = random.Random(seed)
  words = ' '.join(lines).split()
  texts: list[str] = []
  lengths: list[int] = []
  while sum(lengths) < num_tokens:
    count = min(int(rng.lognormvariate(4.2, 0.8)) + 5, 400)
    texts.append(' '.join(rng.choices(words, k=count)))
    lengths.append(len(tokenizer(texts[-1])['input_ids'][:500]))
  (directory / _TEXTS).write_text(json.dumps(texts))
  save_directory(
    directory / 'model',
    Model(random_params(sizes.config, seed), config=sizes.config),
    sizes.hf_config,
    source=directory,
  )
  config, layers = sizes.config, sizes.layers
  square = 2 * config.ffn_width**2
  blocks = (layers[-1] + 1) * flop.block_flop(config)
  return {
    'num_documents': len(texts),
    'num_tokens': sum(lengths),
    'longest': max(lengths),
    'flop': sum(lengths) * (blocks + len(layers) * square),
  }


class Engine:
  """`jedit.moments.collect`: packed rows, all layers at once; tokenising is timed."""

  def __init__(self, directory: pathlib.Path, preset: str, batch_tokens: int):
    self.layers = PRESETS[preset].layers
    self.tokenizer = load_tokenizer(directory)
    mesh = make_mesh()
    self.model, _ = load_directory(directory / 'model', PRESETS[preset].dtype, mesh)
    self.text = PackedText(
      self.tokenizer,
      Corpus.of(json.loads((directory / _TEXTS).read_text())),
      row_tokens=512,
      batch_tokens=batch_tokens,
      max_document_tokens=500,
    )

  def _pass(self) -> Any:
    return accumulate(self.model, self.text, [Kernel(layer, 'mlp') for layer in self.layers])

  def warm_up(self) -> dict[str, Any]:
    with CompileClock() as clock:
      self._pass()
    return {'compile_seconds': clock.seconds, 'device': jax.devices()[0].device_kind}

  def ceiling(self) -> float:
    return matmul_ceiling(self.model.config.dtype)

  def round(self) -> dict[str, Any]:
    with CompileClock() as clock:
      start = time.perf_counter()
      moments = self._pass()
      seconds = time.perf_counter() - start
    # A pass compiles its step anew: that is told apart.
    return {
      'seconds': seconds - clock.seconds,
      'compile_seconds': clock.seconds,
      'num_tokens': moments.num_tokens,
      'traces': {
        layer: float(np.trace(moments.cov[Kernel(layer, 'mlp')])) for layer in self.layers
      },
    }

  def memory(self) -> dict[str, int | None]:
    return peak_memory()


class Baseline:
  """PyTorch, float32: for each layer a pass over padded documents that stops there.

  Kinder than the published programs in one place: texts are tokenised once, outside the time.
  """

  def __init__(self, directory: pathlib.Path, preset: str, batch_tokens: int):
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    self.torch, self.layers, self.batch_tokens = torch, PRESETS[preset].layers, batch_tokens
    self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    self.model = transformers.AutoModelForCausalLM.from_pretrained(
      directory / 'model', dtype=torch.float32
    )
    self.model.to(self.device).eval().requires_grad_(False)
    texts = json.loads((directory / _TEXTS).read_text())
    tokenizer = load_tokenizer(directory)
    self.batches = self._batches([ids[:500] for ids in tokenizer(texts)['input_ids']])

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
    torch = self.torch
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
      token_NxT, length_N = pad(rows)
      mask_NxT = np.arange(token_NxT.shape[1])[None] < length_N[:, None]
      mask = torch.tensor(mask_NxT, device=self.device)
      with torch.no_grad():
        try:
          self.model.transformer(
            torch.tensor(token_NxT.astype(np.int64), device=self.device),
            attention_mask=mask.long(),
          )
        except Stop:
          pass
        key_KxF = seen['key'][mask]
        sum_FxF += key_KxF.T @ key_KxF
      count += len(key_KxF)
    handle.remove()
    return float((sum_FxF.trace() / count).cpu()), count

  def warm_up(self) -> dict[str, Any]:
    self._layer(self.layers[0], self.batches[:1])
    return {'compile_seconds': None, 'device': str(self.device)}

  def ceiling(self) -> float:
    size = 1024 if self.device.type == 'cpu' else 8192
    x = self.torch.full((size, size), 1.0 / size, device=self.device)
    seconds = []
    for _ in range(12):
      start = self._now()
      self.torch.matmul(x, x)
      seconds.append(self._now() - start)
    return 2 * size**3 / min(seconds)

  def _now(self) -> float:
    if self.device.type == 'cuda':
      self.torch.cuda.synchronize()
    return time.perf_counter()

  def round(self) -> dict[str, Any]:
    start = self._now()
    found = {layer: self._layer(layer, self.batches) for layer in self.layers}
    seconds = self._now() - start
    return {
      'seconds': seconds,
      'compile_seconds': None,
      'num_tokens': found[self.layers[0]][1],
      'traces': {layer: trace for layer, (trace, _) in found.items()},
    }

  def memory(self) -> dict[str, int | None]:
    unit = 1 if sys.platform == 'darwin' else 1024
    return {'process': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 'device': None}


def moved(
  directory: pathlib.Path, preset: str, data: int, model: int, num_rows: int
) -> dict[str, Any]:
  """What each device does and sends for one batch, as the compiled program says.

  Runs in a process that was started with data · model fake devices.
  """
  num_devices = data * model
  mesh = make_mesh(data, model)
  decoder, _ = load_directory(directory / 'model', PRESETS[preset].dtype, mesh)
  layers = PRESETS[preset].layers
  names = tuple(site(layer, KERNEL_INPUT['mlp']) for layer in layers)
  products = products_of(names, stop=layers[-1] + 1, mesh=mesh)
  tokens = place_rows(decoder, [np.zeros((num_rows, 512), np.int32)] * 3)
  sums = shapes_of(jax.eval_shape(products, decoder, *tokens), mesh)
  compiled = adding(products, mesh).lower(decoder, sums, *tokens).compile()
  total: dict[str, int] = {}
  for shape, name in re.findall(
    r'= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(',
    compiled.as_text(),
  ):
    for kind, sides in re.findall(r'(\w+)\[([\d,]*)\]', shape):
      count = math.prod(int(side) for side in sides.split(',') if side)
      total[name] = total.get(name, 0) + count * _BYTES[kind]
  return {
    'flop': compiled.cost_analysis()['flops'],
    'bytes': total,
    'sum_bytes': 8 * len(names) * num_values(decoder.config.ffn_width) // num_devices,
  }
