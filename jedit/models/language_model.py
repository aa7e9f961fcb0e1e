"""LanguageModel: a model, its tokenizer and the patches it carries. Never changed in place."""

import dataclasses
import html
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from jax.sharding import Mesh

from jedit.models import Model, ModelConfig
from jedit.models.export import Export, save_directory
from jedit.models.generate import generate
from jedit.models.hub import find_directory
from jedit.models.load import fingerprint, load_directory
from jedit.models.patch import LISTED, Patch, check_sites, patch_of, patched
from jedit.models.precision import check_dtype
from jedit.models.sharding import param_shardings
from jedit.models.sites import chained
from jedit.models.tokenizer import load_tokenizer
from jedit.parallel.devices import announce_devices
from jedit.parallel.mesh import fetch, place, place_rows
from jedit.parallel.shapes import bucket, pad
from jedit.types import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
  """A decoder with its tokenizer; `apply` and `revert` return new ones that share what they can.

  Attributes:
    config: sizes.
    base: the parameters as loaded, a nested dict of arrays.
    tokenizer: a Hugging Face tokenizer.
    hf_config: config.json of the directory it came from.
    source: that directory.
    fingerprint: hash of `base` and `config`.
    patches: edits in the order they were applied.
    params: `base` with the patches; edited kernels are float32.
  """

  config: ModelConfig
  base: Mapping[str, Any]
  tokenizer: transformers.PreTrainedTokenizerBase
  hf_config: Mapping[str, Any]
  source: str
  fingerprint: str
  patches: tuple[Patch, ...] = ()
  params: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    if not self.params:
      params = self.base
      for patch in self.patches:
        params = patched(params, patch.updates)
      object.__setattr__(self, 'params', params)

  @property
  def model(self) -> Model:
    """The edited decoder as one pytree, for jitted functions."""
    edits = chained(*(patch.interventions for patch in self.patches))
    return Model(self.params, edits, config=self.config)

  def __repr__(self) -> str:
    lines = [
      f'LanguageModel {self.source} ({self.fingerprint})',
      f'  {self.config.title}',
      *(f'  {patch.title}' for patch in self.patches[:LISTED]),
    ]
    more = len(self.patches) - LISTED
    return '\n'.join([*lines, *([f'  and {more} more patches'] if more > 0 else [])])

  def _repr_html_(self) -> str:
    return f'<pre>{html.escape(repr(self))}</pre>'

  def apply(self, patch: Any) -> 'LanguageModel':
    """A model with one more patch.

    Args:
      patch: a `Patch`, or an `EditResult`, which has one; `Patch.anywhere` allows other models.

    Raises:
      UserError: if the patch was made on another model or on top of patches that this one does not
        carry in the same order, is applied already, or has numbers that are not finite.
    """
    patch = patch_of(patch)
    applied = [name for each in self.patches for name in each.names]
    if patch.id in applied:
      raise UserError(f'Patch {patch.id} is applied already; revert it first.')
    self._check_origin(patch, applied)
    check_sites(patch.interventions, self.config.num_layers)
    params = patched(self.params, patch.updates)
    return dataclasses.replace(self, patches=(*self.patches, patch), params=params)

  def _check_origin(self, patch: Patch, applied: Sequence[str]) -> None:
    made_on = patch.provenance.get('model')
    if made_on is not None and made_on != self.fingerprint:
      raise UserError(
        f'The patch was made on a model with fingerprint {made_on}, this one has '
        f'{self.fingerprint}; apply it to the model it was made on.'
      )
    lacking = [each for each in patch.before if each not in applied]
    order = [applied.index(each) for each in patch.before if each in applied]
    if lacking or order != sorted(order):
      below = (
        f'{", ".join(lacking)}, which this model lacks' if lacking else ', '.join(patch.before)
      )
      raise UserError(
        f'Patch {patch.id} was made on top of {below}; apply them first, in the order in '
        'which they were made.'
      )

  def revert(self, patch: Any) -> 'LanguageModel':
    """A model without this patch, recomputed from the base: the bits before come back.

    Raises:
      UserError: if the patch is not applied, or another one was made on top of it.
    """
    patch = patch_of(patch)
    left = tuple(applied for applied in self.patches if applied.id != patch.id)
    if len(left) == len(self.patches):
      raise UserError(f'Patch {patch.id} is not applied to this model; there is nothing to revert.')
    [gone] = [applied for applied in self.patches if applied.id == patch.id]
    above = [each.id for each in left if {*gone.names} & {*each.before}]
    if above:
      raise UserError(
        f'Patch {patch.id} lies below {", ".join(above)}, made on top of it; revert '
        f'{above[-1]} first.'
      )
    return dataclasses.replace(self, patches=left, params={})

  def shard(self, mesh: Mesh | None) -> 'LanguageModel':
    """The same model spread over a mesh by its family's rules; None leaves it where it is."""
    if mesh is None:
      return self
    base = jax.tree.map(place, self.base, param_shardings(self.config, mesh))
    return dataclasses.replace(self, base=base, params={})

  def logits(self, texts: Sequence[str]) -> np.ndarray:
    """Logits of the token after each text, float32 [N, V].

    Raises:
      UserError: for no texts or an empty one.
    """
    rows = self._encode(texts)
    token_NxT, length_N = pad(rows, bucket(max(map(len, rows))))
    arrays = place_rows(self.params, (token_NxT, length_N))
    return fetch(_last_logits(self.model, *arrays))

  def generate(
    self,
    texts: Sequence[str],
    *,
    max_new_tokens: int = 30,
    top_k: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    stop: Sequence[int] = (),
  ) -> list[str]:
    """Continues texts: the most probable tokens, or samples from the `top_k` most probable.

    Args:
      texts: of any lengths; many are taken in batches.
      max_new_tokens: how many tokens a text may get.
      top_k: sample from the k most probable tokens; None takes the most probable.
      temperature: divides the logits before sampling; above 0.
      seed: of the sampling.
      stop: ids of tokens that end a text, besides the tokenizer's end-of-text token.

    Returns:
      Each text with its continuation.

    Raises:
      UserError: for no texts or an empty one, and settings out of range.
    """
    end = self.tokenizer.eos_token_id
    rows = self._encode(texts)
    new = generate(
      self.model,
      rows,
      max_new_tokens=max_new_tokens,
      top_k=top_k,
      temperature=temperature,
      seed=seed,
      stop_ids=[*stop, *([] if end is None else [end])],
    )
    return [
      text + self._decode_after(row, list(ids))
      for text, row, ids in zip(texts, rows, new, strict=True)
    ]

  def _decode_after(self, row: list[int], ids: list[int]) -> str:
    """Text of `ids` behind `row`: decoded together, since a token alone may lose its space."""
    before = self.tokenizer.decode(row, skip_special_tokens=True)
    return self.tokenizer.decode(row + ids, skip_special_tokens=True)[len(before) :]

  def export(self, path: str | os.PathLike[str], dtype: str | None = None) -> Export:
    """Writes the model as a Hugging Face directory that transformers loads.

    Args:
      path: the directory to be.
      dtype: of the stored tensors. By default only edited kernels change: every other tensor is
        written as it stands in the directory that was loaded, in the same file, and edited ones
        are rounded once, to the model's dtype or to their own there where that is wider.

    Returns:
      What was written and what rounding the edited kernels cost.
    """
    return save_directory(
      path,
      self.model,
      self.hf_config,
      dtype=dtype,
      base=self.base if self.patches else None,
      source=self.source,
      tokenizer=self.tokenizer,
    )

  def _encode(self, texts: Sequence[str]) -> list[list[int]]:
    if isinstance(texts, str):
      raise UserError('Give a list of texts, not one string.')
    rows = [list(ids) for ids in self.tokenizer(list(texts))['input_ids']] if texts else []
    if not rows or not all(rows):
      raise UserError('There is an empty text; give at least one token in each.')
    self.config.check_length(max(map(len, rows)))
    return rows


