"""Sites: named places in the network to read or change a value.

A site is `'<layer>/<place>'`:

  attn_normed the normed residual stream that the attention block reads
  mlp_normed  the normed residual stream that the MLP reads; in GPT-J the same value
  attn_in     input of the attention output projection (the key of an attention edit)
  attn_out    output of the attention block, before it joins the residual stream
  mlp_gate    output of the MLP's gate projection, bias included, before the activation; in gated
              MLPs alone
  mlp_up      output of the MLP's up projection, bias included
  mlp_in      input of the MLP's down projection (the key k of an MLP edit)
  mlp_out     output of the MLP, bias included, before it joins the residual stream
  block_out   the residual stream after the block
  attn_query  rotated attention queries of every token
  attn_key    rotated attention keys of every token; a cache stores them with attn_value
  attn_value  attention values of every token
  attn_cache  keys and values of a whole row, if the pass has a cache

Interventions are arguments and recordings are return values; jit drops unused ones.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jedit.models.precision import matmul
from jedit.types import Kernel

PLACES = (
  'attn_normed',
  'mlp_normed',
  'attn_in',
  'attn_out',
  'mlp_gate',
  'mlp_up',
  'mlp_in',
  'mlp_out',
  'block_out',
  'attn_query',
  'attn_key',
  'attn_value',
)

# The editable kernels: sites of their input and output, and their parameter.
KERNEL_INPUT = {
  'mlp': 'mlp_in',
  'attn': 'attn_in',
  'mlp_up': 'mlp_normed',
  'mlp_gate': 'mlp_normed',
}
KERNEL_OUTPUT = {
  'mlp': 'mlp_out',
  'attn': 'attn_out',
  'mlp_up': 'mlp_up',
  'mlp_gate': 'mlp_gate',
}
_KERNEL_PATH = {
  'mlp': ('mlp', 'down', 'kernel'),
  'attn': ('attn', 'out', 'kernel'),
  'mlp_up': ('mlp', 'up', 'kernel'),
  'mlp_gate': ('mlp', 'gate', 'kernel'),
}


def site(layer: int, place: str) -> str:
  """Name of a place in a layer, e.g. `'7/mlp_out'`."""
  return f'{layer}/{place}'


def kernel_path(kernel: Kernel) -> tuple[str, ...]:
  """Path of a kernel in the parameter tree."""
  return (f'block_{kernel.layer}', *_KERNEL_PATH[kernel.name])


class Intervention(Protocol):
  """A change of the value at one site: a pytree, callable inside a jitted forward pass."""

  def __call__(self, x: jax.Array, /) -> jax.Array:
    """The new value, of the same shape; it is cast to the dtype of `x`."""
    ...


@struct.dataclass
class AddAt:
  """Adds one vector per row at one token: x[n, pos[n]] += delta[n].

  Attributes:
    pos_N: token index per row; an index outside the row changes nothing.
    delta_NxD: the vectors, float32 for any activation dtype.
  """

  pos_N: jax.Array
  delta_NxD: jax.Array

  def __call__(self, x_NxTxD: jax.Array) -> jax.Array:
    hit_NxT = jnp.arange(x_NxTxD.shape[1])[None, :] == self.pos_N[:, None]
    delta_Nx1xD = self.delta_NxD[:, None, :].astype(x_NxTxD.dtype)
    return x_NxTxD + jnp.where(hit_NxT[..., None], delta_Nx1xD, jnp.zeros_like(delta_Nx1xD))


@struct.dataclass
class ReplaceAt:
  """Replaces one vector per row at one token: x[n, pos[n]] = value[n], for causal tracing.

  Attributes:
    pos_N: token index per row; an index outside the row changes nothing.
    value_NxD: the new vectors.
  """

  pos_N: jax.Array
  value_NxD: jax.Array

  def __call__(self, x_NxTxD: jax.Array) -> jax.Array:
    hit_NxT = jnp.arange(x_NxTxD.shape[1])[None, :] == self.pos_N[:, None]
    return jnp.where(hit_NxT[..., None], self.value_NxD[:, None, :].astype(x_NxTxD.dtype), x_NxTxD)


@struct.dataclass
class Chain:
  """Several interventions at one site, one after the other."""

  steps: tuple[Intervention, ...]

  def __call__(self, x: jax.Array) -> jax.Array:
    for step in self.steps:
      x = step(x).astype(x.dtype)
    return x


def steps_of(intervention: Intervention) -> tuple[Intervention, ...]:
  """The interventions of a chain; any other one alone."""
  return intervention.steps if isinstance(intervention, Chain) else (intervention,)


def chained(*interventions: Mapping[str, Intervention]) -> dict[str, Intervention]:
  """Interventions by site, those that share a site one after the other in the given order."""
  steps: dict[str, tuple[Intervention, ...]] = {}
  for by_site in interventions:
    for name, step in by_site.items():
      steps[name] = (*steps.get(name, ()), *steps_of(step))
  return {name: found[0] if len(found) == 1 else Chain(found) for name, found in steps.items()}


@struct.dataclass
class Change:
  """A change of one kernel for one pass, `left @ right`, which is never formed.

  Attributes:
    left_IxR, right_RxO: factors, float32 for any activation dtype; without `right`, `left` is the
      change itself, [I, O].
  """

  left_IxR: jax.Array
  right_RxO: jax.Array | None = None

  def __call__(self, x: jax.Array) -> jax.Array:
    """What the change adds to the output of the kernel for the input x [..., I]."""
    y = matmul(x, self.left_IxR, self.left_IxR.dtype)
    return y if self.right_RxO is None else matmul(y, self.right_RxO, y.dtype)


# The kinds of intervention that patch files hold; every field is an array.
KINDS: Mapping[str, type] = {kind.__name__: kind for kind in (AddAt, ReplaceAt)}


class Sites:
  """Carries the edits into a forward pass and the recordings out of it.

  Exists for one call of `apply`: blocks pass every site's value through it.
  """

  def __init__(
    self,
    edits: Mapping[str, Callable] | None,
    taps: Iterable[str],
    changes: Mapping[Kernel, Change] | None = None,
  ):
    self.edits = dict(edits or {})
    self.taps = frozenset(taps)
    self.changes = dict(changes or {})
    self.seen: dict[str, jax.Array] = {}

  def __call__(self, layer: int, place: str, x: Any) -> Any:
    """Applies the edit registered here, then records the value if it is tapped."""
    name = site(layer, place)
    if name in self.edits:
      x = self.edits[name](x).astype(x.dtype)
    if name in self.taps:
      self.seen[name] = x
    return x

  def change(self, layer: int, name: str) -> Change | None:
    """The change of a kernel in this pass."""
    return self.changes.get(Kernel(layer, name))
