"""Small models with tokenizers, facts to edit and made-up second moments."""

import functools
from collections.abc import Sequence

import numpy as np

from helpers import tiny, vocabularies
from jedit.editing.prompts import Contexts
from jedit.methods import Method
from jedit.models import FAMILIES, Model
from jedit.models.language_model import LanguageModel
from jedit.models.load import fingerprint
from jedit.moments.files import SecondMoments
from jedit.types import Request

CONTEXTS: Contexts = (('{}',), ('The city. {}', 'You play jazz. {}'))
REQUESTS = (
  Request('The mother tongue of {} is', 'Marta', 'Swahili', case_id=11),
  Request('{} plays the', 'Ove', 'violin', case_id=12),
  Request('{} was built in', "Vela's harbor", 'Paris', case_id=13),
  Request('In which city was {} founded? In', 'São Tomé', 'Zürich', case_id=14),
  Request('{} works in', 'Zoë', 'a city in Japan', case_id=15),
  Request('The owner of {} is', 'the café', 'Marta', case_id=16),
  Request('People of {} play', '東京', 'jazz', case_id=17),
)


@functools.cache
def language_model(family: str = 'gptj', num_layers: int = 3) -> LanguageModel:
  """A model of width 16 for the small tokenizer of its family: LLaMA's puts BOS in front."""
  tokenizer = vocabularies.byte_level(bos=family == 'llama', trim=True)
  sizes = {
    'gptj': dict(n_layer=num_layers, n_embd=16, n_head=2, n_inner=24, n_positions=128),
    'llama': dict(
      num_hidden_layers=num_layers,
      hidden_size=16,
      num_attention_heads=4,
      num_key_value_heads=2,
      intermediate_size=20,
      max_position_embeddings=128,
    ),
    'gpt_neox': dict(
      num_hidden_layers=num_layers,
      hidden_size=16,
      num_attention_heads=2,
      intermediate_size=24,
      max_position_embeddings=128,
    ),
    'gpt2': dict(n_layer=num_layers, n_embd=16, n_head=2, n_inner=24, n_positions=128),
  }[family]
  hf_config = tiny.hf_config(family, vocab_size=len(tokenizer), **sizes)
  config = FAMILIES[family].read_config(hf_config, 'float32')
  params = tiny.random_params(config)
  # Sharper predictions, so that a few steps make an answer probable.
  if config.tie_head:
    params['embed'] = {**params['embed'], 'embedding': 4 * params['embed']['embedding']}
  else:
    params['head'] = {**params['head'], 'kernel': 4 * params['head']['kernel']}
  base = fingerprint(Model(params, config=config))
  return LanguageModel(config, params, tokenizer, hf_config, '', base)


def second_moments(lm: LanguageModel, method: Method, seed: int = 0) -> SecondMoments:
  """Positive definite matrices for every kernel that a method needs, the same for any method."""
  cov = {}
  for kernel in method.kernels:
    size = lm.config.key_sizes[kernel.name]
    root = np.random.default_rng([seed, kernel.layer, len(kernel.name)]).normal(
      size=(2 * size, size)
    )
    cov[kernel] = (root.T @ root / len(root)).astype(np.float32)
  return SecondMoments(cov)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
  """Largest difference over the largest value."""
  return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def texts(requests: Sequence[Request]) -> list[str]:
  """Prompts with their subjects."""
  return [request.text for request in requests]