@jax.jit
def _last_logits(model: Model, token_NxT: jax.Array, length_N: jax.Array) -> jax.Array:
  # Padding takes the last position: dynamic rotary scaling looks at the largest one.
  position_NxT = jnp.minimum(jnp.arange(token_NxT.shape[1])[None], (length_N - 1)[:, None])
  hidden_NxTxD, _ = model(token_NxT, position_NxT=position_NxT)
  last_Nx1x1 = (length_N - 1)[:, None, None]
  return model.head(jnp.take_along_axis(hidden_NxTxD, last_Nx1x1, axis=1)[:, 0])


def load(
  path: str | os.PathLike[str],
  dtype: str = 'float32',
  revision: str | None = None,
  mesh: Mesh | None = None,
) -> LanguageModel:
  """Loads a model of the Hugging Face format.

  Args:
    path: directory with config.json, safetensors weights and a tokenizer, or the id of a model on
      the Hugging Face hub, which is downloaded once (see `jedit.models.hub`).
    dtype: of weights and activations: 'float32', 'bfloat16' or 'float16'.
    revision: branch, tag or commit on the hub; None takes the main branch.
    mesh: devices that share the model (`jedit.parallel.mesh.make_mesh`); None takes the first one.

  Raises:
    UserError: if something is missing, mis-shaped, not supported or larger than the free memory;
      says what.
  """
  check_dtype(dtype)  # before anything is downloaded
  announce_devices()
  path = find_directory(path, revision)
  model, hf_config = load_directory(path, dtype, mesh)
  return LanguageModel(
    config=model.config,
    base=model.params,
    tokenizer=load_tokenizer(path),
    hf_config=hf_config,
    source=os.fspath(path),
    fingerprint=fingerprint(model),
  )
