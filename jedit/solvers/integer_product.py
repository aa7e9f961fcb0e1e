"""Products with the accuracy of float64 on devices without it, from 8-bit integers.

Numbers are cut into digits of 7 bits, largest first, and digits are multiplied in 8-bit integers:

  a = 2^e Σ_i a_i 2^(-6 - 7 i),  |a_i| ≤ 64;    A x = 2^(e + f) Σ_k 2^(-12 - 7 k) Σ_{i+j=k} A_i x_j

Sums of products of digits are exact in int32, so the only error is that of the levels k ≥ 8 that
are left out: a few 2^-56 of (largest of a row) · (largest of a column) · √F. The scheme is Ozaki's
(Numerical Algorithms 59, 2012), with integers as in arXiv:2306.11975.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jedit.parallel.shapes import bucket

_BITS, _DIGITS = 7, 8
# Levels in the second and third word of a result, which has 28 and 21 bits there.
_MIDDLE, _LAST = range(1, 5), range(5, 8)
# Rows and columns multiplied at once; columns are padded to few counts, since each is compiled.
_ROWS, _MIN_COLUMNS, _MAX_COLUMNS = 1024, 128, 1024
# Beyond, sums of products of digits might leave int32.
_MAX_SIZE = 2**31 // (_DIGITS * 4**6) - 1


def times(matrix_MxF: jax.Array, x_FxB: jax.Array, scale_F: np.ndarray) -> jax.Array:
  """A x; call it inside `float64_alone`.

  Args:
    matrix_MxF: A, float32, on the device that multiplies.
    x_FxB: float64, on another device, which has float64.
    scale_F: powers of two that make the columns of A about equal; x is divided by them.

  Returns:
    [M, B], float64, where `x_FxB` is.
  """
  (device,), (wide,) = matrix_MxF.devices(), x_FxB.devices()
  assert len(x_FxB) <= _MAX_SIZE
  scale_wide, scale = jax.device_put(scale_F, wide), jax.device_put(np.float32(scale_F), device)
  parts = []
  for first in range(0, x_FxB.shape[1], _MAX_COLUMNS):
    part_FxB = x_FxB[:, first : first + _MAX_COLUMNS]
    width = part_FxB.shape[1]
    part_FxB = jnp.pad(part_FxB, ((0, 0), (0, bucket(width, _MIN_COLUMNS) - width)))
    digit_FxKB, unit_1xB = _split_columns(part_FxB, scale_wide)
    found = _multiply(matrix_MxF, scale, jax.device_put(digit_FxKB, device))
    word_3xMxB, unit_Mx1 = jax.device_put(found, wide)
    parts.append(_join(word_3xMxB, unit_Mx1, unit_1xB)[:, :width])
  return jnp.concatenate(parts, axis=1)


@jax.jit
def _split_columns(x_FxB, scale_F):
  """The digits of x / scale side by side, and the units of its columns."""
  scaled_FxB = x_FxB / scale_F[:, None]
  unit_1xB, shrink_1xB = _unit(scaled_FxB, axis=0)
  rest_FxB, digits = scaled_FxB * shrink_1xB, []
  for _ in range(_DIGITS):
    digit_FxB, rest_FxB = _next_digit(rest_FxB)
    digits.append(digit_FxB)
  return jnp.concatenate(digits, axis=1), unit_1xB


@jax.jit
def _multiply(matrix_MxF, scale_F, digit_FxKB):
  """The products in three words, and the units of rows; a few rows at a time."""
  num_rows, width = matrix_MxF.shape[0], digit_FxKB.shape[1] // _DIGITS
  rows = min(_ROWS, num_rows)

  def of_digit(digit, value):
    rest_RxF, level_RxLB = value
    left_RxF, rest_RxF = _next_digit(rest_RxF)
    product_RxKB = jnp.matmul(left_RxF, digit_FxKB, preferred_element_type=jnp.int32)
    first = digit * width
    product_RxKB += jax.lax.dynamic_slice_in_dim(level_RxLB, first, _DIGITS * width, 1)
    return rest_RxF, jax.lax.dynamic_update_slice_in_dim(level_RxLB, product_RxKB, first, 1)

  def of_rows(number, found):
    word_3xMxB, unit_Mx1 = found
    first = jnp.minimum(number * rows, num_rows - rows)
    row_RxF = jax.lax.dynamic_slice_in_dim(matrix_MxF, first, rows) * scale_F[None, :]
    unit_Rx1, shrink_Rx1 = _unit(row_RxF, axis=1)
    level_RxLB = jnp.zeros((rows, 2 * _DIGITS * width), jnp.int32)
    _, level_RxLB = _loop(_DIGITS, of_digit, (row_RxF * shrink_Rx1, level_RxLB))
    word_3xRxB = _words(jnp.split(level_RxLB[:, : _DIGITS * width], _DIGITS, axis=1))
    return (
      jax.lax.dynamic_update_slice_in_dim(word_3xMxB, word_3xRxB, first, 1),
      jax.lax.dynamic_update_slice_in_dim(unit_Mx1, unit_Rx1, first, 0),
    )

  found = jnp.zeros((3, num_rows, width), jnp.int32), jnp.zeros((num_rows, 1), matrix_MxF.dtype)
  return _loop(-(-num_rows // rows), of_rows, found)


def _loop(count, step, value):
  return jax.lax.fori_loop(jnp.int32(0), jnp.int32(count), step, value)


def _unit(x, axis):
  """The power of two above the largest number along the axis, and what makes that 2^6.

  The unit is NaN if a number is not finite: digits are integers and cannot tell.
  """
  largest = jnp.abs(x).max(axis, keepdims=True)
  exponent, one = jnp.frexp(largest)[1], jnp.ones_like(largest)
  unit = jnp.where(jnp.isfinite(largest), jnp.ldexp(one, exponent), jnp.nan)
  return unit, jnp.ldexp(one, _BITS - 1 - exponent)


def _next_digit(x):
  """The nearest integers, and 2^7 times the rest."""
  digit = jnp.round(x)
  return digit.astype(jnp.int8), (x - digit) * 2**_BITS


def _words(levels):
  """Σ_k 2^(-7 k) level_k as top + 2^-28 middle + 2^-49 last; carries go upward."""
  carry, digits = jnp.zeros_like(levels[0]), {}
  for level in range(_DIGITS - 1, 0, -1):
    total = levels[level] + carry
    carry, digits[level] = total >> _BITS, total & (2**_BITS - 1)
  middle, last = (
    functools.reduce(lambda word, level: (word << _BITS) | digits[level], part, carry * 0)
    for part in (_MIDDLE, _LAST)
  )
  return jnp.stack([levels[0] + carry, middle, last])


@jax.jit
def _join(word_3xMxB, unit_Mx1, unit_1xB):
  top, middle, last = word_3xMxB.astype(jnp.float64)
  found_MxB = (last * 2.0**-21 + middle) * 2.0**-28 + top
  return found_MxB * 2.0 ** (2 - 2 * _BITS) * unit_Mx1.astype(jnp.float64) * unit_1xB
