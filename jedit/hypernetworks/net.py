"""The nets: running normalisation, then residual blocks of low rank on [input, output gradient].

With h = ([x, δ] - mean) / (std + ε), a block is

  MEND (arXiv:2110.11309, released code)    h + relu((h V U + b) · scale + shift)
  MALMEN (arXiv:2311.04661)                 h + relu(h V U + b) · scale + shift

Both start as the identity (U = 0, b = 0): every pre-activation is exactly 0, where the derivative
of the activation must be 1, or nothing is learned.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from jedit.hypernetworks.settings import MEND, Settings
from jedit.hypernetworks.statistics import Statistics
from jedit.models import ModelConfig
from jedit.models.sharding import kernel_shape
from jedit.parallel.mesh import MODEL

Params = Mapping[
  str, Any
]  # by net: 'blocks', 'rate' [M], and for MALMEN 'ridge' [M], its logarithm


# The axis C of matrices, vectors and statistics.
_SPLIT = {'down': 0, 'up': 1, 'bias': 0, 'scale': 1, 'shift': 1, 'mean_C': 0, 'square_C': 0}


def positive(x: jax.Array) -> jax.Array:
  """max(x, 0) whose derivative at 0 is 1, as torch.clamp has it."""
  return jnp.where(x >= 0, x, jnp.zeros_like(x))


def transform(
  net: Mapping[str, Any], mode: int | np.ndarray, row: jax.Array, name: str
) -> jax.Array:
  """The blocks of a net on normalised rows.

  Args:
    net: parameters.
    mode: the kernel's number in the net; several kernels have their numbers [M].
    row: [..., C], of several kernels [M, ..., C].
    name: of the method.
  """
  for number in sorted(net['blocks'], key=int):
    block = net['blocks'][number]

    def vector(name: str, x: jax.Array, block=block) -> jax.Array:
      value = block[name] if name == 'bias' else block[name][mode]
      return value.reshape(*value.shape[:-1], *[1] * (x.ndim - value.ndim), value.shape[-1])

    narrow = jnp.matmul(row, block['down'], precision='highest')
    x = jnp.matmul(narrow, block['up'], precision='highest')
    x = x + vector('bias', x)
    if name != MEND:
      x = positive(x)
    if 'scale' in block:
      x = x * vector('scale', x) + vector('shift', x)
    row = row + (positive(x) if name == MEND else x)
  return row


def init(config: ModelConfig, settings: Settings, key: jax.Array) -> tuple[Params, Any]:
  """Nets that are the identity, float32, and empty statistics, both by name of the net."""
  params: dict[str, Any] = {}
  statistics: dict[str, Statistics] = {}
  plan = settings.plan(config)
  for number, name in enumerate(dict.fromkeys(net for _, net, _ in plan)):
    kernels = [kernel for kernel, net, _ in plan if net == name]
    size = sum(kernel_shape(config, kernels[0]))
    rank, count = min(settings.rank, size), len(kernels)
    blocks = {}
    for n in range(settings.num_blocks):
      draw = jax.random.fold_in(jax.random.fold_in(key, number), n)
      blocks[str(n)] = {
        'down': jax.random.normal(draw, (size, rank), jnp.float32),
        'up': jnp.zeros((rank, size), jnp.float32),
        'bias': jnp.zeros(size, jnp.float32),
      }
      if settings.shared:
        blocks[str(n)]['scale'] = jnp.ones((count, size), jnp.float32)
        blocks[str(n)]['shift'] = jnp.zeros((count, size), jnp.float32)
    params[name] = {'blocks': blocks, 'rate': jnp.full(count, settings.initial_rate, jnp.float32)}
    if settings.name != MEND:
      params[name]['ridge'] = jnp.zeros(count, jnp.float32)
    statistics[name] = Statistics.empty(size)
  return params, statistics


def shardings(mesh: Mesh, tree: Any) -> Any:
  """Nets over a mesh: the axis C of every matrix and vector over 'model' where it divides."""

  def fit(path: Any, leaf: Any) -> NamedSharding:
    axis = _SPLIT.get(getattr(path[-1], 'key', getattr(path[-1], 'name', '')))
    axes: list[str | None] = [None] * len(leaf.shape)
    if axis is not None and leaf.shape[axis] % mesh.shape[MODEL] == 0:
      axes[axis] = MODEL
    return NamedSharding(mesh, Spec(*axes))

  return jax.tree_util.tree_map_with_path(fit, tree)
