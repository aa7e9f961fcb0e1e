"""The driver: a recipe and requests in, a patch out."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, overload

import jax
import numpy as np

from jedit.contexts import sample_contexts
from jedit.data.edit_rows import Contexts, EditRows, check_contexts, encode_edits
from jedit.language_model import LanguageModel
from jedit.log import Timers
from jedit.models import functions
from jedit.optimise import Targets, optimise_targets
from jedit.patch import Patch, Update
from jedit.recipe import Recipe
from jedit.second_moment import SecondMoments
from jedit.target import PlacedDelta
from jedit.types import Request, UserError
from jedit.writing import Kernel, write_region

# Edits optimised at once: a CPU is fastest while a batch fits its caches.
BATCH_SIZE = {'cpu': 32, 'gpu': 128, 'tpu': 128}


@dataclasses.dataclass(frozen=True, eq=False)
class Details:
  """Everything an edit computed on the way; arrays are in the order of the requests.

  Attributes:
    contexts: groups of prefix templates.
    rows: texts of every edit with their token ids and positions.
    targets: by stage, δ, v₀, z, step counts and traces.
    keys: averaged keys [B, F] by (kernel, layer), read when the layer was about to be written.
    residuals: [B, D] by (kernel, layer), shared over the layers.
    updates: by parameter path.
    seconds: by 'targets', 'keys' and 'solve'.
  """

  contexts: Contexts
  rows: tuple[EditRows, ...]
  targets: tuple[Targets, ...]
  keys: dict[Kernel, np.ndarray]
  residuals: dict[Kernel, np.ndarray]
  updates: dict[str, Update]
  seconds: dict[str, float]

  @property
  def z(self) -> dict[str, np.ndarray]:
    """Targets of all δ, [B, D] each."""
    return {name: value for stage in self.targets for name, value in stage.z.items()}


@overload
def edit(
  lm: LanguageModel,
  requests: Sequence[Request],
  method: Recipe,
  stats: SecondMoments,
  *,
  contexts: Iterable[Iterable[str]] | None = ...,
  seed: int = ...,
  batch_size: int | None = ...,
  store: pathlib.Path | None = ...,
  details: Literal[False] = ...,
) -> Patch: ...
@overload
def edit(
  lm: LanguageModel,
  requests: Sequence[Request],
  method: Recipe,
  stats: SecondMoments,
  *,
  contexts: Iterable[Iterable[str]] | None = ...,
  seed: int = ...,
  batch_size: int | None = ...,
  store: pathlib.Path | None = ...,
  details: Literal[True],
) -> tuple[Patch, Details]: ...
def edit(
  lm: LanguageModel,
  requests: Sequence[Request],
  method: Recipe,
  stats: SecondMoments,
  *,
  contexts: Iterable[Iterable[str]] | None = None,
  seed: int = 0,
  batch_size: int | None = None,
  store: pathlib.Path | None = None,
  details: bool = False,
) -> Patch | tuple[Patch, Details]:
  """Edits all requests in one batch.

  Args:
    lm: the model; it is not changed.
    requests: facts to write.
    method: a recipe of `jedit.methods`.
    stats: second moments of the kernels that the method writes.
    contexts: groups of prefix templates, the bare prompt '{}' first; sampled from the model with
      `seed` when None.
    seed: of the sampling.
    batch_size: edits whose targets are optimised at once; bounds memory, not the result. None
      takes `BATCH_SIZE` of the device.
    store: directory for finished targets; a run that is repeated after a kill goes on from them.
    details: also returns what was computed on the way.

  Returns:
    The patch, to be applied with `lm.apply`; with `details` a pair of it and `Details`.

  Raises:
    UserError: for no requests, layers outside the model, missing second moments, a target or
      solve that is not finite.
  """
  requests = list(requests)
  if not requests:
    raise UserError('There is nothing to edit; give at least one request.')
  batch_size = BATCH_SIZE[jax.default_backend()] if batch_size is None else batch_size
  if batch_size < 1:
    raise UserError(f'batch_size is {batch_size}; give at least 1.')
  method.check_layers(lm.config.num_layers)
  _check_moments(lm, method, stats)
  groups = sample_contexts(lm, seed) if contexts is None else check_contexts(contexts)
  rows = encode_edits(lm.tokenizer, requests, groups)

  run, read_out = functions(lm.config)
  timers = Timers({'targets': 0.0, 'keys': 0.0, 'solve': 0.0})
  params = lm.params
  updates: dict[str, Update] = {}
  keys: dict[Kernel, np.ndarray] = {}
  residuals: dict[Kernel, np.ndarray] = {}
  targets: list[Targets] = []
  signature = _signature(lm, method, requests, groups)
  for number, names in enumerate(method.stages):
    regions = [method.region(name) for name in names]
    with timers('targets'):
      placed = tuple(PlacedDelta(d, r.layers[-1], r.token) for r in regions for d in r.deltas)
      found = optimise_targets(
        run,
        read_out,
        lm.config.num_layers,
        params,
        rows,
        placed,
        method.objective,
        batch_size=batch_size,
        store=None if store is None else pathlib.Path(store) / f'stage-{number}',
        # A later stage starts from what was written, which second moments decide, too.
        signature=f'{signature} {Patch(updates).id if updates else ""}',
      )
    targets.append(found)
    for region in regions:
      written = write_region(run, params, region, rows, groups, found.z, stats, timers)
      params = written.params
      updates |= written.updates
      keys |= written.keys
      residuals |= written.residuals

  provenance = {
    'model': lm.fingerprint,
    'patches_before': [patch.id for patch in lm.patches],
    'method': dataclasses.asdict(method),
    'num_edits': len(requests),
    'requests': hashlib.sha256(repr(requests).encode()).hexdigest()[:16],
    'contexts': [list(group) for group in groups],
    'seed': seed,
    'jax': jax.__version__,
  }
  patch = Patch(updates, provenance)
  if not details:
    return patch
  return patch, Details(
    groups, tuple(rows), tuple(targets), keys, residuals, updates, timers.seconds
  )


def _check_moments(lm: LanguageModel, method: Recipe, stats: SecondMoments) -> None:
  config = lm.config
  size = {'mlp': config.ffn_width, 'attn': config.num_heads * config.head_dim}
  for kernel, layer in method.kernels:
    shape = stats.covariance(kernel, layer).shape
    if shape != (size[kernel], size[kernel]):
      raise UserError(
        f'The second moments of the {kernel} kernel in layer {layer} have shape {shape}, the model '
        f'wants {(size[kernel], size[kernel])}; collect them on this model.'
      )


def _signature(
  lm: LanguageModel, method: Recipe, requests: Sequence[Request], contexts: Contexts
) -> str:
  """What stored targets depend on."""
  parts: list[Any] = [lm.fingerprint, lm.config.dtype, [p.id for p in lm.patches]]
  parts += [repr(method), repr(requests), contexts]
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
