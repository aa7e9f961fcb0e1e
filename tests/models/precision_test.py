"""Dtypes and precision flags of every product, read off lowered programs: a CPU ignores them."""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from helpers import editing, tiny
from jedit.evals import scoring
from jedit.models import Model, generate, kernel_path, language_model
from jedit.models.precision import check_dtype, contract, matmul
from jedit.probes.contrast import _read
from jedit.testbeds import knowledge
from jedit.types import Kernel, UserError

# Untied and tied heads, with and without bias.
HEADS = {
  'gptj': ('gptj', {}),
  'gptj_tied': ('gptj', {'tie_word_embeddings': True}),
  'llama': ('llama', {}),
  'gpt2': ('gpt2', {}),
}
every_head = pytest.mark.parametrize('case', HEADS)
every_family = pytest.mark.parametrize('family', [*tiny.HF_CONFIGS, *tiny.LLAMA_LIKE])
TOKENS = np.array([[5, 6, 7, 8, 4], [9, 3, 2, 1, 0]], np.int32)  # 5 is a size of nothing else
LENGTHS = np.array([5, 3], np.int32)


class Product(NamedTuple):
  """A dot_general of a lowered program: dtypes of operands and result, its shape and flags."""

  left: str
  right: str
  out: str
  shape: tuple[int, ...]
  is_exact: bool


def _products(function, *arguments, **static) -> list[Product]:
  text = jax.jit(function, static_argnames=tuple(static)).lower(*arguments, **static).as_text()
  found = []
  for line in text.splitlines():
    if 'stablehlo.dot_general' in line:
      tensors = re.findall(r'tensor<((?:\d+x)*)(\w+)>', line.rpartition(' : ')[2])
      (_, left), (_, right), (sides, out) = tensors
      shape = tuple(int(side) for side in sides.split('x')[:-1])
      found.append(Product(left, right, out, shape, 'precision = [HIGHEST, HIGHEST]' in line))
  assert found
  return found


def _model(case, dtype):
  family, fields = HEADS[case]
  model = tiny.make_model(family, **fields)
  return model if dtype == 'float32' else tiny.in_dtype(model, dtype)


def _hidden(model):
  values = np.random.default_rng(0).normal(size=(64, model.config.width))
  return jnp.asarray(values, model.config.dtype)


def _exact_logits(model, hidden):
  """Without the final norm, in float64."""
  params = jax.tree.map(lambda x: np.asarray(x.astype('float32'), np.float64), model.params)
  head = params.get('head', {})
  kernel = head.get('kernel', params['embed']['embedding'].T)
  bias = head.get('bias', params.get('head_bias', 0.0))
  return np.asarray(hidden.astype('float32'), np.float64) @ kernel + bias


@every_head
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
def test_logits_are_not_rounded(case, dtype):
  model = _model(case, dtype)
  hidden = _hidden(model)
  logits = model.head(hidden, final_norm=False)
  assert logits.dtype == jnp.float32
  exact = _exact_logits(model, hidden)
  # Sums of 32 products; bfloat16 logits of this size are off by up to 0.03.
  np.testing.assert_allclose(logits, exact, rtol=0, atol=1e-5)
  ours = jax.nn.log_softmax(logits)
  theirs = exact - np.log(np.exp(exact).sum(-1, keepdims=True))
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@every_head
def test_the_head_multiplies_narrow_operands_into_float32(case):
  for dtype, flags in (
    ('bfloat16', ('bf16', 'bf16', 'f32', False)),
    ('float32', ('f32', 'f32', 'f32', True)),
  ):
    model = _model(case, dtype)
    [product] = _products(Model.head, model, _hidden(model))
    assert tiny.VOCAB in product.shape
    assert (*product[:3], product.is_exact) == flags


