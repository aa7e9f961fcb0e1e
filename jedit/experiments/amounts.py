"""Needed arithmetic of the stages of a run, from the words of its records and documents."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jedit.editing.contexts import NUM_TOKENS, ROME_LENGTHS, STARTS, prefixes_of
from jedit.experiments import flop
from jedit.experiments.schema import Settings
from jedit.methods import Method
from jedit.models import ModelConfig
from jedit.moments.corpus import Corpus
from jedit.types import Kernel, Record

# GPT-2's tokens per word in 800 records of CounterFact.
_IN_NAMES, _IN_TEMPLATES, _IN_TEXTS = 1.8, 1.05, 1.4
_DOCUMENT_TOKENS = 500  # mean of Wikipedia
_SAMPLE = 256  # records and documents whose lengths are taken


@dataclasses.dataclass(frozen=True)
class Lengths:
  """Mean tokens of a record's texts, estimated from their words.

  Attributes:
    before: of the prompt before its subject; `subject`, `after`, `target` follow it.
    num_prompts: prompts that are scored.
    prompts: tokens of all of them.
    num_targets: objects scored after each.
  """

  before: float
  subject: float
  after: float
  target: float
  num_prompts: float
  prompts: float
  num_targets: float

  @classmethod
  def of(cls, records: Sequence[Record]) -> 'Lengths':
    """Means over the first records."""
    rows = []
    for record in records[:_SAMPLE]:
      request = record.request
      before, _, after = request.prompt.partition('{}')
      others = [*record.paraphrase_prompts, *record.neighborhood_prompts]
      rows.append(
        [
          _IN_TEMPLATES * _words(before),
          _IN_NAMES * _words(request.subject),
          _IN_TEMPLATES * _words(after),
          _IN_TEMPLATES * _words(request.target_new),
          1 + len(others),
          _IN_TEXTS * sum(map(_words, [request.text, *others])),
          1 if request.target_true is None else 2,
        ]
      )
    return cls(*np.mean(rows, axis=0).tolist())


# Their means, for a file that is not here yet.
COUNTERFACT = Lengths(0.6, 4.0, 3.3, 1.1, 13.0, 123.0, 2.0)


def _words(text: str) -> int:
  return len(text.split())


def statistics_flop(
  settings: Settings, config: ModelConfig, method: Method, documents: Corpus | None
) -> float:
  """A pass over the text, or over Wikipedia's articles where it is downloaded first."""
  sizes = [config.key_sizes[kernel.name] for kernel in method.kernels]
  layers = [kernel.layer for kernel in method.kernels]
  num_tokens = statistics_tokens(settings, config, documents)
  return num_tokens * flop.second_moment_flop(config, layers, sizes)


def statistics_tokens(settings: Settings, config: ModelConfig, documents: Corpus | None) -> float:
  """Tokens of that pass."""
  wanted = settings.statistics
  mean, count = float(_DOCUMENT_TOKENS), wanted.max_documents
  if documents is not None:
    count = len(documents)
    sample = [text for text, _ in zip(documents.read(), range(_SAMPLE), strict=False)]
    mean = _IN_TEXTS * float(np.mean([_words(text) for text in sample]))
  longest = wanted.max_document_tokens or wanted.row_tokens or min(config.max_positions, 512)
  num_tokens = count * min(mean, longest)
  if wanted.fast:
    num_tokens = min(num_tokens, 10 * max(config.key_sizes.values()))
  return num_tokens


def prefix_lengths(method: Method) -> tuple[int, ...]:
  """Tokens of the prefixes of all contexts, with their full stops; the bare prompt has none."""
  texts: dict[str | None, Sequence[int]] = {
    None: (),
    'memit': (NUM_TOKENS,) * len(STARTS),
    'rome': ROME_LENGTHS,
  }
  return (0, *(length + 1 for length in texts[prefixes_of(method)]))


def contexts_of(method: Method) -> tuple[int, float]:
  """Number of contexts, with the bare prompt, and the mean tokens of their prefixes."""
  lengths = prefix_lengths(method)
  return len(lengths), sum(lengths) / len(lengths)


def regions_of(method: Method) -> Sequence[Any]:
  """The regions of a recipe; methods without any are not estimated."""
  return getattr(method, 'regions', ())


def updated_of(method: Method | None) -> tuple[Kernel, ...]:
  """The kernels that a recipe updates."""
  return getattr(method, 'updated', ())


def edit_flop(
  settings: Settings, config: ModelConfig, method: Method, lengths: Lengths
) -> dict[str, float]:
  """Targets, keys and solves."""
  if not regions_of(method):
    return {}
  count, prefix = contexts_of(method)
  num_edits = settings.data.num_edits
  per_batch = num_edits if settings.edit.mode == 'together' else settings.edit.edits_per_batch
  amounts = dict.fromkeys(('targets', 'keys', 'solve'), 0.0)
  objective: Any = getattr(method, 'objective', None)
  prompt = prefix + lengths.before + lengths.subject
  for region in regions_of(method):
    at = prompt if region.token == 'subject_last' else prompt + lengths.after
    row = prompt + lengths.after + lengths.target - 1
    kl = lengths.subject
    layer = region.layers[-1]
    each = count * flop.target_flop(
      config, layer, objective.num_steps, row, at - 1, lengths.target
    ) + flop.target_flop(config, layer, objective.num_steps, kl, kl - 1, 1)
    amounts['targets'] += num_edits * each
    if region.updates:
      keys = flop.key_flop(config, region.layers, count * at, count, at - prefix)
      sizes = [config.key_sizes[kernel.name] for kernel in region.kernels]
      once = flop.solve_flop(sizes, config.width, 0)
      amounts['keys'] += num_edits * keys
      amounts['solve'] += once + num_edits * (
        flop.solve_flop(sizes, config.width, per_batch) - once
      ) / max(per_batch, 1)
  return amounts


def evaluation_flop(settings: Settings, config: ModelConfig, lengths: Lengths) -> float:
  """Both objects after every prompt, before and after the edit, and the unedited prompts."""
  more = lengths.num_targets * max(lengths.target - 1, 0)
  mean = lengths.prompts / lengths.num_prompts
  prompts = settings.data.num_edits * lengths.num_prompts
  each = flop.prompt_flop(config, mean, more)
  return 2 * (prompts * each + settings.evaluation.unedited * flop.prompt_flop(config, mean, 0))
