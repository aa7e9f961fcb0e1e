"""Sharding of parameters over the mesh: a family's table, applied to shapes."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jedit.models.config import ModelConfig
from jedit.models.decoder import FAMILIES, init_params
from jedit.models.model import Model
from jedit.models.sites import KERNEL_INPUT, kernel_path
from jedit.types import Kernel, UserError


@functools.cache
def param_shapes(config: ModelConfig) -> dict[str, Any]:
  """The parameter tree with a `jax.ShapeDtypeStruct` per leaf (read-only), without computation."""
  shapes: dict[str, Any] = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  return shapes


def kernel_shape(config: ModelConfig, kernel: Kernel) -> tuple[int, int]:
  """Input and output size of a kernel.

  Raises:
    UserError: if the model has no such kernel.
  """
  flat = traverse_util.flatten_dict(param_shapes(config))
  if kernel.name not in KERNEL_INPUT:
    raise UserError(f'There is no kernel {kernel.name!r}; choose {" or ".join(KERNEL_INPUT)}.')
  if kernel_path(kernel) not in flat:
    raise UserError(
      f'The model ({config.title}) has no kernel {kernel}; choose a layer inside it, and mlp_gate '
      'for gated MLPs alone.'
    )
  return flat[kernel_path(kernel)].shape


def param_specs(config: ModelConfig) -> dict[str, Any]:
  """The parameter tree with the family table's PartitionSpec per leaf, one entry per dimension.

  Raises:
    ValueError: for a parameter without a matching row, or whose row has another number of
      dimensions; names its path and shape.
  """
  rules = FAMILIES[config.family].sharding
  specs = {}
  for path, leaf in traverse_util.flatten_dict(param_shapes(config), sep='/').items():
    axes = next((axes for rule, axes in rules if re.fullmatch(rule, path)), None)
    if axes is None or len(axes) != len(leaf.shape):
      raise ValueError(f'No sharding rule of {config.family} matches {path} {leaf.shape}.')
    specs[path] = PartitionSpec(*axes)
  return traverse_util.unflatten_dict(specs, sep='/')


def param_shardings(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
  """The parameter tree with a NamedSharding per leaf, over the mesh axes 'data' and 'model'.

  A dimension that the mesh axis does not divide (GPT-2's vocabulary of 50257) stays whole on
  every device.
  """

  def fit(leaf: Any, spec: PartitionSpec) -> NamedSharding:
    axes = [
      axis if axis is not None and not size % mesh.shape[axis] else None
      for axis, size in zip(spec, leaf.shape, strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*axes))

  return jax.tree.map(fit, param_shapes(config), param_specs(config))


def abstract_model(
  config: ModelConfig, mesh: Mesh | None = None, device: jax.Device | None = None
) -> Model:
  """A model without arrays: shapes with the dtype and the shardings of its parameters.

  Args:
    config: sizes and dtype.
    mesh: devices that it is sharded over; None takes `device` alone.
    device: None takes the default one.
  """
  alone = SingleDeviceSharding(jax.local_devices()[0] if device is None else device)
  shapes = param_shapes(config)
  placed = (
    param_shardings(config, mesh) if mesh is not None else jax.tree.map(lambda _: alone, shapes)
  )

  def abstract(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, config.dtype, sharding=sharding)

  return Model(jax.tree.map(abstract, shapes, placed), config=config)


def with_float32(model: Model, kernel: Kernel) -> Model:
  """A model without arrays whose kernel carries an update."""
  flat = traverse_util.flatten_dict(model.params)
  path = kernel_path(kernel)
  shape, sharding = flat[path].shape, flat[path].sharding
  flat[path] = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
  return dataclasses.replace(model, params=traverse_util.unflatten_dict(flat))
