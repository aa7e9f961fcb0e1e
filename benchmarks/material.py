"""What all sides of a benchmark work on: a random model, a tokenizer, prefixes and requests.

Weights are random, because time does not depend on them; they keep the size of activations, so
that losses and gradients are neither zero nor infinite. Nothing is downloaded.
"""

import dataclasses
import os
import pathlib
import random
from collections.abc import Sequence
from typing import Any

import flop
import jax
import jax.numpy as jnp
import numpy as np
import transformers
from flax import traverse_util

import jedit
from jedit.editing.prompts import Contexts, EditRows, encode_edits
from jedit.methods import pmet
from jedit.models import FAMILIES, Model, ModelConfig, init_params
from jedit.models.export import save_directory
from jedit.models.tokenizer import load_tokenizer
from jedit.testbeds.tokenizer import save_tokenizer, train_tokenizer
from jedit.types import Record

_STARTS = ('The', 'Therefore', 'Because', 'I', 'You')
_PREFIX_TOKENS = 10


@dataclasses.dataclass(frozen=True)
class Preset:
  """A model's shape and the work on it.

  Attributes:
    num_layers, width, num_heads, ffn_width, rotary_dim, vocab_size: of a GPT-J.
    dtype: of our weights and activations; the baseline is float32.
    layers: edited layers; δ at the last.
    num_edits, num_steps, rounds: by default.
  """

  num_layers: int
  width: int
  num_heads: int
  ffn_width: int
  rotary_dim: int
  vocab_size: int
  dtype: str
  layers: tuple[int, ...]
  num_edits: int
  num_steps: int
  rounds: int

  @property
  def hf_config(self) -> dict[str, Any]:
    """config.json of the model."""
    return {
      'model_type': 'gptj',
      'architectures': ['GPTJForCausalLM'],
      'n_layer': self.num_layers,
      'n_embd': self.width,
      'n_head': self.num_heads,
      'n_inner': self.ffn_width,
      'rotary_dim': self.rotary_dim,
      'vocab_size': self.vocab_size,
      'n_positions': 2048,
      'activation_function': 'gelu_new',
      'layer_norm_epsilon': 1e-5,
      'bos_token_id': 0,
      'eos_token_id': 0,
      'tie_word_embeddings': False,
    }

  @property
  def config(self) -> ModelConfig:
    return FAMILIES['gptj'].read_config(self.hf_config, self.dtype)


PRESETS = {
  # For tests: nothing in it says anything about speed.
  'tiny': Preset(
    num_layers=4, width=32, num_heads=2, ffn_width=64, rotary_dim=8, vocab_size=1000,
    dtype='float32', layers=(1, 2), num_edits=4, num_steps=3, rounds=2,
  ),
  # GPT-J's depth and proportions, so that layer numbers carry over.
  'small': Preset(
    num_layers=28, width=256, num_heads=4, ffn_width=1024, rotary_dim=16, vocab_size=5000,
    dtype='float32', layers=(3, 4, 5, 6, 7, 8), num_edits=64, num_steps=25, rounds=4,
  ),
  'gptj-6b': Preset(
    num_layers=28, width=4096, num_heads=16, ffn_width=16384, rotary_dim=64, vocab_size=50400,
    dtype='bfloat16', layers=(3, 4, 5, 6, 7, 8), num_edits=512, num_steps=30, rounds=3,
  ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Material:
  """What a side is given; small, it travels between processes.

  Attributes:
    preset: sizes.
    directory: holds the tokenizer, and the model where `is_stored`.
    is_stored: the weights are in the directory; otherwise every side draws them on its device.
    requests, contexts: what is edited.
    records: what is measured.
    num_steps: loss evaluations of each edit.
    batch_size: edits optimised at once; None takes the engine's default.
    seed: of the weights.
  """

  preset: Preset
  directory: pathlib.Path
  is_stored: bool
  requests: tuple[jedit.Request, ...]
  records: tuple[Record, ...]
  contexts: Contexts
  num_steps: int
  batch_size: int | None
  seed: int

  def rows(self) -> list[EditRows]:
    """The tokenised texts of every edit."""
    return encode_edits(load_tokenizer(self.directory), self.requests, self.contexts)

  def recipe(self) -> jedit.Recipe:
    """PMET without its stop rules, so that every edit is the same amount of work."""
    return pmet(
      layers=self.preset.layers, num_steps=self.num_steps, nll_switch=False, stop_loss=None
    )

  def covariance(self) -> np.ndarray:
    """One well-conditioned C_FxF for all layers: a solve takes as long with any."""
    index_F = np.arange(self.preset.ffn_width, dtype=np.float32)
    return np.exp2(-np.abs(index_F[:, None] - index_F[None, :]))

  def model(self) -> jedit.LanguageModel:
    """The model on our side."""
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


def prepare(
  preset: Preset,
  directory: pathlib.Path,
  records: Sequence[Record],
  num_edits: int,
  num_steps: int,
  batch_size: int | None,
  seed: int,
  is_stored: bool,
) -> tuple[Material, dict[str, float]]:
  """Makes the tokenizer, the prefixes and, if it is to be stored, the model.

  Returns:
    What the sides are given, and figures about it: mean lengths in tokens, needed FLOP.
  """
  texts = [f'{record.request.text} {record.request.target_new}' for record in records]
  # With about four tokens per record CounterFact's rows are as long as in GPT-2's tokens.
  vocab_size = min(preset.vocab_size, 300 + 4 * len(records))
  save_tokenizer(train_tokenizer(texts, vocab_size, 'gptj'), os.fspath(directory), 'gptj')
  tokenizer = load_tokenizer(directory)
  if is_stored:
    model = Model(random_params(preset.config, seed), config=preset.config)
    save_directory(directory / 'model', model, preset.hf_config, source=directory)
    directory = directory / 'model'
  material = Material(
    preset=preset,
    directory=directory,
    is_stored=is_stored,
    requests=tuple(record.request for record in records[:num_edits]),
    records=tuple(records[:num_edits]),
    contexts=(('{}',), draw_prefixes(tokenizer, texts, seed)),
    num_steps=num_steps,
    batch_size=batch_size,
    seed=seed,
  )
  rows = material.rows()
  prompts = [text for edit in rows for text in edit.with_target]
  config, layers = preset.config, preset.layers
  return material, {
    'row_tokens': float(np.mean([len(text.ids) - 1 for text in prompts])),
    'window_tokens': float(np.mean([len(text.ids) - 1 - text.subject_last for text in prompts])),
    'target_tokens': float(np.mean([len(text.target_ids) for text in prompts])),
    'targets_flop': flop.target_flop(config, rows, layers[-1], num_steps),
    'keys_flop': flop.key_flop(config, rows, layers),
    'solve_flop': flop.solve_flop(config, len(rows), len(layers)),
    'evaluation_flop': flop.evaluation_flop(config, tokenizer, material.records),
    'generation_flop': flop.generation_flop(config, tokenizer, material.records),
  }


def draw_prefixes(
  tokenizer: transformers.PreTrainedTokenizerBase, texts: Sequence[str], seed: int
) -> tuple[str, ...]:
  """Contexts as long as sampled ones: ten tokens of words from the texts, and a full stop.

  A random model has nothing to say; what it would sample does not even keep its length when it is
  tokenised again.
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
  """Normal weights, scaled so that activations neither grow nor vanish; drawn on the device."""
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
