"""Model: the parameters of a decoder as one pytree that jitted code takes and calls."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import struct

from jedit.models.config import ModelConfig
from jedit.models.decoder import Decoder
from jedit.models.sites import Intervention, chained, site


@struct.dataclass
class Model:
  """A decoder with its parameters; an argument of every jitted function that runs a network.

  Attributes:
    params: nested dict of arrays, read only.
    edits: interventions that belong to the model, by site; they run before those of a call.
    config: sizes and switches; static, so equal configs share compiled programs.
  """

  params: Any
  edits: Mapping[str, Intervention] = struct.field(default_factory=dict)
  config: ModelConfig = struct.field(pytree_node=False, kw_only=True)

  def __repr__(self) -> str:
    places = f', interventions at {", ".join(self.edits)}' if self.edits else ''
    return f'Model({self.config.title}{places})'

  def __call__(
    self,
    token_NxT: jax.Array | None = None,
    *,
    edits: Mapping[str, Intervention] | None = None,
    **arguments: Any,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Runs blocks; arguments and results as of `jedit.models.decoder.Decoder.__call__`."""
    return Decoder(self.config).apply(
      {'params': self.params}, token_NxT, edits=chained(self.edits, edits or {}), **arguments
    )  # type: ignore[return-value]

  def head(self, hidden: jax.Array, *, final_norm: bool = True) -> jax.Array:
    """Float32 logits [..., V] of hidden states [..., D]; see `Decoder.logits`."""
    return Decoder(self.config).apply(
      {'params': self.params}, hidden, final_norm=final_norm, method='logits'
    )  # type: ignore[return-value]

  def block(self, layer: int) -> 'Model':
    """One block alone, as block 0: every layer then runs through the same compiled program."""
    params = {'block_0': self.params[f'block_{layer}']}
    prefix = site(layer, '')
    edits = {
      name.replace(prefix, site(0, ''), 1): edit
      for name, edit in self.edits.items()
      if name.startswith(prefix)
    }
    return Model(params, edits, config=self.config)

  def embedding(self) -> 'Model':
    """The embeddings alone."""
    return Model({'embed': self.params['embed']}, config=self.config)

  def top(self) -> 'Model':
    """Everything but the blocks: what `head` needs."""
    params = {name: part for name, part in self.params.items() if not name.startswith('block_')}
    return Model(params, config=self.config)
