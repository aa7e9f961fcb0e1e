"""The probes of a run, as rows of numbers."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pydantic

from jedit.evals.estimates import summarize_values
from jedit.experiments.schema import Probe
from jedit.io import schema
from jedit.io.storage import to_json
from jedit.models.language_model import LanguageModel
from jedit.probes import contrast, similarity, trace, windows_of
from jedit.probes.contrast import NORMS, OBJECTS, POSITIONS
from jedit.probes.logit_lens import PROJECTIONS
from jedit.probes.similarity import BEFORE, MODULES
from jedit.probes.tracing import PLACES
from jedit.types import Request

Row = dict[str, Any]


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
    found = _similarity(lm, requests, settings)
  elif name == 'contrast':
    found = _contrast(lm, requests, words)
  else:
    found = _tracing(lm, requests, settings, seed)
  return to_json({'num_requests': len(requests), **found})


def _similarity(lm: LanguageModel, requests: Sequence[Request], settings: Probe) -> dict[str, Any]:
  found = similarity(lm, requests, top_k=settings.top_k)
  rows = []
  for c, before in enumerate(BEFORE):
    for m, module in enumerate(MODULES):
      place = {'before': before, 'module': module}
      rows += _by_layer(found.cosine_CxMxLxN[c, m], **place, measure='cosine', projection='')
      for j, projection in enumerate(PROJECTIONS):
        for measure_name in ('jaccard', 'jaccard_of_strings'):
          values_LxN = getattr(found, f'{measure_name}_CxMxJxLxN')[c, m, j]
          more = {**place, 'measure': measure_name, 'projection': projection}
          rows += _by_layer(values_LxN, **more)
  return {'notes': {'top_k': found.top_k}, 'rows': rows}


def _contrast(
  lm: LanguageModel, requests: Sequence[Request], words: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
  found = contrast(lm, requests, words=words)
  rows = []
  for z, norm in enumerate(NORMS):
    for q, position in enumerate(POSITIONS):
      place = {'norm': norm, 'position': position}
      for o, name in enumerate(OBJECTS):
        for measure_name, values in (
          ('probability', found.prob_ZxQxOxSxN),
          ('rank', found.rank_ZxQxOxSxN),
        ):
          rows += _by_layer(values[z, q, o], 'state', **place, of=name, measure=measure_name)
      for name, values in found.words_ZxQxSxN.items():
        more = {**place, 'of': f'words: {name}', 'measure': 'probability'}
        rows += _by_layer(values[z, q], 'state', **more)
  return {'notes': {'sets': list(found.words_ZxQxSxN)}, 'rows': rows}


def _tracing(
  lm: LanguageModel, requests: Sequence[Request], settings: Probe, seed: int
) -> dict[str, Any]:
  rows, notes = [], {}
  for width in sorted({1, settings.window}):
    windows = windows_of(lm.config.num_layers, width)
    found = trace(
      lm,
      requests,
      windows,
      kinds=tuple(PLACES) if width == 1 else ('attn', 'mlp'),
      positions=settings.traced,
      noise=settings.noise,
      num_noises=settings.draws,
      seed=seed,
    )
    notes = {
      'answers': 'the true object, or the target of a request without one',
      'clean': summarize_values(found.clean_N),
      'corrupted': summarize_values(found.corrupted_N),
    }
    for k, kind in enumerate(found.kinds):
      for q, position in enumerate(found.positions):
        effect_WxN = found.restored_KxQxWxN[k, q] - found.corrupted_N
        place: Row = {
          'kind': kind,
          'position': position,
          'width': width,
          'measure': 'indirect effect',
        }
        more = _by_layer(effect_WxN, **place)
        for row, window, share in zip(more, windows, found.recovered_KxQxW[k, q], strict=True):
          row |= {'layers': _range(window), 'recovered': share}
        rows += more
  return {'notes': notes, 'rows': rows}


def _range(window: Sequence[int]) -> str:
  return str(window[0]) if len(window) == 1 else f'{window[0]} to {window[-1]}'


def _by_layer(values_LxN: np.ndarray, axis: str = 'layer', **place: Any) -> list[Row]:
  return [
    {**place, axis: layer, **summarize_values(values_N)}
    for layer, values_N in enumerate(values_LxN)
  ]
