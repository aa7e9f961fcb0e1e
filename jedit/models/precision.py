"""Dtypes and products of a model: every decision about bfloat16 stands here.

  weights, activations  `dtype` of `jedit.load`, one of `DTYPES`
  edited kernels        float32 in any model, since bfloat16 stores a 1% update with 17% error; a
                        product with one is computed in float32 and rounded once
  products              bfloat16 operands as they are, all digits of float32 ones (`matmul`)
  norms                 float32 inside, rounded once to the activations' dtype
  attention             scores and softmax in float32, weights rounded to the values' dtype
  logits                float32 out of the product, never rounded

Logits rounded to bfloat16 are off by up to 0.1 nats, and the two best of them tie.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jedit.types import UserError

DTYPES = ('float32', 'bfloat16', 'float16')


def check_dtype(dtype: str) -> None:
  """Raises a UserError for a dtype that models are not loaded in; float64 needs x64 mode."""
  if dtype not in (*DTYPES, 'float64') or jax.dtypes.canonicalize_dtype(dtype) != dtype:
    raise UserError(f'dtype is {dtype!r}; choose one of {", ".join(DTYPES)}.')


def wider(*dtypes: DTypeLike) -> jnp.dtype:
  """The narrowest dtype that holds all of them, also under strict promotion."""
  with jax.numpy_dtype_promotion('standard'):
    return functools.reduce(jnp.promote_types, [jnp.dtype(dtype) for dtype in dtypes])


def matmul_precision(dtype: jnp.dtype) -> str | None:
  """All digits for float32 operands, which accelerators shorten by default."""
  return None if dtype == jnp.bfloat16 or dtype == jnp.float16 else 'highest'


def matmul(x: jax.Array, kernel: jax.Array, at_least: DTypeLike) -> jax.Array:
  """The product x @ kernel in the wider of their dtypes.

  Args:
    x: [..., I].
    kernel: [I, O].
    at_least: the product leaves the accumulator in this dtype, or in that of the operands where it
      is wider.
  """
  dtype = wider(x.dtype, kernel.dtype)
  x, kernel, out_dtype = x.astype(dtype), kernel.astype(dtype), wider(dtype, at_least)
  return _product(x, kernel, dtype) if out_dtype == dtype else _widened(x, kernel, out_dtype)


def _product(x: jax.Array, kernel: jax.Array, out_dtype: jnp.dtype) -> jax.Array:
  precision = matmul_precision(x.dtype)
  return jnp.matmul(x, kernel, precision=precision, preferred_element_type=out_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _widened(x: jax.Array, kernel: jax.Array, out_dtype: jnp.dtype) -> jax.Array:
  """`_product` whose gradient multiplies narrow operands as well.

  By itself the wide cotangent would be multiplied with a wide copy of the kernel: 2 GB for the
  vocabulary of LLaMA 3, at half the speed.
  """
  return _product(x, kernel, out_dtype)


def _widened_forward(x: jax.Array, kernel: jax.Array, out_dtype: jnp.dtype) -> Any:
  return _product(x, kernel, out_dtype), (x, kernel)


def _widened_backward(out_dtype: jnp.dtype, operands: Any, cotangent: jax.Array) -> Any:
  del out_dtype
  dtype = operands[0].dtype
  _, pullback = jax.vjp(lambda x, kernel: _product(x, kernel, dtype), *operands)
  return pullback(cotangent.astype(dtype))


_widened.defvjp(_widened_forward, _widened_backward)