@every_head
@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_gradients_through_the_head_multiply_operands_as_they_are(case, dtype):
  model = _model(case, dtype)
  hidden = _hidden(model)

  def loss(hidden, model):
    return -jax.nn.log_softmax(model.head(hidden, final_norm=False))[:, 3].mean()

  gradient = jax.jit(jax.grad(loss))
  products = _products(gradient, hidden, model)
  narrow = {'bfloat16': 'bf16', 'float32': 'f32'}[dtype]
  assert len(products) == 2
  assert all(each[:2] == (narrow, narrow) for each in products)
  assert all(each.is_exact == (dtype == 'float32') for each in products)
  wide = tiny.in_dtype(model, 'float32')
  expected = jax.grad(loss)(hidden.astype(jnp.float32), wide)
  ours = gradient(hidden, model)
  assert ours.dtype == jnp.dtype(dtype)
  tolerance = 1e-2 if dtype == 'bfloat16' else 1e-5  # of the largest; bfloat16 has 8 bits
  assert editing.relative(ours.astype(jnp.float32), expected) < tolerance
  # So do those of the kernel.
  kernels = jax.grad(loss, argnums=1)(hidden, model).params
  wide_kernels = jax.grad(loss, argnums=1)(hidden.astype(jnp.float32), wide).params
  path = ('embed', 'embedding') if model.config.tie_head else ('head', 'kernel')
  ours, expected = (tree[path[0]][path[1]].astype(jnp.float32) for tree in (kernels, wide_kernels))
  assert editing.relative(ours, expected) < tolerance


@every_family
def test_every_product_of_a_float32_model_keeps_all_digits(family):
  products = _products(Model.__call__, tiny.model(family), TOKENS)
  assert all(each[:3] == ('f32', 'f32', 'f32') and each.is_exact for each in products)


@every_family
def test_products_of_a_bfloat16_model_add_narrow_operands_up_in_float32(family):
  model = tiny.in_dtype(tiny.model(family), 'bfloat16')

  def gradient(model, token_NxT):
    return jax.grad(lambda model: model(token_NxT)[0].astype(jnp.float32).sum())(model)

  for run, times in ((Model.__call__, 1), (gradient, 3)):  # a product and one for each operand
    products = _products(run, model, TOKENS)
    assert all(each[:3] == ('bf16', 'bf16', 'f32') and not each.is_exact for each in products)
    scores = [each for each in products if each.shape.count(5) == 2]  # tokens by tokens
    assert len(scores) == model.config.num_layers * (2 if times == 3 else 1)


def test_rows_of_a_product_do_not_depend_on_their_number():
  """Kernels of CPUs that leave bfloat16 round by their shape."""
  rng = np.random.default_rng(0)
  row_NxI, kernel_IxO = (
    jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((1536, 192), (192, 1024))
  )
  multiply = jax.jit(functools.partial(matmul, at_least=jnp.bfloat16))
  whole_NxO = multiply(row_NxI, kernel_IxO)
  assert whole_NxO.dtype == jnp.bfloat16
  for count in (6, 48, 384):
    np.testing.assert_array_equal(multiply(row_NxI[:count], kernel_IxO), whole_NxO[:count])


def test_an_edited_kernel_is_multiplied_in_float32_with_all_digits():
  model = tiny.in_dtype(tiny.model('gptj'), 'bfloat16')
  flat, path = traverse_util.flatten_dict(model.params), kernel_path(Kernel(1, 'mlp'))
  flat[path] = flat[path].astype(jnp.float32)
  edited = model.replace(params=traverse_util.unflatten_dict(flat))
  products = _products(Model.__call__, edited, TOKENS)
  [wide] = [each for each in products if 'f32' in (each.left, each.right)]
  assert wide[:3] == ('f32', 'f32', 'f32') and wide.is_exact


def _readers():
  """Every jitted function of the package that reads logits, with arguments for a model."""
  states = jnp.zeros((2, 2, 1, 16), jnp.bfloat16)
  count = np.int32(2)
  return {
    'logits': lambda model: _products(
      language_model._last_logits.__wrapped__, model, TOKENS, LENGTHS
    ),
    'scores': lambda model: _products(
      scoring.score_targets.__wrapped__, model, states[0], LENGTHS, TOKENS[: len(LENGTHS), :2]
    ),
    'texts': lambda model: _products(
      generate._decode.__wrapped__, model, TOKENS, LENGTHS, LENGTHS, LENGTHS, LENGTHS[:0],
      count, np.float32(1), num_new=2, top_k=3,
    ),
    'knowledge': lambda model: _products(
      knowledge._answers_right.__wrapped__, model, TOKENS, TOKENS > 5
    ),
    'contrast': lambda model: _products(
      _read.__wrapped__, model, states, TOKENS[:, :2], jnp.zeros((0, 1), jnp.float32)
    ),
  }  # fmt: skip


