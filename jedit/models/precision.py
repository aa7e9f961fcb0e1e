"""Dtypes and products of a model: every decision about bfloat16 stands here.

  weights, activations  `dtype` of `jedit.load`, one of `DTYPES`
  edited kernels        float32 in any model, since bfloat16 stores a 1% update with 17% error; a
                        product with one is computed in float32 and rounded once; a TPU takes the
                        kernel as two bfloat16 parts, which store that update with 0.02% error
  products              bfloat16 operands as they are, all digits of float32 ones; sums in float32,
                        rounded once (`matmul`, `contract`), forward and backward
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
  """The product x @ kernel in the wider of their dtypes, accumulated in float32 or wider.

  Args:
    x: [..., I].
    kernel: [I, O].
    at_least: the result is rounded once, to this dtype or, if that is wider, that of the operands.
  """
  dtype = wider(x.dtype, kernel.dtype)
  is_edited = x.dtype == jnp.bfloat16 and kernel.dtype == jnp.float32
  product = contract('...i,io->...o', x.astype(dtype), kernel.astype(dtype), is_edited)
  return product.astype(wider(dtype, at_least))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def contract(spec: str, left: jax.Array, right: jax.Array, is_edited: bool = False) -> jax.Array:
  """`jnp.einsum` of two arrays of one dtype that leaves the sum in float32 or wider.

  Sums that leave the product in bfloat16 are rounded by kernels that depend on its shape, so that
  a row's result changes with the batch. The gradient multiplies narrow operands as well: by itself
  the wide cotangent would be multiplied with a wide copy of an operand, 2 GB for the vocabulary of
  LLaMA 3, at half the speed.

  Args:
    spec: every letter of an operand is in the other one or in the result.
    left, right: the operands.
    is_edited: the numbers of `left` are bfloat16 ones, and `right` is an edited kernel. A TPU then
      multiplies with its high and its low bfloat16 part, in two passes in place of three.
  """
  return _contract(spec, left, right, is_edited)


def _contract(spec: str, left: jax.Array, right: jax.Array, is_edited: bool) -> jax.Array:
  product = functools.partial(
    jnp.einsum, spec, preferred_element_type=wider(left.dtype, jnp.float32)
  )
  exact = functools.partial(product, precision=matmul_precision(left.dtype))
  if not is_edited:
    return exact(left, right)
  # 'high' is TF32 on GPUs, with fewer digits than both parts have.
  in_parts = functools.partial(product, precision='high')
  return jax.lax.platform_dependent(left, right, tpu=in_parts, default=exact)


def _contract_forward(spec: str, left: jax.Array, right: jax.Array, is_edited: bool) -> Any:
  return _contract(spec, left, right, is_edited), (left, right)


def _contract_backward(spec: str, is_edited: bool, operands: Any, cotangent: jax.Array) -> Any:
  left, right = operands
  (of_left, of_right), result = spec.split('->')[0].split(','), spec.split('->')[1]
  cotangent = cotangent.astype(left.dtype)
  return (
    _contract(f'{result},{of_right}->{of_left}', cotangent, right, is_edited).astype(left.dtype),
    _contract(f'{of_left},{result}->{of_right}', left, cotangent, is_edited).astype(right.dtype),
  )


contract.defvjp(_contract_forward, _contract_backward)
