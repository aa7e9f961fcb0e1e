"""Workloads of the benchmarks: a random model, and the edits, prompts or documents to run it on.

Time does not depend on the weights, so they are random; activations keep their size, so that losses
and gradients are neither zero nor infinite. Nothing is downloaded.

Every `prepare` function takes the settings of a script, a scratch directory, and whether the model
has to lie in it for PyTorch; it returns the workload, of a size to send between processes, and what
the workload amounts to.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from flax import traverse_util

import jedit
from common import flop
from common.presets import PRESETS, Preset
from jedit.data.records import load_records, select
from jedit.editing.prompts import Contexts, EditRows, encode_edits
from jedit.methods import pmet
from jedit.models import Model, ModelConfig, init_params
from jedit.models.export import save_directory
from jedit.models.tokenizer import load_tokenizer
from jedit.testbeds import testbed_corpus, testbed_directory
from jedit.testbeds.tokenizer import save_tokenizer, train_tokenizer
from jedit.types import Record, UserError

_STARTS = ('The', 'Therefore', 'Because', 'I', 'You')
_PREFIX_TOKENS = 10
_DOCUMENT_TOKENS = 500

# Stages with needed FLOP by timed work. Float64 solves are not among them: their ceiling differs.
_STAGES = {
  'targets': ('targets',),
  'keys': ('keys',),
  'edit': ('targets', 'keys'),
  'scores': ('evaluation',),
  'scores and texts': ('evaluation', 'generation'),
}


@dataclasses.dataclass(frozen=True)
class Amount:
  """Size of a workload.

  Attributes:
    count: of the unit.
    unit: 'edits' or 'tokens'.
    needed_flop: in the precision of the model.
    sentence: for people.
    facts: for the JSON file.
  """

  count: int
  unit: str
  needed_flop: float
  sentence: str
  facts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class EditWorkload:
  """Requests and their records.

  Attributes:
    preset: sizes.
    timed: 'targets', 'keys', 'edit', 'scores' or 'scores and texts'.
    directory: holds the tokenizer, and the model if it is stored.
    is_stored: without it every implementation draws the weights on its device.
    records: their requests are edited, their prompts evaluated.
    contexts: groups of prefix templates.
    num_steps: loss evaluations per edit.
    target_batch_size: edits optimised at once; None takes the engine's choice.
    seed: of the weights.
  """

  preset: Preset
  timed: str
  directory: pathlib.Path
  is_stored: bool
  records: tuple[Record, ...]
  contexts: Contexts
  num_steps: int
  target_batch_size: int | None
  seed: int

  @property
  def requests(self) -> list[jedit.Request]:
    return [record.request for record in self.records]

  def rows(self) -> list[EditRows]:
    """The tokenised texts of every edit."""
    return encode_edits(load_tokenizer(self.directory), self.requests, self.contexts)

  def recipe(self) -> jedit.Recipe:
    """PMET without stop rules: every edit is the same amount of work."""
    return pmet(
      layers=self.preset.layers, num_steps=self.num_steps, nll_switch=False, stop_loss=None
    )

  def covariance(self) -> np.ndarray:
    """One well-conditioned C_FxF for all layers."""
    return well_conditioned(self.preset.ffn_width)

  def language_model(self) -> jedit.LanguageModel:
    """The model of the implementations in JAX."""
    if self.is_stored:
      return jedit.load(self.directory, self.preset.dtype)
    return jedit.LanguageModel(
      config=self.preset.config,
      base=random_params(self.preset.config, self.seed),
      tokenizer=load_tokenizer(self.directory),
      hf_config=self.preset.hf_config,
      source=os.fspath(self.directory),
      fingerprint=f'random-{self.seed}',
    )


def prepare_edits(
  settings: argparse.Namespace, directory: pathlib.Path, is_stored: bool
) -> tuple[EditWorkload, Amount]:
  """Requests or records, with a tokenizer trained on all records of their file.

  Raises:
    UserError: for a file without records, or too few of them.
  """
  preset = PRESETS[settings.preset]
  records = load_records(settings.records or testbed_directory('gptj') / 'records.json')
  chosen = select(records, settings.num_edits or min(preset.num_edits, len(records)))
  texts = [f'{record.request.text} {record.request.target_new}' for record in records]
  # With about four tokens per record CounterFact's rows are as long as in GPT-2's tokens.
  vocab_size = min(preset.vocab_size, 300 + 4 * len(records))
  save_tokenizer(train_tokenizer(texts, vocab_size, 'gptj'), os.fspath(directory), 'gptj')
  tokenizer = load_tokenizer(directory)
  if is_stored:
    directory = store_model(preset, settings.seed, directory / 'model', source=directory)
  workload = EditWorkload(
    preset=preset,
    timed=settings.timed,
    directory=directory,
    is_stored=is_stored,
    records=tuple(chosen),
    contexts=(('{}',), draw_prefixes(tokenizer, texts, settings.seed)),
    num_steps=settings.num_steps or preset.num_steps,
    target_batch_size=settings.target_batch_size,
    seed=settings.seed,
  )
  rows = workload.rows()
  prompts = [text for edit in rows for text in edit.with_target]
  row, window, target = (
    float(np.mean(lengths))
    for lengths in (
      [len(text.ids) - 1 for text in prompts],
      [len(text.ids) - 1 - text.subject_last for text in prompts],
      [len(text.target_ids) for text in prompts],
    )
  )
  config, layers, steps = preset.config, preset.layers, workload.num_steps
  needed = {
    'targets': flop.target_flop(config, rows, layers[-1], steps),
    'keys': flop.key_flop(config, rows, layers),
    'solves': flop.solve_flop(config, len(rows), len(layers)),
    'evaluation': flop.evaluation_flop(config, tokenizer, chosen),
    'generation': flop.generation_flop(config, tokenizer, chosen),
  }
  work = f'{len(rows)} edits of {steps} loss evaluations'
  if settings.timed.startswith('scores'):
    work = f'{settings.timed} of {len(rows)} records'
  return workload, Amount(
    count=len(rows),
    unit='edits',
    needed_flop=sum(needed[stage] for stage in _STAGES[settings.timed]),
    sentence=f'{work}; a row has {row:.1f} tokens, its window {window:.1f}, a target {target:.1f}',
    facts={
      'num_edits': len(rows),
      'num_steps': steps,
      'lengths': {'row_tokens': row, 'window_tokens': window, 'target_tokens': target},
      'stage_flop': needed,
    },
  )


@dataclasses.dataclass(frozen=True)
class GenerationWorkload:
  """Prompts to continue.

  Attributes:
    directory: of the model.
    rows: token ids of the prompts.
    num_new: tokens to add to each.
  """

  directory: pathlib.Path
  rows: list[list[int]]
  num_new: int


def prepare_generation(
  settings: argparse.Namespace, directory: pathlib.Path, is_stored: bool
) -> tuple[GenerationWorkload, Amount]:
  """Prompts of random tokens and lengths, and a model that ends no text.

  Raises:
    UserError: for lengths in the wrong order.
  """
  del is_stored  # both read the same float32 weights
  if settings.shortest > settings.longest:
    raise UserError('--shortest is above --longest; give lengths from short to long')
  preset, rng = PRESETS[settings.preset], np.random.default_rng(settings.seed)
  num_rows, num_new = settings.num_prompts, settings.num_new
  lengths = rng.integers(settings.shortest, settings.longest + 1, num_rows)
  rows = [rng.integers(1, preset.vocab_size, length).tolist() for length in lengths]
  store_model(preset, settings.seed, directory / 'model', eos_token_id=None)
  # The last new token is chosen and never read.
  num_read = int(lengths.sum()) + num_rows * (num_new - 1)
  blocks = preset.num_layers * flop.block_flop(preset.config) * num_read
  return GenerationWorkload(directory / 'model', rows, num_new), Amount(
    count=num_rows * num_new,
    unit='tokens',
    needed_flop=blocks + flop.head_flop(preset.config) * num_rows * num_new,
    sentence=f'{num_rows} prompts of {min(lengths)} to {max(lengths)} tokens, {num_new} new each',
    facts={'num_prompts': num_rows, 'num_new': num_new},
  )


@dataclasses.dataclass(frozen=True)
class DocumentWorkload:
  """Documents whose second moments are collected.

  Attributes:
    preset: sizes; the kernels are the MLP's of its edited layers.
    directory: of the tokenizer, the model in 'model', and 'texts.json'.
    row_tokens: of the longest packed row.
    batch_tokens: run at once, padding included.
    max_document_tokens: longer documents are cut.
  """

  preset: Preset
  directory: pathlib.Path
  row_tokens: int
  batch_tokens: int
  max_document_tokens: int = _DOCUMENT_TOKENS

  def texts(self) -> list[str]:
    return json.loads((self.directory / 'texts.json').read_text())


def prepare_documents(
  settings: argparse.Namespace, directory: pathlib.Path, is_stored: bool
) -> tuple[DocumentWorkload, Amount]:
  """Documents of log-normal lengths, as those of articles: a median of about 90 tokens."""
  del is_stored  # both read the same weights
  preset = PRESETS[settings.preset]
  lines = testbed_corpus('gptj')
  vocab_size = min(preset.vocab_size, 1000)
  save_tokenizer(train_tokenizer(lines, vocab_size, 'gptj'), os.fspath(directory), 'gptj')
  tokenizer = load_tokenizer(directory)
  rng, words = random.Random(settings.seed), ' '.join(lines).split()
  texts: list[str] = []
  lengths: list[int] = []
  while sum(lengths) < settings.corpus_tokens:
    count = min(int(rng.lognormvariate(4.2, 0.8)) + 5, 400)
    texts.append(' '.join(rng.choices(words, k=count)))
    lengths.append(len(tokenizer(texts[-1])['input_ids'][:_DOCUMENT_TOKENS]))
  (directory / 'texts.json').write_text(json.dumps(texts))
  store_model(preset, settings.seed, directory / 'model', source=directory)
  return DocumentWorkload(preset, directory, settings.row_tokens, settings.batch_tokens), Amount(
    count=sum(lengths),
    unit='tokens',
    needed_flop=sum(lengths) * flop.second_moment_flop(preset.config, preset.layers),
    sentence=f'{len(texts)} documents of up to {max(lengths)} tokens, {sum(lengths):,} in all',
    facts={
      'num_documents': len(texts),
      'row_tokens': settings.row_tokens,
      'batch_tokens': settings.batch_tokens,
    },
  )


@dataclasses.dataclass(frozen=True)
class SolveWorkload:
  """Least squares with the second moments of one kernel, float64.

  Attributes:
    size: F, dimensions of the keys.
    edits: B, numbers of edits of a batch.
    cov_weight: λ.
  """

  size: int
  edits: tuple[int, ...]
  cov_weight: float = 100.0

  def covariance(self) -> np.ndarray:
    """C_FxF."""
    return well_conditioned(self.size)

  def keys(self) -> dict[int, np.ndarray]:
    """Keys [B, F] by number of edits."""
    rng = np.random.default_rng(self.size)
    return {count: rng.normal(size=(count, self.size)) for count in self.edits}


def questions(record: Record) -> list[tuple[str, tuple[str, str | None]]]:
  """Each prompt of a record with the new and the true object."""
  request = record.request
  prompts = [request.text, *record.paraphrase_prompts, *record.neighborhood_prompts]
  return [(prompt, (request.target_new, request.target_true)) for prompt in prompts]


def well_conditioned(size: int) -> np.ndarray:
  """C_FxF, float32; a solve takes as long with any."""
  index_F = np.arange(size, dtype=np.float32)
  return np.exp2(-np.abs(index_F[:, None] - index_F[None, :]))


def draw_prefixes(
  tokenizer: transformers.PreTrainedTokenizerBase, texts: Sequence[str], seed: int
) -> tuple[str, ...]:
  """Contexts as long as sampled ones: ten tokens of words from the texts, and a full stop.

  Text sampled from a random model does not keep its length when it is tokenised again.
  """
  rng = random.Random(seed)
  words = sorted({word for text in texts for word in text.split() if '{' not in word})
  prefixes = []
  for start in _STARTS:
    while True:
      text = ' '.join([start, *rng.choices(words, k=_PREFIX_TOKENS)])
      ids = tokenizer(text)['input_ids'][:_PREFIX_TOKENS]
      prefix = tokenizer.decode(ids)
      if len(tokenizer(prefix)['input_ids']) == _PREFIX_TOKENS:
        break
    prefixes.append(prefix + '. {}')
  return tuple(prefixes)


def random_params(config: ModelConfig, seed: int) -> dict[str, Any]:
  """Normal weights, scaled to keep the size of activations; drawn on the device."""
  tree = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  flat = {}
  for number, (path, leaf) in enumerate(sorted(traverse_util.flatten_dict(tree, sep='/').items())):
    name = path.rpartition('/')[2]
    if name in ('kernel', 'embedding'):
      # The stream starts at size one and every block adds a little to it.
      scale = 1.0 if name == 'embedding' else leaf.shape[0] ** -0.5
      flat[path] = _normal(seed, number, scale, leaf.shape, config.dtype)
    else:
      flat[path] = jnp.full(leaf.shape, float(name == 'scale'), config.dtype)
  return traverse_util.unflatten_dict(flat, sep='/')


def _draw(seed, number, scale, shape, dtype):
  key = jax.random.fold_in(jax.random.key(seed), number)
  return jax.random.normal(key, shape, dtype) * jnp.asarray(scale, dtype)


_normal = jax.jit(_draw, static_argnames=('shape', 'dtype'))


def store_model(
  preset: Preset,
  seed: int,
  directory: pathlib.Path,
  source: pathlib.Path | None = None,
  **changes: Any,
) -> pathlib.Path:
  """Writes the random model with changes of its config.json, and returns the directory."""
  model = Model(random_params(preset.config, seed), config=preset.config)
  save_directory(directory, model, {**preset.hf_config, **changes}, source=source)
  return directory