@pytest.mark.parametrize('reader', _readers())
@pytest.mark.parametrize('family', ['gptj', 'gpt2'])
def test_whoever_reads_logits_reads_float32(reader, family):
  lm = editing.language_model(family)
  model = tiny.in_dtype(lm.model, 'bfloat16')
  products = _readers()[reader](model)
  read = [each for each in products if lm.config.vocab_size in each.shape]
  assert read and all(each.out == 'f32' for each in read)
  assert all(each.is_exact for each in products if each.left == 'f32')


def test_dtypes_that_are_not_supported_are_named():
  check_dtype('bfloat16')
  for dtype in ('int8', 'float23', 'float64'):
    with pytest.raises(UserError, match=f"dtype is '{dtype}'; choose one of float32, bfloat16"):
      check_dtype(dtype)


@pytest.mark.parametrize('spec', ['...i,io->...o', 'nkgtd,nksd->nkgts', 'nkgts,nksd->nkgtd'])
def test_gradients_of_contractions_are_those_of_einsum(spec):
  rng = np.random.default_rng(0)
  size = dict(zip('ionkgtsd', (4, 3, 2, 2, 2, 3, 5, 4), strict=True))
  sides = spec.split('->')[0].split(',')
  shapes = [[size[letter] for letter in side.removeprefix('...')] for side in sides]
  if spec.startswith('...'):
    shapes[0] = [2, 3, *shapes[0]]
  operands = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]

  def loss(product, operands):
    return jnp.square(product(spec, *operands)).sum()

  ours = jax.grad(functools.partial(loss, contract))(operands)
  plain = functools.partial(jnp.einsum, precision='highest')
  expected = jax.grad(functools.partial(loss, plain))(operands)
  for mine, theirs in zip(ours, expected, strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('platform', 'flag'), [('tpu', 'HIGH'), ('cuda', 'HIGHEST'), ('cpu', 'HIGHEST')]
)
def test_a_tpu_takes_an_edited_kernel_in_two_parts(platform, flag):
  """Forward and backward; a float16 or float32 x has digits that two passes would lose."""

  def flags(dtype):
    def step(x, kernel):
      return jax.grad(lambda x: matmul(x, kernel, x.dtype).astype(jnp.float32).sum())(x)

    operands = jnp.ones((5, 8), dtype), jnp.ones((8, 6))
    found = []
    for function in (functools.partial(matmul, at_least=dtype), step):
      lowered = jax.jit(function).trace(*operands).lower(lowering_platforms=(platform,))
      found += re.findall(r'precision = \[(\w+), (\w+)\]', lowered.as_text())
    return set(found)

  assert flags('bfloat16') == {(flag, flag)}
  assert flags('float16') == flags('float32') == {('HIGHEST', 'HIGHEST')}


def test_two_bfloat16_parts_store_an_update():
  """What a TPU multiplies with: 0.02% of a 1% update is lost, and 15% with one part alone."""
  rng = np.random.default_rng(0)
  kernel = np.float32(jnp.asarray(rng.normal(size=(256, 128)), jnp.bfloat16))
  update = 0.01 * rng.normal(size=kernel.shape)
  edited = np.float32(kernel + update)
  high = np.float32(jnp.asarray(edited, jnp.bfloat16))
  low = np.float32(jnp.asarray(edited - high, jnp.bfloat16))
  lost = [np.linalg.norm(edited - parts) / np.linalg.norm(update) for parts in (high, high + low)]
  assert lost[0] > 0.1 and lost[1] < 5e-4
