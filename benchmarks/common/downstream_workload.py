"""Requests of lm-evaluation-harness, of the four usual kinds, with what they amount to."""

import argparse
import dataclasses
import os
import pathlib
import random
import zlib
from typing import Any

import numpy as np

from common.presets import PRESETS
from common.workload import Amount, store_model
from jedit.evals.harness import library
from jedit.experiments.flop import block_flop, head_flop, prompt_flop
from jedit.models.tokenizer import load_tokenizer
from jedit.testbeds import testbed_corpus
from jedit.testbeds.tokenizer import save_tokenizer, train_tokenizer

KINDS = ('choices', 'letters', 'texts', 'continuations')
_CALLS = {'texts': 'loglikelihood_rolling', 'continuations': 'generate_until'}
_LETTERS = (' A', ' B', ' C', ' D')


@dataclasses.dataclass(frozen=True)
class RequestWorkload:
  """Requests by kind.

  Attributes:
    directory: of the model.
    arguments: by kind, of every request.
    batch_size: requests at once, for the Hugging Face backend.
  """

  directory: pathlib.Path
  arguments: dict[str, list[tuple]]
  batch_size: int

  def ask(self, model: Any, kind: str) -> list[Any]:
    """Answers of a model of the harness to the requests of one kind."""
    instance = library('lm_eval.api.instance').Instance
    call = _CALLS.get(kind, 'loglikelihood')
    requests = [
      instance(call, {}, arguments, n) for n, arguments in enumerate(self.arguments[kind])
    ]
    return getattr(model, call)(requests)


def prepare_requests(
  settings: argparse.Namespace, directory: pathlib.Path, is_stored: bool
) -> tuple[RequestWorkload, Amount]:
  """Contexts of words of the shipped corpus, and a model of random weights."""
  del is_stored  # both read the same weights
  library()
  preset = PRESETS[settings.preset]
  lines = testbed_corpus('gptj')
  vocab_size = min(preset.vocab_size, 1000)
  save_tokenizer(train_tokenizer(lines, vocab_size, 'gptj'), os.fspath(directory), 'gptj')
  tokenizer = load_tokenizer(directory)
  rng, words = random.Random(settings.seed), ' '.join(lines).split()

  def draw(least: int, most: int) -> str:
    return ' '.join(rng.choices(words, k=rng.randint(least, most)))

  count, longest = settings.num_documents, settings.num_words
  limits = {'until': ['\n\n'], 'max_gen_toks': settings.num_new, 'do_sample': False}
  contexts = {kind: [draw(max(longest // 4, 1), longest) for _ in range(count)] for kind in KINDS}
  arguments: dict[str, list[tuple]] = {
    'choices': [(text, f' {draw(2, 10)}') for text in contexts['choices'] for _ in range(4)],
    'letters': [(text, letter) for text in contexts['letters'] for letter in _LETTERS],
    'texts': [(text,) for text in contexts['texts']],
    'continuations': [(text, limits) for text in contexts['continuations']],
  }

  def tokens(text: str) -> int:
    return len(tokenizer(text)['input_ids'])

  needed = dict.fromkeys(KINDS, 0.0)
  for kind in ('choices', 'letters'):
    for n, text in enumerate(contexts[kind]):
      answers = [tokens(answer) for _, answer in arguments[kind][4 * n : 4 * n + 4]]
      needed[kind] += prompt_flop(preset.config, tokens(text), sum(answers) - 4)
  blocks, head = preset.num_layers * block_flop(preset.config), head_flop(preset.config)
  needed['texts'] = (blocks + head) * sum(map(tokens, contexts['texts']))
  read = sum(map(tokens, contexts['continuations']))
  new = count * settings.num_new
  needed['continuations'] = blocks * (read + new - count) + head * new
  directory = store_model(preset, settings.seed, directory / 'model', source=directory)
  total = sum(map(len, arguments.values()))
  return RequestWorkload(directory, arguments, settings.batch_size), Amount(
    count=total,
    unit='requests',
    needed_flop=sum(needed.values()),
    sentence=f'{total} requests on {count} documents of each kind, {longest} words at most',
    facts={'num_documents': count, 'kind_flop': needed, 'batch_size': settings.batch_size},
  )


def ask_all(workload: RequestWorkload, model: Any, now: Any) -> tuple[dict, dict[str, float]]:
  """Answers and seconds by kind."""
  answers, seconds = {}, {}
  for kind in KINDS:
    start = now()
    answers[kind] = workload.ask(model, kind)
    seconds[kind] = now() - start
  return answers, seconds


def fields(answers: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
  """The fields of a round; texts are compared by their checksums."""
  arrays = {
    'choices': np.array([logp for logp, _ in answers['choices']]).reshape(-1, 4),
    'letters': np.array([logp for logp, _ in answers['letters']]).reshape(-1, 4),
    'texts': np.array(answers['texts']),
    'continuations': np.array([zlib.crc32(text.encode()) for text in answers['continuations']]),
  }
  amount = sum(map(len, answers.values()))
  indices = {'indices': np.arange(len(arrays['texts']))}
  return {'amount': amount, 'parts': seconds, 'answers': {**indices, **arrays}}
