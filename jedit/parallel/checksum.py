"""Checksum of an array on its devices, the same for every device and sharding."""

import jax
import jax.numpy as jnp


@jax.jit
def checksum(x: jax.Array) -> jax.Array:
  """Two 32-bit sums over the bits of an array, and its count of numbers that are not finite.

  Each bit pattern is mixed with its index. Sums modulo 2^32 do not depend on the order of addition,
  hence not on device or sharding; only twelve bytes leave the device.
  """
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  index = jnp.zeros(bits.shape, jnp.uint32)
  for axis, size in enumerate(bits.shape):
    index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  sums = []
  for salt in (0x9E3779B9, 0x85EBCA6B):
    mixed = bits ^ (index * jnp.uint32(salt))
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):  # an established integer hash
      mixed = (mixed ^ (mixed >> jnp.uint32(shift))) * jnp.uint32(factor)
    sums.append((mixed ^ (mixed >> jnp.uint32(16))).sum(dtype=jnp.uint32))
  return jnp.stack([*sums, (~jnp.isfinite(x)).sum(dtype=jnp.uint32)])
