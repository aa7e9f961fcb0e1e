"""The probes of a run, as rows of numbers."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pydantic

from jedit.experiments.schema import Probe
from jedit.io import schema
from jedit.io.storage import to_json
from jedit.models.language_model import LanguageModel
from jedit.probes import contrast, similarity, trace, windows_of
from jedit.probes.axes import PLACES
from jedit.types import Request

_Words = Annotated[list[schema.Text], pydantic.Field(min_length=1)]


def load_words(path: str) -> dict[str, list[str]]:
  """Sets of words by name from a JSON file; none for an empty path.

  Raises:
    UserError: for a file of another form.
  """
  if not path:
    return {}
  return schema.read_json(path, dict[str, _Words])


def measure(
  name: str,
  lm: LanguageModel,
  requests: Sequence[Request],
  settings: Probe,
  *,
  words: Mapping[str, Sequence[str]],
  seed: int,
) -> dict[str, Any]:
  """Runs a probe.

  Args:
    name: of the probe, from `PROBES`.
    lm: the model.
    requests: their prompts are the model's input.
    settings: of the config.
    words: sets of words for the contrast.
    seed: of the noise.

  Returns:
    `rows`, each with its place in the model and `mean`, `ci95` and `n` over the requests (as
    fractions, not percent), and `notes` by name.
  """
  if name == 'similarity':
    found = similarity(lm, requests, top_k=settings.top_k).summary()
  elif name == 'contrast':
    found = contrast(lm, requests, words=words).summary()
  else:
    found = _tracing(lm, requests, settings, seed)
  return to_json(found)


def _tracing(
  lm: LanguageModel, requests: Sequence[Request], settings: Probe, seed: int
) -> dict[str, Any]:
  """Single layers, and windows of MLP and attention outputs."""
  results = []
  for width in sorted({1, settings.window}):
    found = trace(
      lm,
      requests,
      windows_of(lm.config.num_layers, width),
      kinds=tuple(PLACES) if width == 1 else ('attn', 'mlp'),
      positions=settings.traced,
      noise=settings.noise,
      num_noises=settings.draws,
      seed=seed,
    )
    results.append(found.summary(width))
  return {**results[-1], 'rows': [row for result in results for row in result['rows']]}
